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

    await kit.ref.pay("bob", 5)                # what it sends and schedules goes nowhere; it is kept to be looked at
    assert kit.sent == [Sent("account", "bob", "deposit", {"amount": 5})]
    assert kit.timers["fee"].due == kit.now + timedelta(days=30)
    kit.now += timedelta(days=30)              # fires nothing by itself
    await kit.run_timers()                     # runs all that are due

What a host does, the kit does with the same code: arguments, results, events and state all pass through their encoded
form, between any two commands the state is decoded anew, and a failed command leaves no trace. It also recovers the
entity from its stored records after every success, and fails the test when that does not give the same state: a field
that was changed outside of `@apply`, an `@apply` method that looks at more than state and event.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from .activation import Activation
from .calls import Mode, Request, Status
from .codec import raise_for
from .entity import Entity
from .errors import AtollError, HandlerFailed, InvalidCommand, Rejected, known_rejections
from .kind import EntityKind, Handler, kind_of
from .reference import reference
from .settings import Settings
from .stored import StoredEntity, StoredEvent, StoredMessage, StoredTimer
from .timers import EPOCH, Missed, ceil_ms, next_tick
from .turn import Turn, TurnResult

E = TypeVar("E", bound=Entity)

TICKS_MAX = 10_000
"""Ticks in one `run_timers`: a timer that sets itself for now would never end it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
_START = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


class Sent(msgspec.Struct, frozen=True):
    """A message that the entity sent. `arguments`: those that were given, by name, as they travel: of builtins, a
    dataclass as a dict, an enum as its value."""

    kind: str
    id: str
    method: str
    arguments: dict[str, Any] = {}


class Timer(msgspec.Struct, frozen=True):
    """A timer of the entity, as it stands. `arguments`: as in `Sent`."""

    due: dt.datetime
    method: str
    arguments: dict[str, Any] = {}
    every: dt.timedelta | None = None
    missed: Missed = "coalesce"


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
        self._timers: dict[str, StoredTimer] = {}
        self._timers_set = 0
        self.sent: list[Sent] = []
        """What the entity sent, in order. It stays here, and goes nowhere."""
        self.failures: list[AtollError] = []
        """What commands that were sent by `tell`, and ticks of timers, raised. A cluster tells nobody but its log and
        dead letters, and tries again what failed; the kit does so for ticks, with the next `run_timers`."""
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
    def timers(self) -> dict[str, Timer]:
        """The timers that are set, by name."""
        return {name: _shown(timer) for name, timer in self._timers.items()}

    @property
    def active(self) -> bool:
        """It is in memory: it was called since it was made or passivated."""
        return self._activation is not None

    @property
    def now(self) -> dt.datetime:
        """The time that handlers see, in UTC. Set it to move on; it fires no timers. Begins at 2020-01-01."""
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

    async def run_timers(self) -> None:
        """Run the ticks that are due by `kit.now`, in order of due time, as a host would: also those that ticks set or
        leave to be due meanwhile. One that fails is listed in `failures`, stays due, and waits for the next call; one
        that is refused (`Rejected`) is listed, and over.

        Raises `RuntimeError` after `TICKS_MAX` ticks.
        """
        failed: set[tuple[str, int, int]] = set()
        for ran in itertools.count():
            async with self._turn_lock:
                timer = self._due_timer(failed)
                if timer is None:
                    return
                if ran == TICKS_MAX:
                    raise RuntimeError(
                        f"{ran} ticks, and {timer.name!r} is still due: move kit.now in smaller steps, or look whether "
                        f"it sets itself for now"
                    )
                turn = self._turn(self._settings.command_timeout_s, timer.due_ms)
                result = await self._performed(self._kind.handlers[timer.method], timer.arguments, turn, timer)
            if result.status is not Status.OK:
                failed.add((timer.name, timer.set_at, timer.due_ms))
                self.failures.append(_error(result.status, result.payload))

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
            error = _error(status, payload)
            if request.mode is Mode.ASK or not isinstance(error, Rejected | HandlerFailed):
                raise error
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
        timeout_s = self._settings.command_timeout_s if request.timeout_s is None else request.timeout_s
        handler = self._kind.handlers[request.method]
        result = await self._performed(handler, request.arguments, self._turn(timeout_s))
        if result.status is Status.OK and request.command_id:
            self._replies[request.command_id] = (*work, result.payload)
        return result.status, result.payload

    async def _performed(
        self, handler: Handler, arguments: bytes, turn: Turn, tick_of: StoredTimer | None = None
    ) -> TurnResult:
        """One turn, and what a host keeps of it."""
        activation = await self._active()
        if handler.is_async:
            result = await activation.run_async(handler, arguments, turn)
        else:
            result = activation.run(handler, arguments, turn)
        if tick_of is not None and result.status in (Status.OK, Status.REJECTED):
            self._tick_over(tick_of, turn)
        if result.status is Status.OK:
            self._deliver(result)
            if result.changed:
                self._store(activation, result)
            if self._kind.durable:
                self._compare(activation)
        activation.rewind()
        if result.passivate:
            await self._passivate()
        return result

    def _due_timer(self, failed: Collection[tuple[str, int, int]]) -> StoredTimer | None:
        """Whose tick is next."""
        now_ms = ceil_ms(self._now - EPOCH)
        due = [
            timer
            for timer in self._timers.values()
            if timer.due_ms <= now_ms and (timer.name, timer.set_at, timer.due_ms) not in failed
        ]
        return min(due, key=lambda timer: (timer.due_ms, timer.name), default=None)

    def _tick_over(self, timer: StoredTimer, turn: Turn) -> None:
        following = next_tick(timer, turn.now_ms)
        if following is None:
            del self._timers[timer.name]
        else:
            self._timers[timer.name] = following

    def _deliver(self, result: TurnResult) -> None:
        """What the turn's record says of timers and messages. It comes after the end of the tick that the turn was:
        what the handler said of its own timer counts more."""
        if result.deleted:
            self._timers.clear()
        for name in result.timers_gone:
            self._timers.pop(name, None)
        for timer in result.timers:
            self._timers_set += 1
            self._timers[timer.name] = msgspec.structs.replace(timer, set_at=self._timers_set)
        self.sent += [_sent(message) for message in result.messages]

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
        return Activation(self._kind, self.id, self._stored, self._settings, self._resources, self.app_name)

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

    def _turn(self, deadline_s: float, due_ms: int | None = None) -> Turn:
        room = self._settings.messages_per_turn_max
        return Turn(ceil_ms(self._now - EPOCH), deadline_s, due_ms=due_ms, sends_max=room)


def _sent(message: StoredMessage) -> Sent:
    return Sent(message.kind, message.id, message.method, _decode(message.arguments))


def _shown(timer: StoredTimer) -> Timer:
    return Timer(
        EPOCH + dt.timedelta(milliseconds=timer.due_ms),
        timer.method,
        _decode(timer.arguments),
        dt.timedelta(milliseconds=timer.every_ms) if timer.every_ms else None,
        "catch_up" if timer.catch_up else "coalesce",
    )


def _error(status: Status, payload: bytes) -> AtollError:
    """What a caller's answer would have raised."""
    try:
        raise_for(status, payload, known_rejections())
    except AtollError as error:
        return error
