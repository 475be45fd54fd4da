"""Running what is owed: accepted commands, messages and timers' ticks, whose end is a record and not an answer.

    ran                          "done", with its effects, in one record
    no room for what it sends    once more after a pause
    failed                       counted, once more after a pause; what came after it from the same sender waits too
    failed too often, or refused, or no longer fits the app       a dead letter

The pauses are exponential with full jitter. A run that may have killed the host before (the entry came from a former
owner) is counted before it begins, and that is committed: a command that kills its process must not take one host
after another (rule 28).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from ..actors.calls import Mode, Status
from ..actors.codec import message_of
from ..actors.kind import EntityKind, Handler
from ..actors.settings import Settings
from ..actors.stored import StoredTimer
from ..actors.timers import next_tick
from ..actors.turn import TurnResult
from ..actors.world import World
from ..persistence.overlay import EntityKey
from ..persistence.records import DeadLetter, Delivery, MailboxRow, Record, RecordedReply
from .accepting import NO_HANDLER, NO_WINDOW, NOBODY, Accepting, Holdings, owed
from .commit import CommitPath
from .log_fields import of_command
from .messages import Call
from .resident import Pending, Resident
from .retries import pause_s
from .shard import OwnedShard, Phase
from .staging import Staging, digest_of
from .timers import Timers
from .window import Known

log = logging.getLogger("atoll.host")

ERROR_CHARS_MAX = 1_000
"""Of a failure's message, kept with the dead letter."""
GROUP = 64
"""Recovered entries whose first attempt is committed together: one commit for each would make a long backlog slow. Who
stands behind a killer gets one attempt too many by it, once."""


