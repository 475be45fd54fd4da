"""Running a turn: from the head of a mailbox to a staged record and a gated answer.

Before the handler: is the command still wanted (floor, deadline), was it done before under its command ID, is the
entity in memory? After it: effects become one record with the shard's next position, and the answer goes to the gate.
The next turn may begin at once, on the uncommitted state; only what leaves the host waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any

from msgspec.structs import replace

from ..actors.activation import Activation
from ..actors.calls import Caller, Mode, Status
from ..actors.codec import message_of
from ..actors.errors import CorruptRecord
from ..actors.settings import Settings
from ..actors.stored import StoredEntity
from ..actors.turn import Turn, TurnResult
from ..actors.world import World
from ..persistence.records import Delivery, Record, RecordedReply
from ..persistence.spi import Store
from .accepting import Accepting
from .asks import HandlerAsks, root_of
from .commit import CommitPath
from .gate import OutputGate
from .hot import HotEntities
from .leaving import Leaving
from .log_fields import of_command, of_entity
from .messages import Answer, OutOfOrder
from .owed import Owed
from .paging import Paging
from .resident import Pending, Resident
from .retries import until_done
from .shard import OwnedShard, Phase
from .staging import Staging, digest_of
from .window import Known

log = logging.getLogger("atoll.host")

_EXPIRED = b"the deadline passed before the command's turn came; it did not run"


class Metered:
    """Awaits a turn, and tells how long each of its steps took; what it waits for is not counted."""

    __slots__ = ("_clock", "_steps", "_took")

    def __init__(
        self, turn: Coroutine[Any, Any, TurnResult], took: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._steps = turn
        self._took = took
        self._clock = clock

    def __await__(self) -> Generator[Any, Any, TurnResult]:
        step: Callable[[], Any] = partial(self._steps.send, None)
        while True:
            began = self._clock()
            try:
                awaited = step()
            except StopIteration as over:
                result: TurnResult = over.value
                return result
            finally:
                self._took(self._clock() - began)
            try:
                step = partial(self._steps.send, (yield awaited))
            except BaseException as error:  # noqa: BLE001 - a cancellation, say: it belongs inside
                step = partial(self._steps.throw, error)


class TurnPerformer:
    """`Performer` of sharding/turns.py."""

    def __init__(
        self,
        *,
        store: Store,
        commits: CommitPath,
        gate: OutputGate,
        staging: Staging,
        accepting: Accepting,
        owed: Owed,
        settings: Settings,
        world: World,
        app_name: str,
        resources: Any,
        asker: Caller | None,
        ready: Callable[[Resident], None],
        leaving: Leaving,
    ) -> None:
        """`asker`: carries what handlers ask of other entities. `ready`: schedule it again."""
        self._store = store
        self._commits = commits
        self._gate = gate
        self._staging = staging
        self._accepting = accepting
        self._owed = owed
        self.paging: Paging
        """Set by the host: it needs this performer's scheduler."""
        self._settings = settings
        self._world = world
        self._app_name = app_name
        self._resources = resources
        self._asker = asker
        self._ready = ready
        self._leaving = leaving
        self.hot = HotEntities(world.random.random)
        self.held = False
        """No turn begins, also of entities that were being loaded."""

    # ---- turns that need not wait ----------------------------------------------------------------------------------

    def drain(self, resident: Resident) -> bool:
        began = self._world.monotonic()
        done = self._drain(resident, began + self._settings.turns_in_a_row_s)
        self._took(resident, self._world.monotonic() - began)
        return done

    def _took(self, resident: Resident, seconds: float) -> None:
        resident.shard.busy_s += seconds
        hot = self.hot
        if hot.skip:
            hot.skip -= 1
        else:
            hot.took(resident.key, seconds)

    def _drain(self, resident: Resident, until: float) -> bool:
        mailbox = resident.mailbox
        now = 0.0
        turns_left = self._settings.turns_in_a_row_max
        while True:
            if not mailbox:
                if self._must_page(resident):
                    return False
                break
            activation = resident.activation
            if resident.shard.phase is Phase.CLOSED:
                return self._closed(resident)
            if self.held:
                self._ready(resident)
                return True
            pending = mailbox[0]
            backlog = resident.backlog
            if backlog is not None and backlog.holds_up(pending):
                backlog.parked[pending.client].append(mailbox.popleft())
                continue
            if activation is None:
                activation = self._woken(resident)
            if activation is None or pending.handler.is_async or pending.suspect:
                return False
            if pending.call.command_id and self._must_look_up(resident, pending):
                return False
            if not turns_left or now > until:
                self._ready(resident)
                return True
            turns_left -= 1
            mailbox.popleft()
            now = self._world.monotonic()
            if self._wanted(resident, pending, now):
                call = pending.call
                if pending.handler.is_batched and mailbox and self._ran_batch(resident, activation, pending, now):
                    continue
                turn = self._turn(resident, pending, now)
                try:
                    result = activation.run(pending.handler, call.arguments, turn)
                except CorruptRecord as error:
                    result = self._beyond_undoing(resident, error)
                self._finish(resident, pending, result, turn)
        if resident.backlog is not None:
            self.paging.resumed(resident)
        self._leaving.idle(resident)
        return True

    def _woken(self, resident: Resident) -> Activation | None:
        """Made again, if it was at rest. None: it has to be loaded."""
        stored = self._leaving.wake(resident)
        if stored is None:
            return None
        try:
            resident.activation = self._made(resident, stored)
        except CorruptRecord:
            log.exception("what rested of %s/%s cannot be used: it is loaded", *resident.key, extra=of_entity(resident))
        return resident.activation

    def _made(self, resident: Resident, stored: StoredEntity) -> Activation:
        return Activation(resident.kind, resident.key[1], stored, self._settings, self._resources, self._app_name)

    def _closed(self, resident: Resident) -> bool:
        """The shard is gone: whoever took it away has answered the mailbox."""
        resident.clear()
        resident.scheduled = False
        self.paging.resumed(resident)
        return True

    def _must_page(self, resident: Resident) -> bool:
        backlog, shard = resident.backlog, resident.shard
        if backlog is None or not resident.must_page(self._settings.mailbox_commands_max):
            return False
        # while its shard is given back: only for what had to be let in behind it
        return shard.is_open() or (shard.phase is Phase.RELEASING and bool(backlog.behind))

    def _turn(self, resident: Resident, pending: Pending, now: float) -> Turn:
        sends_max = self._staging.room
        if (pending.owed or pending.call.sender) and self._accepting.is_full(resident):
            # What fills the outbox may be waiting for a place in this mailbox: one message more goes, so that another
            # can come. Else the two would wait for each other for ever.
            sends_max = self._staging.reserve
        timer = pending.timer
        if timer is None:
            return Turn(self._world.wall_ms(), pending.deadline - now, sends_max=sends_max)
        return Turn(self._world.wall_ms(), pending.deadline - now, due_ms=timer.due_ms, sends_max=sends_max)

    # ---- batches ---------------------------------------------------------------------------------------------------

    def _ran_batch(self, resident: Resident, activation: Activation, first: Pending, now: float) -> bool:
        """Run a command together with those behind it that may come along. False: it runs alone, they wait again."""
        if not _joins(first):
            return False
        batch, mailbox, argument_bytes = [first], resident.mailbox, len(first.call.arguments)
        while mailbox and len(batch) < self._settings.batched_max:
            pending = mailbox[0]
            argument_bytes += len(pending.call.arguments)
            held_up = resident.backlog is not None and resident.backlog.holds_up(pending)
            if pending.handler is not first.handler or held_up or not _joins(pending):
                break
            if argument_bytes > self._settings.batch_bytes_max:
                break
            mailbox.popleft()
            if self._wanted(resident, pending, now):
                batch.append(pending)
        if len(batch) == 1:
            return False
        turn = self._turn(resident, min(batch, key=lambda pending: pending.deadline), now)
        try:
            asked = [pending.call.mode == Mode.ASK for pending in batch]
            results = activation.run_batch(first.handler, [p.call.arguments for p in batch], asked, turn)
        except CorruptRecord as error:
            self._beyond_undoing(resident, error)
            log.warning("a batch of %s failed", first.handler.label, exc_info=error, extra=of_entity(resident))
            results = None
        if results is None:
            for pending in batch:
                pending.alone = True
            mailbox.extendleft(reversed(batch[1:] if resident.activation is not None else batch))
            return resident.activation is None
        self._finish_batch(resident, batch, results, turn.now_ms)
        return True

    def _finish_batch(self, resident: Resident, batch: list[Pending], results: list[TurnResult], now_ms: int) -> None:
        """Everything in one row of the log: a state that has seen a command without its reply would run it again."""
        effects = results[0] if results[0].has_effects else None
        if results[0].passivate:
            resident.leaving = True
        for pending, result in zip(batch, results, strict=True):
            payload = result.payload if pending.call.mode == Mode.ASK else b""
            if result is results[0]:
                self._answer(resident, pending, result.status, payload, now_ms, effects)
            else:
                self._answer(resident, pending, result.status, payload, now_ms, tied=effects is not None)

    # ---- turns that must wait --------------------------------------------------------------------------------------

    async def perform(self, resident: Resident) -> None:
        shard = resident.shard
        shard.turn_waits()
        try:
            while not self.drain(resident):
                if not resident.mailbox:
                    await self.paging.page_in(resident)
                elif resident.activation is None:
                    await self._activate(resident)
                else:
                    await self._slow_turn(resident, resident.activation)
                self._accepting.turn_ended(resident)
                if resident.kind.turns_max is not None:
                    self._ready(resident)  # others of its kind wait for its place
                    return
        finally:
            shard.turn_ended()

    async def _slow_turn(self, resident: Resident, activation: Activation) -> None:
        pending = resident.running = resident.mailbox.popleft()
        try:
            await self._run_slowly(resident, activation, pending)
        finally:
            resident.running = None

    async def _run_slowly(self, resident: Resident, activation: Activation, pending: Pending) -> None:
        call = pending.call
        if pending.suspect and not await self._owed.begin(resident, pending):
            return
        row = None
        if self._must_look_up(resident, pending):
            row = await until_done(
                self._world, lambda: self._store.read_named(call.shard, call.kind, call.id, call.command_id)
            )
        if resident.shard.phase is Phase.CLOSED:
            self._owed.left(resident.shard, pending)
            return
        if row is not None:
            self._repeat(resident, pending, Known(row.reply, 0))
            return
        now = self._world.monotonic()
        if not self._wanted(resident, pending, now):
            return
        turn = self._turn(resident, pending, now)
        if self._asker is not None:
            # who tells does not wait for what the command does
            chain = call.chain if call.mode == Mode.ASK else ()
            asks = HandlerAsks(self._asker, self._commits, self._world, resident, pending)
            turn = replace(turn, root=root_of(pending), chain=chain, caller=asks)
        try:
            if pending.handler.is_async:
                running = activation.run_async(pending.handler, call.arguments, turn)
                result = await Metered(running, partial(self._took, resident), self._world.monotonic)
            else:
                result = activation.run(pending.handler, call.arguments, turn)
        except CorruptRecord as error:
            result = self._beyond_undoing(resident, error)
        self._finish(resident, pending, result, turn)

    async def _activate(self, resident: Resident) -> None:
        """Bring the entity into memory: overlay first, then tables, so that neither is missed while one moves over."""
        kind, id = resident.key
        try:
            stored = await self._stored(resident) if resident.kind.durable else StoredEntity()
            activation = self._made(resident, stored)
            turn = Turn(self._world.wall_ms(), self._settings.command_timeout_s)
            await activation.on_activate(turn)
        except Exception as error:
            log.exception("entity %s/%s could not be activated", kind, id, extra=of_entity(resident))
            status = Status.UNAVAILABLE if isinstance(error, CorruptRecord) else Status.HANDLER_FAILED
            message = f"{kind}/{id} could not be activated: {type(error).__name__}: {error}"
            self._turn_away(resident, status, message)
            return
        resident.activation = activation

    def _turn_away(self, resident: Resident, status: Status, message: str) -> None:
        """The entity cannot run: those who wait hear of it, the rest is tried again."""
        while resident.mailbox and resident.shard.phase is not Phase.CLOSED:
            pending = resident.mailbox.popleft()
            backlog = resident.backlog
            if backlog is not None and backlog.holds_up(pending):
                backlog.parked[pending.client].append(pending)
            elif pending.call.mode == Mode.TELL and (resident.kind.durable or pending.call.sender):
                self._owed.unable(resident, pending, status, message)
            else:
                self._answer(resident, pending, status, message.encode())

    async def _stored(self, resident: Resident) -> StoredEntity:
        shard, key = resident.shard, resident.key
        await self._commits.settled(resident.ticket)  # the overlay holds committed records only
        deltas = shard.overlay.deltas(key)
        base = StoredEntity()
        if not any(delta.replaces for delta in deltas):
            base = await until_done(self._world, lambda: self._from_tables(shard, resident))
        for delta in deltas:
            base = delta.over(base)
        return base

    async def _from_tables(self, shard: OwnedShard, resident: Resident) -> StoredEntity:
        kind, id = resident.key
        row = await self._store.read_entity(shard.shard, kind, id)
        if row is None:
            return StoredEntity()
        if not resident.kind.event_sourced:
            return StoredEntity(row.seq, row.state)
        commits = await self._store.read_commits(shard.shard, kind, id, after_seq=row.state_seq)
        events = tuple(event for commit in commits for event in commit.events)
        # A checkpoint writes the row first and the history last: `row.seq` may be ahead of the events that stand there.
        # The version is that of what was read; the overlay (or, after a crash, the log's tail) has the rest.
        return StoredEntity(commits[-1].seq if commits else row.state_seq, row.state, events)

    # ---- before the handler ----------------------------------------------------------------------------------------

    def _wanted(self, resident: Resident, pending: Pending, now: float) -> bool:
        """False: it is dealt with, or given up by its client."""
        call = pending.call
        if pending.entry or pending.timer is not None:
            pending.deadline = now + self._settings.command_timeout_s
            if not self._owed.is_current(resident, pending):
                return False
        elif call.number < pending.window.floor:
            pending.given_up()
            return False
        if call.command_id and not pending.handler.is_query:
            known = resident.shard.named.get((call.kind, call.id, call.command_id))
            if known is not None:
                self._repeat(resident, pending, known)
                return False
        if now >= pending.deadline:
            self.expired(resident, pending)
            return False
        return True

    def expired(self, resident: Resident, pending: Pending) -> None:
        """Its deadline passed before its turn. Unless its client has given it up meanwhile, it hears so."""
        if pending.call.number < pending.window.floor:
            pending.given_up()
        else:
            self._answer(resident, pending, Status.DEADLINE_EXCEEDED, _EXPIRED)

    def _must_look_up(self, resident: Resident, pending: Pending) -> bool:
        """Only the tables can tell whether its command ID was done before."""
        call = pending.call
        return (
            bool(call.command_id)
            and not pending.handler.is_query
            and (call.kind, call.id, call.command_id) not in resident.shard.named
        )

    def _repeat(self, resident: Resident, pending: Pending, known: Known) -> None:
        """Done before under its command ID: the recorded reply, or a refusal when the work was another."""
        call, reply = pending.call, known.reply
        if reply.digest != digest_of(call):
            message = f"command ID {call.command_id!r} was used for other work on this entity: use a new one"
            if pending.entry:
                self._owed.refused(resident, pending, message)
            else:
                self._answer(resident, pending, Status.INVALID_COMMAND, message.encode())
            return
        if pending.entry:
            self._owed.repeated(resident, pending)
            return
        pending.window.remember(call.number, reply, known.ticket)
        self._gate.read(
            known.ticket, pending, Answer(call.shard, call.number, reply.status, reply.payload, call.sender)
        )

    # ---- after the handler -----------------------------------------------------------------------------------------

    def _beyond_undoing(self, resident: Resident, error: CorruptRecord) -> TurnResult:
        """A failed turn could not be undone in memory: the entity leaves it, and comes back from what is stored."""
        resident.activation = None
        return TurnResult(Status.HANDLER_FAILED, str(error).encode(), error=error)

    def _finish(self, resident: Resident, pending: Pending, result: TurnResult, turn: Turn) -> None:
        call = pending.call
        if result.error is not None:
            told = of_command(resident.shard, pending)
            log.warning("%s.%s on %s failed", call.kind, call.method, call.id, exc_info=result.error, extra=told)
        if result.passivate:
            resident.leaving = True
        if pending.handler.is_query:
            pending.window.read(call.number)
            answer = Answer(call.shard, call.number, result.status, result.payload)
            self._gate.read(resident.ticket, pending, answer)
            return
        if pending.entry or pending.timer is not None:
            self._owed.finished(resident, pending, result, turn.now_ms)
            return
        if result.status is Status.OVERLOADED:
            self._bounce(resident, pending, result.payload)
            return
        payload = result.payload
        if call.mode == Mode.TELL:
            if result.status is not Status.OK and (resident.kind.durable or call.sender):
                message = message_of(result.status, payload)
                self._owed.failed_at_once(resident, pending, result.status, message)
                return
            payload = b""
        effects = result if result.changed or result.messages or result.timers or result.timers_gone else None
        self._answer(resident, pending, result.status, payload, turn.now_ms, effects)

    def _bounce(self, resident: Resident, pending: Pending, message: bytes) -> None:
        """There is no room for what it sends: its caller sends it again, and after it what came behind it."""
        pending.send_back(Status.OVERLOADED, message)
        for other in [other for other in resident.waiting() if other.client == pending.client and not other.owed]:
            other.window.bounce(other.call.number)
            other.reply(OutOfOrder(other.call.shard, other.call.number, other.call.sender))
            resident.remove(other)

    def _answer(
        self,
        resident: Resident,
        pending: Pending,
        status: Status,
        payload: bytes,
        now_ms: int = 0,
        effects: TurnResult | None = None,
        *,
        tied: bool = False,
    ) -> None:
        """Answer a command, and remember the answer for a repeat. `tied`: its effects stand in the record before.

        With effects it stands in their record. Without, it stays in memory until the floor passes it, except for a
        repeat or a command under an ID: of those an earlier copy may still be under way, so their answer is recorded,
        lest that copy acts at the next owner after its caller was refused here.
        """
        call, window, shard = pending.call, pending.window, resident.shard
        if shard.phase is Phase.CLOSED:
            pending.given_up()
            return  # lost while it ran: nothing of it may be staged; the client asks the new owner
        answer = Answer(call.shard, call.number, status, payload, call.sender)
        if (
            effects is None
            and not tied
            and not (resident.kind.durable and (call.attempt > 1 or call.command_id or call.sender))
        ):
            window.remember(call.number, RecordedReply(status, payload, 0), resident.ticket)
            self._gate.read(resident.ticket, pending, answer)
            return
        digest = digest_of(call) if call.command_id else 0
        reply = RecordedReply(status, payload, digest)
        command_id = call.command_id if status is Status.OK else ""  # one that failed may be tried again under its ID
        record = Record(
            shard.shard,
            0,
            call.kind,
            call.id,
            0,
            now_ms or self._world.wall_ms(),
            None,
            (),
            False,
            pending.client,
            call.number,
            window.floor,
            reply,
            command_id,
            window.take_riders(self._staging.next_ticket),
        )
        if effects is not None:
            if effects.changed:
                assert resident.activation is not None
                record.seq = resident.activation.seq
                record.state, record.events, record.deleted = effects.state, effects.events, effects.deleted
            if effects.messages or effects.timers or effects.timers_gone:
                record.delivery = Delivery(
                    outbox=effects.messages, timers=effects.timers, timers_gone=effects.timers_gone
                )
        ticket = self._staging.stage(shard, record, tied=tied)
        window.record(call.number, reply, ticket)
        if command_id:
            shard.named[call.kind, call.id, command_id] = Known(reply, ticket)
        if effects is not None or tied:
            resident.ticket = ticket
            self._gate.effect(ticket, pending, answer)
        else:
            self._gate.read(ticket, pending, answer)


def _joins(pending: Pending) -> bool:
    """It may share a turn: it is a client's own, and its fate is told by an answer alone."""
    call = pending.call
    return not (pending.alone or pending.owed or pending.suspect or call.command_id or call.sender)
