"""What a handler knows and may ask for during its turn: `self.context`.

`Stage` gathers what one turn did; the activation makes one per turn, reads it when the handler is done, and forgets it
when the turn failed. `Context` is its public face. Both end with the turn: what a handler leaves running behind its
back cannot stage anything any more.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, ParamSpec, TypeVar, overload

import msgspec

from .calls import Request
from .handlers import Command
from .ids import checked_entity_id, checked_timer_name, derived_command_id
from .kind import EntityKind, Handler, kind_of
from .outgoing import Outgoing
from .reference import BoundCommand, reference
from .settings import Settings
from .stored import StoredEvent, StoredTimer
from .timers import EPOCH, Missed, due_ms_of, every_ms_of
from .turn import Turn

E = TypeVar("E")
P = ParamSpec("P")

_END_OF_TIME: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


class Stage(msgspec.Struct, eq=False):
    """One turn's effects so far. A struct, because one is made per turn: three times as fast as a class in Python."""

    kind: EntityKind
    id: str
    turn: Turn
    resources: Any
    settings: Settings
    app_name: str
    read_only: str
    """Why nothing may be written in this turn, empty when it may."""
    events: list[StoredEvent] = []
    outgoing: Outgoing | None = None
    """None: nothing was sent, scheduled or cancelled."""
    deleted: bool = False
    passivate: bool = False
    asks: int = 0
    """Commands that the handler asked for so far."""
    broken: BaseException | None = None
    """An @apply method failed half-way: the turn is lost, also when the handler caught it."""
    open: bool = True
    public: Context | None = None

    def face(self) -> Context:
        if self.public is None:
            self.public = Context(self)
        return self.public

    def may_write(self, what: str) -> None:
        """Raise `RuntimeError` unless this turn can still write."""
        if not self.open:
            raise RuntimeError(f"{what} after the turn of {self.kind.name}/{self.id} ended; await it in the handler")
        if self.read_only:
            raise RuntimeError(f"{what} in {self.read_only}; only a command writes")

    def staged(self, event: Any) -> Any:
        """Stage an event, and return it as it will be read back. Raises when it cannot be stored."""
        self.may_write("emit")
        event_type = self.kind.events.get(type(event))
        if event_type is None:
            raise TypeError(
                f"{self.kind.name} has no @atoll.apply method for {type(event).__name__}; "
                f"add `@atoll.apply def _name(self, event: {type(event).__name__}) -> None`"
            )
        stored, read = event_type.stored(event)
        bytes_max = self.settings.event_bytes_max
        if len(stored.data) > bytes_max:
            raise ValueError(
                f"the event {stored.name} has {len(stored.data)} bytes, more than event_bytes_max ({bytes_max})"
            )
        self.events.append(stored)
        return read

    def going_out(self, what: str) -> Outgoing:
        """Where messages and timers are staged. Raises `RuntimeError` where there can be none."""
        self.may_write(what)
        if not self.kind.durable:
            raise RuntimeError(
                f"{what} in {self.kind.name}/{self.id}: a kind with durable=False has no outbox and no timers, since "
                f"nothing of it is committed"
            )
        if self.outgoing is None:
            self.outgoing = Outgoing(self.settings, self.turn.sends_max)
        return self.outgoing

    def own_handler(self, command: object) -> Handler:
        """The handler that `self.<name>` stands for. Raises `TypeError` for anything but a command of this class."""
        kind = self.kind
        handler = kind.handlers.get(command.__name__) if isinstance(command, Command) else None
        if handler is None or getattr(kind.entity_class, handler.name) is not command:
            raise TypeError(
                f"a timer runs a command of its own entity: pass self.<name> of a command of {kind.name}, "
                f"not {command!r}; to reach another entity, send from that command"
            )
        return handler


