"""What a handler knows and may ask for during its turn: `self.context`.

`Stage` gathers what one turn did; the activation makes one per turn, reads it when the handler is done, and forgets it
when the turn failed. `Context` is its public face. Both end with the turn: what a handler leaves running behind its
back cannot stage anything any more.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final, TypeVar

import msgspec

from .calls import Request
from .ids import checked_entity_id, derived_command_id
from .kind import EntityKind, kind_of
from .reference import reference
from .stored import StoredEvent
from .turn import Turn

E = TypeVar("E")

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_END_OF_TIME: Final = dt.datetime.max.replace(tzinfo=dt.UTC)


class Stage(msgspec.Struct, eq=False):
    """One turn's effects so far. A struct, because one is made per turn: three times as fast as a class in Python."""

    kind: EntityKind
    id: str
    turn: Turn
    resources: Any
    event_bytes_max: int
    read_only: str
    """Why nothing may be written in this turn, empty when it may."""
    events: list[StoredEvent] = []
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
        if len(stored.data) > self.event_bytes_max:
            raise ValueError(
                f"the event {stored.name} has {len(stored.data)} bytes, more than event_bytes_max "
                f"({self.event_bytes_max})"
            )
        self.events.append(stored)
        return read


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
        return _EPOCH + dt.timedelta(milliseconds=self._stage.turn.now_ms)

    @property
    def deadline(self) -> dt.datetime:
        """When the caller stops waiting, in UTC, by this host's clock."""
        try:
            return self.now + dt.timedelta(seconds=self._stage.turn.deadline_s)
        except OverflowError:
            return _END_OF_TIME

    @property
    def resources(self) -> Any:
        """What the app's `resources` gave this host: pools, clients. The same object for all entities of the host."""
        return self._stage.resources

    def entity(self, kind: type[E], id: str) -> E:
        """The address of another entity, to be asked from this handler: `await self.context.entity(Kind, id).go(...)`.

        The turn is kept while it waits. The ask leaves once this entity's earlier commits are durable, ends with this
        command's deadline, and takes its command ID from this command: when the handler runs again after a crash, it
        gets the recorded answer. It takes effect even if this command then fails. An entity that (through others)
        already waits for this one fails it at once with `CallCycle`. Only `async def` handlers can wait.
        """
        target: E = reference(_HandlerCaller(self._stage), kind_of(kind), checked_entity_id(id))
        return target

    def delete(self) -> None:
        """Forget this entity's state when this command succeeds; the next command begins from the defaults.

        Its version goes on counting. Raises `RuntimeError` in queries and hooks.
        """
        self._stage.may_write("context.delete()")
        self._stage.deleted = True

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
        caller = self._stage.turn.caller
        return caller.app_name if caller is not None else ""

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
