"""A harness for testing one entity class, without a cluster: commands in, results, events and state out.

    kit = atoll.testing.EntityKit(Account, "alice")
    assert await kit.ref.deposit(10) == 10
    with pytest.raises(atoll.Rejected):
        await kit.ref.withdraw(50)
    assert kit.events == [Deposited(10)]
    assert kit.state == {"balance": 10}

    kit.now += timedelta(days=30)              # the time that handlers see; it moves only by this
    await kit.restart()                        # leave memory, and come back from what is stored
    assert await kit.ref.balance_now() == 10

    await kit.ref.deposit.using(command_id="order-17")(5)
    await kit.ref.deposit.using(command_id="order-17")(5)      # a repeat: answered, not run
    assert kit.state == {"balance": 15}

What a host does, the kit does with the same code: arguments, results, events and state all pass through their encoded
form, between any two commands the state is decoded anew, and a failed command leaves no trace. It also recovers the
entity from its stored records after every success, and fails the test when that does not give the same state: a field
that was changed outside of `@apply`, an `@apply` method that looks at more than state and event.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from .activation import Activation
from .calls import Mode, Request, Status
from .codec import raise_for
from .entity import Entity
from .errors import AtollError, HandlerFailed, InvalidCommand, Rejected, known_rejections
from .kind import EntityKind, kind_of
from .reference import reference
from .settings import Settings
from .stored import StoredEntity, StoredEvent
from .turn import Turn, TurnResult

E = TypeVar("E", bound=Entity)

_encode = msgspec.msgpack.Encoder().encode
_START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


class EntityKit(Generic[E]):
    """One entity under test. `settings` are those that differ from the defaults, e.g. `{"snapshot_every": 3}`;
    `resources` is what handlers find in `self.context.resources`."""

    def __init__(
        self, entity_class: type[E], id: str = "it", *, settings: Mapping[str, Any] | None = None, resources: Any = None
    ) -> None:
        self._kind: EntityKind = kind_of(entity_class)
        self._kind.check_upcasts()
        self._settings, _ = Settings.load(settings or {}, {})
        self._resources = resources
        self._now = _START
        self._turn_lock = asyncio.Lock()
        self._activation: Activation | None = None
        self._stored = StoredEntity()
        self._history: list[StoredEvent] = []
        self._replies: dict[str, tuple[str, bytes, bytes]] = {}
        self.failures: list[AtollError] = []
        """What commands that were sent by `tell` raised: a cluster tells nobody but its log and dead letters."""
        self.ref: E = reference(self, self._kind, id)
        """The entity as its callers see it."""
        self.id = id

    @property
    def app_name(self) -> str:
        return "test"

    # ---- what came out -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """The state fields by name, as they would come back from the store; the defaults when nothing is stored."""
        return (self._activation or self._recovered()).fields()

    @property
    def events(self) -> list[Any]:
        """All events so far, as they would come back from the store, also after `context.delete()`."""
        return [self._kind.read_event(stored) for stored in self._history]

    @property
    def version(self) -> int:
        """How many commands have changed the entity."""
        return self._stored.seq

    @property
    def active(self) -> bool:
        """It is in memory: it was called since it was made or passivated."""
        return self._activation is not None

    @property
    def now(self) -> dt.datetime:
        """The time that handlers see, in UTC. Set it to move on. Begins at 2020-01-01."""
        return self._now

    @now.setter
    def now(self, value: dt.datetime) -> None:
        if value.tzinfo is None:
            raise ValueError("kit.now is an aware time, e.g. datetime(2024, 5, 1, tzinfo=UTC)")
        self._now = value.astimezone(dt.UTC)

    # ---- what goes in ------------------------------------------------------------------------------------------------

    async def restart(self) -> None:
        """Passivate the entity and bring it back from what is stored, with its hooks."""
        async with self._turn_lock:
            await self._passivate()
            await self._active()

    async def call(self, request: Request) -> bytes:
        """Run one command as a host would. References call this."""
        if len(request.arguments) > self._settings.arguments_bytes_max:
            raise InvalidCommand(
                f"{request.kind}.{request.method}: the arguments have {len(request.arguments)} bytes, more than "
                f"arguments_bytes_max ({self._settings.arguments_bytes_max})"
            )
        async with self._turn_lock:
            status, payload = await self._answered(request)
        if status is not Status.OK:
            try:
                raise_for(status, payload, known_rejections())
            except (Rejected, HandlerFailed) as error:
                if request.mode is Mode.ASK:
                    raise
                self.failures.append(error)
        return payload if request.mode is Mode.ASK else b""

    # ---- the host's part ---------------------------------------------------------------------------------------------

    async def _answered(self, request: Request) -> tuple[Status, bytes]:
        work = (request.method, request.arguments)
        known = self._replies.get(request.command_id) if request.command_id else None
        if known is not None:
            if known[:2] != work:
                message = f"command ID {request.command_id!r} was used for other work on this entity: use a new one"
                return Status.INVALID_COMMAND, message.encode()
            return Status.OK, known[2]
        activation = await self._active()
        handler = self._kind.handlers[request.method]
        timeout_s = self._settings.command_timeout_s if request.timeout_s is None else request.timeout_s
        turn = self._turn(timeout_s, request.command_id)
        if handler.is_async:
            result = await activation.run_async(handler, request.arguments, turn)
        else:
            result = activation.run(handler, request.arguments, turn)
        if result.changed:
            self._store(activation, result)
        if result.status is Status.OK and request.command_id:
            self._replies[request.command_id] = (*work, result.payload)
        if self._kind.durable and result.status is Status.OK:
            self._compare(activation)
        activation.rewind()
        if result.passivate:
            await self._passivate()
        return result.status, result.payload

    def _store(self, activation: Activation, result: TurnResult) -> None:
        """Lay the turn's record over what is stored, as recovery does."""
        events = result.events
        self._history += events
        if result.deleted:
            self._stored = StoredEntity(activation.seq)
        elif result.state is not None:
            self._stored = StoredEntity(activation.seq, result.state)
        else:
            self._stored = StoredEntity(activation.seq, self._stored.state, self._stored.events + events)

    def _compare(self, activation: Activation) -> None:
        live, after_recovery = activation.fields(), self._recovered().fields()
        for name, value in live.items():
            # compared in both ways: NaN is unlike itself, and sets are encoded in any order
            if value != after_recovery[name] and _encode(value) != _encode(after_recovery[name]):
                raise AssertionError(
                    f"{self._kind.name}.{name} is {value!r} in memory and {after_recovery[name]!r} after recovery: "
                    f"it was changed outside of @atoll.apply, or depends on more than what is stored"
                )

    def _recovered(self) -> Activation:
        return Activation(self._kind, self.id, self._stored, self._settings, self._resources)

    async def _active(self) -> Activation:
        if self._activation is None:
            activation = self._recovered()
            await activation.on_activate(self._turn(self._settings.command_timeout_s))
            self._activation = activation
        return self._activation

    async def _passivate(self) -> None:
        if self._activation is not None:
            await self._activation.on_passivate(self._turn(self._settings.command_timeout_s))
            self._activation = None

    def _turn(self, deadline_s: float, command_id: str = "") -> Turn:
        return Turn(round(self._now.timestamp() * 1000), deadline_s)