class Context:
    """`self.context`: there while a command, a query or a hook of the entity runs."""

    __slots__ = ("_stage",)

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def id(self) -> str:
        """The entity's ID."""
        return self._stage.id

    @property
    def now(self) -> dt.datetime:
        """The time of this turn, in UTC: the same however often it is read."""
        return EPOCH + dt.timedelta(milliseconds=self._stage.turn.now_ms)

    @property
    def deadline(self) -> dt.datetime:
        """When the caller stops waiting, in UTC, by this host's clock."""
        try:
            return self.now + dt.timedelta(seconds=self._stage.turn.deadline_s)
        except OverflowError:
            return _END_OF_TIME

    @property
    def due(self) -> dt.datetime | None:
        """The time, in UTC, for which the timer was set that runs this command; None when a caller or a message does.
        It lies before `now`, by much after a downtime, and is the same when the tick is tried again."""
        due_ms = self._stage.turn.due_ms
        return None if due_ms is None else EPOCH + dt.timedelta(milliseconds=due_ms)

    @property
    def resources(self) -> Any:
        """What the app's `resources` gave this host: pools, clients. The same object for all entities of the host."""
        return self._stage.resources

    def entity(self, kind: type[E], id: str) -> E:
        """The address of another entity: for `send`, or to be asked, `await self.context.entity(Kind, id).go(...)`.

        The turn is kept while it waits for an answer. The ask leaves once this entity's earlier commits are durable,
        ends with this command's deadline, and takes its command ID from this command: when the handler runs again after
        a crash, it gets the recorded answer. It takes effect even if this command then fails. An entity that (through
        others) already waits for this one fails it at once with `CallCycle`. Only `async def` handlers can wait.
        """
        target: E = reference(_HandlerCaller(self._stage), kind_of(kind), checked_entity_id(id))
        return target

    def send(self, command: Command[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send a command to another entity, committed with this one; no answer comes back.

            self.context.send(self.context.entity(Account, "bob").deposit, 10)

        It leaves once this command is committed, all together or not at all, and takes effect exactly once, whoever
        dies; messages of this entity to one other arrive in the order sent. One that fails or is refused there fares as
        a `tell` does.

        Raises `InvalidCommand` for arguments that do not fit; `TypeError` for anything but a command of a reference
        without options; `ValueError` for one of another app, and above `messages_per_turn_max` or `outgoing_bytes_max`;
        `RuntimeError` in queries, hooks and kinds that are not durable; `Overloaded` while the outbox is full: let it
        escape, then nothing is kept and the caller learns that it may repeat.
        """
        outgoing = self._stage.going_out("context.send()")
        target: object = command
        if not isinstance(target, BoundCommand):
            raise TypeError(
                f"context.send takes a command of a reference, as self.context.entity(Kind, id).<name>, not {target!r}"
            )
        outgoing.send(target.message(self._stage.app_name, args, kwargs))

    @overload
    def schedule(
        self,
        name: str,
        when: dt.timedelta | dt.datetime,
        command: Command[P, Any],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None: ...
    @overload
    def schedule(
        self,
        name: str,
        when: dt.timedelta | dt.datetime,
        command: Command[..., Any],
        /,
        *args: Any,
        every: dt.timedelta,
        missed: Missed = "coalesce",
        **kwargs: Any,
    ) -> None: ...
    def schedule(
        self,
        name: str,
        when: dt.timedelta | dt.datetime,
        command: Command[..., Any],
        /,
        *args: Any,
        every: Any = None,
        missed: Any = "coalesce",
        **kwargs: Any,
    ) -> None:
        """Run a command of this entity later: after a delay, or at an aware time (one that has passed: at once).

            self.context.schedule("expire", timedelta(minutes=15), self.expire, order)
            self.context.schedule("interest", first_of_month, self.add_interest, every=timedelta(days=30))

        The timer is committed with this command, outlives every host, and takes the place of an earlier one of its
        name. Its tick finds its time in `context.due`; one that fails or is refused fares as a `tell` does. Until its
        tick has succeeded, `cancel` and a new `schedule` win over it.

        `every` repeats it in steps from the first due time. `missed`: of ticks that were missed meanwhile "coalesce"
        runs one for all of them, "catch_up" each. With `every` no type checker compares the arguments with the command;
        a misfit raises when the line runs. A parameter of the command that is named as one of the two is given by
        position.

        Raises `InvalidCommand` for a name (1-255 bytes of UTF-8) or arguments that do not fit; `TypeError` and
        `ValueError` for a time or an interval that cannot be, and above `timers_per_turn_max` or `outgoing_bytes_max`;
        `RuntimeError` in queries, hooks and kinds that are not durable.
        """
        stage = self._stage
        outgoing = stage.going_out("context.schedule()")
        handler = stage.own_handler(command)
        if missed not in ("coalesce", "catch_up"):
            raise ValueError(f'missed is "coalesce" or "catch_up", not {missed!r}')
        if missed == "catch_up" and every is None:
            raise ValueError('missed="catch_up" is for timers that repeat: give every=timedelta(...)')
        checked_name = checked_timer_name(name)
        due_ms = due_ms_of(when, stage.turn.now_ms)
        every_ms = 0 if every is None else every_ms_of(every, stage.settings.timer_every_ms_min)
        arguments = handler.encode_arguments(args, kwargs)
        outgoing.schedule(
            StoredTimer(checked_name, due_ms, handler.name, arguments, every_ms, catch_up=missed == "catch_up")
        )

    def cancel(self, name: str) -> None:
        """Take the timer of that name away when this command succeeds, also when its tick is queued already. No error
        when there is none. Raises as `schedule`."""
        self._stage.going_out("context.cancel()").cancel(checked_timer_name(name))

    def delete(self) -> None:
        """Forget this entity's state and its timers when this command succeeds; the next one begins from the defaults.

        Timers that this command scheduled before go too, those that it schedules afterwards stay; what it sent leaves
        all the same. The version goes on counting. Raises `RuntimeError` in queries and hooks.
        """
        stage = self._stage
        stage.may_write("context.delete()")
        stage.deleted = True
        if stage.outgoing is not None:
            stage.outgoing.delete()

    def passivate(self) -> None:
        """Let this entity leave memory after this turn, until it is called again; nothing is lost by it."""
        if not self._stage.open:
            raise RuntimeError(f"context.passivate() after the turn of {self.id} ended")
        self._stage.passivate = True

    def __repr__(self) -> str:
        return f"<context of {self._stage.kind.name}/{self.id} at {self.now.isoformat()}>"


class _HandlerCaller:
    """A `Caller` on behalf of a turn: numbers its asks, and says who waits for them."""

    __slots__ = ("__weakref__", "_stage")

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @property
    def app_name(self) -> str:
        return self._stage.app_name

    async def call(self, request: Request) -> bytes:
        stage = self._stage
        what = f"asking {request.kind}/{request.id}"
        if not request.query:
            stage.may_write(what)
        elif not stage.open:
            raise RuntimeError(f"{what} after the turn of {stage.kind.name}/{stage.id} ended")
        turn = stage.turn
        if turn.caller is None:
            raise RuntimeError(f"{what}: there is nobody to ask here (a hook, or a test of one entity alone)")
        command_id = request.command_id
        if not request.query and not command_id:
            stage.asks += 1
            command_id = derived_command_id(turn.root, stage.asks)
        chain = (*turn.chain, f"{stage.kind.name}/{stage.id}")
        return await turn.caller.call(msgspec.structs.replace(request, command_id=command_id, chain=chain))
