"""One entity in memory: turns are run on it, staged, undone and encoded here.

    stored --> fields set, events applied --> [ turn --> kept | forgotten ]* --> dropped

A turn ends in one of two ways. *Kept*: the result and everything to be stored are encoded and checked first, and only
then does the activation move on; what was encoded becomes its new staged state. *Forgotten*: the entity is put back to
its last staged state, which is the newest one that was kept, committed or not (protocol rule 10); the messages that it
sent and the timers that it set are not heard of again.

How a turn is forgotten:
  Entity        the encoded state from before the turn is decoded again, when it differs from the state after it;
  EventSourced  the last snapshot is decoded and the events since are applied again. Nothing is spent on this in good
                turns but the memory of those events, at most `snapshot_every`.

Attributes named `_like_this` are not state: they are neither stored nor undone. Nothing here reads a clock, draws a
random number or makes a task; what the handler awaits is the handler's business. One turn at a time: the caller's duty.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NoReturn

from .calls import Status
from .codec import encode_message, encode_rejected
from .context import Stage
from .entity import apply_event, prepared, set_stage
from .errors import CorruptRecord, HandlerFailed, Rejected
from .kind import EntityKind, Handler
from .outgoing import OutboxFull
from .settings import Settings
from .stored import StoredEntity, StoredEvent, StoredState
from .turn import Turn, TurnResult


class Activation:
    """See above. Small: an idle one is this object, the entity, and the encoded state or the events to undo to."""

    __slots__ = ("_app_name", "_base", "_entity", "_exists", "_resources", "_settings", "_since", "id", "kind", "seq")

    def __init__(
        self,
        kind: EntityKind,
        id: str,
        stored: StoredEntity,
        settings: Settings,
        resources: Any = None,
        app_name: str = "",
    ) -> None:
        """`app_name`: its entities send messages to none of another app. Raises `CorruptRecord` naming the entity when
        what is stored does not decode or does not apply."""
        self.kind = kind
        self.id = id
        self.seq = stored.seq
        """The version of the staged state."""
        self._settings = settings
        self._resources = resources
        self._app_name = app_name
        self._entity = prepared(kind)
        self._exists = stored.state is not None or bool(stored.events)
        """Something of it is staged or stored; False before its first change and after its deletion."""
        self._base: bytes | None = None
        """Entity: the staged state, encoded from what is in memory now (encoding what was decoded need not give the
        same bytes: sets have no order). EventSourced: the snapshot, None for the defaults."""
        self._since: list[StoredEvent] | None = None
        """EventSourced: the staged events after the snapshot; None for none."""
        self._load(stored.state)
        if stored.events:
            self._since = list(stored.events)
            self._replay()

    # ---- turns -----------------------------------------------------------------------------------------------------

    def run(self, handler: Handler, arguments: bytes, turn: Turn) -> TurnResult:
        """Run a handler that is not `async`. Raises `CorruptRecord` when a failed turn cannot be undone (then drop this
        activation), and lets `KeyboardInterrupt` and `SystemExit` through."""
        try:
            values = handler.decode_arguments(arguments)
        except Exception as error:  # noqa: BLE001 - whatever a user's type raises, the arguments do not fit
            return _invalid(handler, error)
        stage = self._begin(turn, "a query" if handler.is_query else "")
        try:
            value = handler.call(self._entity, *values)
        except (KeyboardInterrupt, SystemExit):
            self._end(stage)
            self.rewind()
            raise
        except BaseException as error:  # noqa: BLE001 - also a CancelledError that a handler raised: it failed
            return self._forgotten(handler, stage, error)
        return self._kept(handler, stage, value)

    def run_batch(self, handler: Handler, batch: list[bytes], asked: list[bool], turn: Turn) -> list[TurnResult] | None:
        """Run many commands of one batched handler in one turn. `asked`: which have a caller who can be refused.

        The first result has the effects of all; the others have a status and a payload. None: something failed and
        nothing was kept, so they are to be run one by one. Raises as `run` does.
        """
        try:
            values = [handler.decode_arguments(arguments)[0] for arguments in batch]
        except Exception:  # noqa: BLE001 - whose do not fit will be told when they run alone
            return None
        stage = self._begin(turn, "")
        try:
            results = handler.call_batch(self._entity, values)
            if not isinstance(results, list) or len(results) != len(batch):
                raise TypeError("not one result for each")  # noqa: TRY301 - it fares as any other mistake of a handler
            replies = [self._reply(handler, value) for value in results]
            if any(status is not Status.OK and not may for (status, _), may in zip(replies, asked, strict=True)):
                raise ValueError("a tell was refused")  # noqa: TRY301 - as above: it is dealt with alone
            if sum(len(payload) for _, payload in replies) > self._settings.batch_bytes_max:
                raise ValueError("together the results are too large for one append")  # noqa: TRY301 - as above
        except (KeyboardInterrupt, SystemExit):
            self._end(stage)
            self.rewind()
            raise
        except BaseException:  # noqa: BLE001 - as in run
            self._end(stage)
            self.rewind()
            return None
        (status, payload), *others = replies
        first = self._kept(handler, stage, None, payload)
        if first.error is not None:
            return None
        first.status = status
        return [first, *(TurnResult(status, payload) for status, payload in others)]

    def _reply(self, handler: Handler, value: Any) -> tuple[Status, bytes]:
        """How one command of a batch ends. Raises when its result cannot be sent."""
        if isinstance(value, Rejected):
            return Status.REJECTED, encode_rejected(value)
        return Status.OK, self._encoded(handler, value)

    async def run_async(self, handler: Handler, arguments: bytes, turn: Turn) -> TurnResult:
        """Run an `async` handler in the current task, otherwise like `run`.

        A cancellation that escapes from the handler is its failure, whoever asked for it, and the task is handed back
        uncancelled: to end a task that runs handlers, tell it so by other means.
        """
        try:
            values = handler.decode_arguments(arguments)
        except Exception as error:  # noqa: BLE001 - as in run
            return _invalid(handler, error)
        stage = self._begin(turn, "a query" if handler.is_query else "")
        try:
            value = await handler.call(self._entity, *values)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self._end(stage)
            self.rewind()
            raise
        except BaseException as error:  # noqa: BLE001 - as in run
            await _settle_cancellation()
            return self._forgotten(handler, stage, error)
        await _settle_cancellation()
        return self._kept(handler, stage, value)

    async def on_activate(self, turn: Turn) -> None:
        """Run the user's hook. Raises `HandlerFailed` when it raised, or changed state."""
        if self.kind.has_on_activate:
            await self._hook("on_activate", turn)

    async def on_passivate(self, turn: Turn) -> None:
        """Run the user's hook. Raises `HandlerFailed` when it raised, or changed state."""
        if self.kind.has_on_passivate:
            await self._hook("on_passivate", turn)

    def stored(self) -> StoredEntity:
        """The staged state as it would be stored, encoded now. Between turns only."""
        kind = self.kind
        if not self._exists or not kind.durable:
            return StoredEntity(self.seq if kind.durable else 0)
        return StoredEntity(self.seq, StoredState(kind.state_versions.version, kind.encode_state(self._entity)))

    def at_rest(self) -> StoredEntity | None:
        """What an activation like this can be made from again. Between turns only.

        None: it holds what that would lose, attributes besides the fields, or what `on_activate` made.
        """
        kind = self.kind
        if kind.has_on_activate or kind.has_on_passivate or len(self._entity.__dict__) != len(kind.field_names):
            return None
        kept = self._base if self._exists or not kind.durable else None
        state = None if kept is None else StoredState(kind.state_versions.version, kept)
        return StoredEntity(self.seq, state, tuple(self._since or ()))

    def fields(self) -> dict[str, Any]:
        """The staged state by field name, as it would be read back. Between turns only."""
        return self.kind.read_state(self.kind.encode_state(self._entity))

    def rewind(self) -> None:
        """Put the entity back to its last staged state, through its encoded form."""
        kind = self.kind
        if not kind.event_sourced:
            for name in kind.stray_names(self._entity):
                delattr(self._entity, name)
        self._load(None if self._base is None else StoredState(kind.state_versions.version, self._base))
        self._replay()

    # ---- inside a turn ---------------------------------------------------------------------------------------------

    def _begin(self, turn: Turn, read_only: str) -> Stage:
        stage = Stage(self.kind, self.id, turn, self._resources, self._settings, self._app_name, read_only)
        set_stage(self._entity, stage)
        return stage

    def _end(self, stage: Stage) -> None:
        stage.open = False
        set_stage(self._entity, None)

    def _encoded(self, handler: Handler, value: Any) -> bytes:
        payload = handler.encode_reply(value)
        if len(payload) > self._settings.reply_bytes_max:
            _refuse_size("its result", payload, "reply_bytes_max", self._settings.reply_bytes_max)
        return payload

    def _kept(self, handler: Handler, stage: Stage, value: Any, payload: bytes | None = None) -> TurnResult:
        """`payload`: the value, when it is encoded already."""
        self._end(stage)
        try:
            if payload is None:
                payload = self._encoded(handler, value)
            result = self._keep_events(stage, payload) if self.kind.event_sourced else self._keep_state(stage, payload)
        except Exception as error:  # noqa: BLE001 - objects of the user's own may raise anything when encoded
            self.rewind()
            return _failed(f"{handler.label} {error}; nothing was kept", error)
        result.passivate = stage.passivate
        outgoing = stage.outgoing
        if outgoing is not None:
            result.messages = tuple(outgoing.messages)
            result.timers = tuple(outgoing.timers.values())
            result.timers_gone = tuple(outgoing.timers_gone)
        return result

    def _keep_state(self, stage: Stage, payload: bytes) -> TurnResult:
        """Everything that can fail comes first; from there on the turn is kept."""
        kind = self.kind
        if strays := kind.stray_names(self._entity):
            raise ValueError(f"set {strays[0]}, which is not a state field: annotate it, or name it _{strays[0]}")
        after = kind.encode_state(self._entity)
        if stage.deleted:
            return self._keep_deletion(stage, payload)
        if after == self._base:
            return TurnResult(Status.OK, payload)
        if stage.read_only:
            raise ValueError("changed the state, and a query only reads: make it a command")
        if len(after) > self._settings.state_bytes_max:
            _refuse_size("the state", after, "state_bytes_max", self._settings.state_bytes_max)
        kind.check_state(after)
        self._base = after
        if not kind.durable:
            return TurnResult(Status.OK, payload)
        self._exists = True
        self.seq += 1
        state = StoredState(kind.state_versions.version, after)
        return TurnResult(Status.OK, payload, changed=True, state=state)

    def _keep_events(self, stage: Stage, payload: bytes) -> TurnResult:
        """Everything that can fail comes first; from there on the turn is kept."""
        kind = self.kind
        if stage.broken is not None:
            raise ValueError(f"went on after an @apply method failed ({_said(stage.broken)})")
        if stage.deleted:
            return self._keep_deletion(stage, payload)
        events = stage.events
        if not events:
            return TurnResult(Status.OK, payload)
        state: StoredState | None = None
        if len(events) + len(self._since or ()) >= self._settings.snapshot_every:
            data = kind.encode_state(self._entity)
            if len(data) > self._settings.state_bytes_max:
                _refuse_size("the state", data, "state_bytes_max", self._settings.state_bytes_max)
            kind.check_state(data)
            state = StoredState(kind.state_versions.version, data)
            self._base = data
            self._since = None
        elif self._since is None:
            self._since = events
        else:
            self._since.extend(events)
        self._exists = True
        self.seq += 1
        return TurnResult(Status.OK, payload, changed=True, state=state, events=tuple(events))

    def _keep_deletion(self, stage: Stage, payload: bytes) -> TurnResult:
        kind = self.kind
        kind.set_defaults(self._entity)
        self._base = None if kind.event_sourced else kind.encode_state(self._entity)
        self._since = None
        self._exists = False
        if not kind.durable:
            return TurnResult(Status.OK, payload)
        self.seq += 1
        return TurnResult(Status.OK, payload, changed=True, events=tuple(stage.events), deleted=True)

    def _forgotten(self, handler: Handler, stage: Stage, error: BaseException) -> TurnResult:
        self._end(stage)
        if not isinstance(error, Rejected):
            self.rewind()
            if isinstance(error, OutboxFull):
                return TurnResult(Status.OVERLOADED, encode_message(f"{handler.label}: {error}"))
            return _failed(f"{handler.label} raised {_said(error)}", error)
        if stage.events or stage.broken is not None or self._differs():
            self.rewind()
        try:
            payload = encode_rejected(error)
            if len(payload) > self._settings.reply_bytes_max:
                _refuse_size("it", payload, "reply_bytes_max", self._settings.reply_bytes_max)
        except Exception as problem:  # noqa: BLE001 - as in _kept
            return _failed(f"{handler.label} raised {type(error).__name__}, which cannot be sent: {problem}", error)
        return TurnResult(Status.REJECTED, payload)

    def _differs(self) -> bool:
        """A plain entity's state is not what it was when the turn began."""
        if self.kind.event_sourced:
            return False  # its fields cannot be set outside of @apply methods
        try:
            return self.kind.encode_state(self._entity) != self._base or bool(self.kind.stray_names(self._entity))
        except ValueError:
            return True

    async def _hook(self, name: str, turn: Turn) -> None:
        stage = self._begin(turn, name)
        try:
            await getattr(self._entity, name)()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self._end(stage)
            self.rewind()
            raise
        except BaseException as error:
            await _settle_cancellation()
            self._end(stage)
            self.rewind()
            raise HandlerFailed(f"{name} of {self.kind.name}/{self.id} raised {_said(error)}") from error
        await _settle_cancellation()
        self._end(stage)
        if self._differs():
            self.rewind()
            raise HandlerFailed(f"{name} of {self.kind.name}/{self.id} changed the state: set only _underscore names")

    def _load(self, state: StoredState | None) -> None:
        """Set all fields: as stored, or to the defaults."""
        kind = self.kind
        try:
            if state is None:
                kind.set_defaults(self._entity)
            else:
                kind.set_state(self._entity, state)
            if state is not None or not kind.event_sourced:
                self._base = kind.encode_state(self._entity)
        except Exception as error:
            origin = "default" if state is None else "stored"
            raise CorruptRecord(f"{kind.name}/{self.id}: its {origin} state cannot be used: {_said(error)}") from error

    def _replay(self) -> None:
        """Apply the events since the snapshot."""
        for number, stored in enumerate(self._since or (), start=1):
            try:
                apply_event(self._entity, self.kind, self.kind.read_event(stored))
            except Exception as error:
                raise CorruptRecord(
                    f"{self.kind.name}/{self.id}: event {number} of {len(self._since or ())} after its snapshot, "
                    f"{stored.name} version {stored.version}, does not apply: {_said(error)}"
                ) from error

    def __repr__(self) -> str:
        return f"<activation of {self.kind.name}/{self.id} at version {self.seq}>"


async def _settle_cancellation() -> None:
    """Take back every cancellation of this task that is still counted or under way, so that it can go on.

    Left behind, it would end the task at its next wait, or make a TaskGroup of a later handler take it for its own.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # one that was asked for and not yet delivered arrives here
    while task.cancelling():
        task.uncancel()


def _invalid(handler: Handler, problem: Exception) -> TurnResult:
    return TurnResult(Status.INVALID_COMMAND, encode_message(handler.complaint(problem)))


def _refuse_size(what: str, data: bytes, limit: str, bytes_max: int) -> NoReturn:
    raise ValueError(f"is over a limit: {what} has {len(data)} bytes, more than {limit} ({bytes_max})")


def _failed(message: str, error: BaseException) -> TurnResult:
    return TurnResult(Status.HANDLER_FAILED, encode_message(message), error=error)


def _said(error: BaseException) -> str:
    """An exception in one line; its own `str` may fail."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception of the user's own
        text = "(its text cannot be made)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