class Owed:
    def __init__(
        self,
        *,
        kinds: Mapping[str, EntityKind],
        staging: Staging,
        commits: CommitPath,
        accepting: Accepting,
        holdings: Holdings,
        settings: Settings,
        world: World,
        schedule: Callable[[Resident], None],
    ) -> None:
        self._kinds = kinds
        self._staging = staging
        self._commits = commits
        self._accepting = accepting
        self._holdings = holdings
        self._settings = settings
        self._world = world
        self._schedule = schedule
        self._loop = asyncio.get_running_loop()
        self.timers: Timers
        """Set by the host: the two know each other."""

    # ---- before a run ----------------------------------------------------------------------------------------------

    def is_current(self, resident: Resident, pending: Pending) -> bool:
        """False: a timer's tick that was overtaken by a cancel, a new schedule or a deletion."""
        timer = pending.timer
        if timer is None or resident.shard.timers.current(resident.key, timer):
            return True
        self.timers.over(resident.shard)
        return False

    async def begin(self, resident: Resident, pending: Pending) -> bool:
        """Commit the attempt that a suspect is about to make. False: it does not run now; it may have had too many."""
        shard = resident.shard
        if not pending.owed:
            # It was sent before, and may have ended a host, or found no room in the very outbox that it comes from:
            # from now on the store knows of it.
            self._accepting.accept(resident)
            if not pending.owed:
                return True
        if not self.is_current(resident, pending):
            return False
        if pending.attempts >= self._settings.tell_attempts_max:
            if self.may_bury(shard):
                self._bury(resident, pending, "killed", "its host died too often while it ran")
            else:
                self._later(resident, pending, longest=True)
            return False
        if pending.timer is not None:
            pending.attempts += 1
            self._count(resident, pending)
            await self._commits.settled(resident.ticket)
            pending.counted = True
            return True
        group = [pending]
        if not pending.attempts:
            for other in resident.mailbox:
                if len(group) >= GROUP or not other.suspect or other.attempts or not other.entry:
                    break
                group.append(other)
        for each in group:
            each.attempts += 1
            each.counted = True
        attempts = tuple((each.entry, each.attempts) for each in group)
        await self._commits.settled(self._stage(resident, self._record(resident, Delivery(attempts=attempts))))
        for each in group[1:]:
            each.suspect = False
        return True

    # ---- after a run -----------------------------------------------------------------------------------------------

    def finished(self, resident: Resident, pending: Pending, result: TurnResult, now_ms: int) -> None:
        """The run of something owed is over."""
        if resident.shard.phase is Phase.CLOSED:
            self.left(resident.shard, pending)
            return  # its new owner runs it
        if result.status is Status.OK:
            self._done(resident, pending, result, now_ms)
        else:
            self._not_done(resident, pending, result.status, message_of(result.status, result.payload))

    def repeated(self, resident: Resident, pending: Pending) -> None:
        """It was done before, under its command ID."""
        self._end(resident, pending, self._record(resident, Delivery(done=pending.entry)))

    def refused(self, resident: Resident, pending: Pending, message: str) -> None:
        """It cannot run."""
        self._not_done(resident, pending, Status.INVALID_COMMAND, message)

    def failed_at_once(self, resident: Resident, pending: Pending, status: Status, message: str) -> None:
        """A tell that is not accepted yet did not succeed. Its sender is answered: from now on it is owed; but where
        nothing is stored (a message only) it is not tried again, and its stream must not wait for it either."""
        shard = resident.shard
        if shard.phase is Phase.CLOSED:
            pending.given_up()
            return
        if not resident.kind.durable:
            if self.may_bury(shard):
                self.bury_arrived(shard, pending, "failed" if status in _FAILED else _reason(status), message)
            else:
                pending.send_back(Status.OVERLOADED, message.encode())
        elif status in _FAILED or not self.may_bury(shard):
            self._accepting.stage(resident, pending, attempts=1)
            pending.counted = True
            self._not_done(resident, pending, status, message)
        else:
            self.bury_arrived(shard, pending, _reason(status), message)

    def unable(self, resident: Resident, pending: Pending, status: Status, message: str) -> None:
        """Its entity cannot be brought into memory."""
        if pending.owed:
            self._not_done(resident, pending, status, message)
        else:
            self.failed_at_once(resident, pending, status, message)

    def _done(self, resident: Resident, pending: Pending, result: TurnResult, now_ms: int) -> None:
        delivery = Delivery(done=pending.entry, outbox=result.messages)
        delivery.timers, delivery.timers_gone = result.timers, result.timers_gone
        if pending.timer is not None and not result.deleted:  # a deletion took the timer too
            self._tick_over(pending.timer, delivery, now_ms)
        record = self._record(resident, delivery, now_ms)
        if result.changed:
            assert resident.activation is not None
            record.seq = resident.activation.seq
            record.state, record.events, record.deleted = result.state, result.events, result.deleted
        command_id = pending.call.command_id
        if command_id:
            record.command_id = command_id
            record.reply = RecordedReply(Status.OK, b"", digest_of(pending.call))
            shard = resident.shard
            shard.named[pending.call.kind, pending.call.id, command_id] = Known(record.reply, self._staging.next_ticket)
        self._end(resident, pending, record)

    def _not_done(self, resident: Resident, pending: Pending, status: Status, message: str) -> None:
        shard, settings = resident.shard, self._settings
        if status is Status.OVERLOADED:
            if pending.counted:
                self._take_back(resident, pending)
            self._later(resident, pending)
            return
        if status not in _FAILED:
            if status is Status.REJECTED and not pending.counted:
                pending.attempts += 1
            if self.may_bury(shard):
                self._bury(resident, pending, _reason(status), message)
            else:
                self._later(resident, pending, longest=True)
            return
        if not pending.counted:
            pending.attempts += 1
            self._count(resident, pending)
        pending.counted = False
        if pending.attempts < settings.tell_attempts_max:
            self._later(resident, pending)
        elif self.may_bury(shard):
            self._bury(resident, pending, "failed", message)
        else:
            self._later(resident, pending, longest=True)

    def _take_back(self, resident: Resident, pending: Pending) -> None:
        """An attempt that was committed before the run was none: it found no room for what it sends. In memory only:
        the next one commits the same number again."""
        pending.counted = False
        pending.attempts -= 1
        if pending.timer is not None:
            pending.timer = resident.shard.timers.replaced(resident.key, pending.timer, pending.attempts)

    def _count(self, resident: Resident, pending: Pending) -> None:
        """Stage how often it failed."""
        if pending.timer is None:
            self._stage(resident, self._record(resident, Delivery(attempts=((pending.entry, pending.attempts),))))
            return
        if not resident.shard.timers.current(resident.key, pending.timer):
            return
        counted = replace(pending.timer, attempts=pending.attempts)
        record = self._record(resident, Delivery(timers=(counted,)))
        self._stage(resident, record)
        assert record.delivery is not None
        (pending.timer,) = record.delivery.timers

    # ---- pauses ----------------------------------------------------------------------------------------------------

    def _later(self, resident: Resident, pending: Pending, *, longest: bool = False) -> None:
        """Try it again after a pause; what its sender sent after it waits meanwhile, the others do not."""
        settings = self._settings
        attempt = 64 if longest else pending.attempts
        delay_s = pause_s(self._world, settings.tell_retry_first_s, settings.tell_retry_max_s, attempt)
        if pending.timer is not None:
            self.timers.over(resident.shard)
            self.timers.again(resident.shard, resident.key, pending.timer, delay_s)
            return
        parked = resident.with_backlog().parked
        parked[pending.client] = deque((pending,))
        self._loop.call_later(delay_s, self._unpark, resident, pending)

    def _unpark(self, resident: Resident, pending: Pending) -> None:
        backlog = resident.backlog
        queue = backlog.parked.get(pending.client) if backlog is not None else None
        if backlog is None or queue is None or queue[0] is not pending:
            return  # given back meanwhile, or lost
        if not resident.shard.is_open():  # a release that is under way may be given up
            self._loop.call_later(self._settings.tell_retry_max_s, self._unpark, resident, pending)
            return
        del backlog.parked[pending.client]
        resident.mailbox.extendleft(reversed(queue))
        if backlog.empty:
            resident.backlog = None
        self._schedule(resident)

    # ---- ends ------------------------------------------------------------------------------------------------------

    def _end(self, resident: Resident, pending: Pending, record: Record) -> None:
        self._stage(resident, record)
        self.left(resident.shard, pending)

    def left(self, shard: OwnedShard, pending: Pending) -> None:
        """Something owed is no longer in memory: it ran, was buried, or its shard went."""
        if pending.timer is not None:
            self.timers.over(shard)
        elif pending.entry:
            self._holdings.left(pending)
        else:
            pending.given_up()

    def _tick_over(self, timer: StoredTimer, delivery: Delivery, now_ms: int) -> None:
        """What becomes of a timer whose tick is over; what its own handler said about that name counts more."""
        if timer.name in delivery.timers_gone or any(timer.name == other.name for other in delivery.timers):
            return
        following = next_tick(timer, now_ms)
        if following is None:
            delivery.timers_gone = (*delivery.timers_gone, timer.name)
        else:
            delivery.timers = (*delivery.timers, following)

    # ---- dead letters ----------------------------------------------------------------------------------------------

    def bury_arrived(self, shard: OwnedShard, pending: Pending, reason: str, message: str) -> None:
        """A tell or message that was never accepted: its sender is answered, and the dead letter is what is left."""
        letter = self._letter(shard, pending, int(reason != "invalid"), reason, message)
        self._accepting.answered(shard, pending, Delivery(dead=letter))

    def bury_row(self, resident: Resident, row: MailboxRow, message: str) -> None:
        """A stored entry that this app has no handler for."""
        shard = resident.shard
        letter = self._letter(shard, owed(shard, row, NO_HANDLER), row.attempts, "invalid", message)
        self._stage(resident, self._record(resident, Delivery(done=row.entry, dead=letter)))

    def _bury(self, resident: Resident, pending: Pending, reason: str, message: str) -> None:
        letter = self._letter(resident.shard, pending, pending.attempts, reason, message)
        delivery = Delivery(done=pending.entry, dead=letter)
        if pending.timer is not None:
            self._tick_over(pending.timer, delivery, self._world.wall_ms())
        self._end(resident, pending, self._record(resident, delivery))

    def _letter(self, shard: OwnedShard, pending: Pending, attempts: int, reason: str, message: str) -> DeadLetter:
        call = pending.call
        told = of_command(shard, pending)
        log.error("%s.%s on %s is a dead letter (%s): %s", call.kind, call.method, call.id, reason, message, extra=told)
        return DeadLetter(
            call.method,
            call.arguments,
            pending.client,
            call.number,
            call.command_id,
            attempts,
            reason,
            message[:ERROR_CHARS_MAX],
            self._world.wall_ms(),
            pending.timer.name if pending.timer is not None else "",
        )

    def may_bury(self, shard: OwnedShard) -> bool:
        """There is room for one more dead letter."""
        return shard.dead_letters < self._settings.dead_letters_max

    # ---- timers ----------------------------------------------------------------------------------------------------

    def fire(self, shard: OwnedShard, key: EntityKey, timer: StoredTimer) -> bool:
        """Put a tick into its entity's mailbox. False: there is no room now."""
        kind = self._kinds.get(key[0])
        handler = kind.handlers.get(timer.method) if kind is not None else None
        if kind is None or handler is None or handler.is_query:
            return self._bury_tick(shard, key, timer)
        resident = shard.resident(kind, key)
        if resident.queued() >= self._settings.mailbox_commands_max:
            return False
        resident.put(_tick(shard, key, timer, handler))
        self._schedule(resident)
        return True

    def _bury_tick(self, shard: OwnedShard, key: EntityKey, timer: StoredTimer) -> bool:
        """A tick that this app has no handler for."""
        if not self.may_bury(shard):
            return False
        now_ms = self._world.wall_ms()
        message = f"this app has no command {key[0]}.{timer.method}"
        tick = _tick(shard, key, timer, NO_HANDLER)
        delivery = Delivery(dead=self._letter(shard, tick, timer.attempts, "invalid", message))
        self._tick_over(timer, delivery, now_ms)
        self._staging.stage(shard, Record(shard.shard, 0, *key, time_ms=now_ms, delivery=delivery))
        self.timers.over(shard)
        return True

    # ---- records ---------------------------------------------------------------------------------------------------

    def _record(self, resident: Resident, delivery: Delivery, now_ms: int = 0) -> Record:
        kind, id = resident.key
        return Record(resident.shard.shard, 0, kind, id, time_ms=now_ms or self._world.wall_ms(), delivery=delivery)

    def _stage(self, resident: Resident, record: Record) -> int:
        resident.ticket = self._staging.stage(resident.shard, record)
        return resident.ticket


_FAILED = (Status.HANDLER_FAILED, Status.UNAVAILABLE)
"""What may go well another time."""


def _tick(shard: OwnedShard, key: EntityKey, timer: StoredTimer, handler: Handler) -> Pending:
    """A timer's tick as it stands in a mailbox."""
    call = Call(shard.shard, 0, 0, 0, 1, Mode.TELL, *key, timer.method, timer.arguments, 0)
    suspect = timer.due_ms <= shard.opened_ms
    return Pending(call, handler, 0, NOBODY, NO_WINDOW, math.inf, timer=timer, attempts=timer.attempts, suspect=suspect)


def _reason(status: Status) -> str:
    return "rejected" if status is Status.REJECTED else "invalid"
