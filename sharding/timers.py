"""Durable timers: which are due, on one host.

    scheduled in a record --> (tables, overlay) --nearly due--> loaded --due--> fired into its entity's mailbox
                                                                   ^                |
          cancel, a new schedule, a deletion: no longer current ---+                `--> its record takes the timer
                                                                                         away, or sets its next due

A timer stands in the store until its tick is committed, so a tick that died with its host is fired again. In memory is
only what is nearly due: each shard loads the timers up to its cursor, page by page, in the order in which they are due.
"Due" is the wall clock's business: a clock that steps makes ticks early or late, never lost or doubled.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..actors.errors import CorruptRecord
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.stored import StoredTimer
from ..actors.world import World
from ..persistence.overlay import EntityKey
from ..persistence.pending import BEFORE_ALL_TIMERS, PendingView, TimerPlace
from ..persistence.records import TimerRow
from ..persistence.spi import Store
from .retries import until_done

if TYPE_CHECKING:
    from .commit import CommitPath
    from .shard import OwnedShard

log = logging.getLogger("atoll.host")

LEAD_MS = 30_000
"""Timers that are due this soon are loaded."""
LOAD_MS = 60_000
"""How far a load reaches."""
PAGE = 1_000
"""Timers read at a time."""
LOOK_S = 1.0
"""The longest sleep: the wall clock may step."""
ROUND_S = 0.005
"""The shortest: ticks of about the same time are fired together."""
FIRED_PER_ROUND = 200
"""Between two looks at the sockets."""


class ShardTimers:
    """The loaded timers of one shard, staged ones included. Pure."""

    __slots__ = ("_by_entity", "_touched", "cursor", "load_after_ms", "loading_to", "wake")

    def __init__(self) -> None:
        self.cursor: TimerPlace = BEFORE_ALL_TIMERS
        """Everything up to here is loaded."""
        self.load_after_ms = 0
        """Nothing is loaded before: what comes next is damaged."""
        self.loading_to: int | None = None
        """A load is under way, up to this due time."""
        self.wake: Callable[[EntityKey, StoredTimer], None] = _nobody
        """Hears of each timer that is now to be fired when it is due."""
        self._by_entity: dict[EntityKey, dict[str, StoredTimer]] = {}
        self._touched: set[tuple[str, str, str]] = set()
        """Changed during the load under way: what it reads of them is old."""

    def __len__(self) -> int:
        return sum(map(len, self._by_entity.values()))

    def wake_all(self) -> None:
        """Fire all of them (again) when they are due."""
        for key, timers in self._by_entity.items():
            for timer in timers.values():
                self.wake(key, timer)

    def current(self, key: EntityKey, timer: StoredTimer) -> bool:
        """No cancel, no new schedule and no tick came in between."""
        return self._by_entity.get(key, {}).get(timer.name) is timer

    def staged(
        self, key: EntityKey, timers: Iterable[StoredTimer], gone: Iterable[str], position: int
    ) -> tuple[StoredTimer, ...]:
        """Take in what a record says; returns its timers as the record is to say them. A tick that failed is not
        woken: whoever counted the failure fires it again after a pause."""
        for name in gone:
            self._drop(key, name)
        placed = tuple(timer if timer.set_at else replace(timer, set_at=position) for timer in timers)
        for timer in placed:
            self._drop(key, timer.name)
            if (timer.due_ms, *key, timer.name) <= self.cursor or (
                self.loading_to is not None and timer.due_ms <= self.loading_to
            ):
                self._put(key, timer, wake=not timer.attempts)
        return placed

    def replaced(self, key: EntityKey, timer: StoredTimer, attempts: int) -> StoredTimer:
        """The same timer with another count, which nothing is written of. Whoever counts fires it again."""
        if not self.current(key, timer):
            return timer
        again = replace(timer, attempts=attempts)
        self._put(key, again, wake=False)
        return again

    def clear(self, key: EntityKey) -> None:
        """The entity was deleted."""
        for name in list(self._by_entity.get(key, ())):
            self._drop(key, name)
        if self.loading_to is not None:
            self._touched.add((*key, ""))

    def begin_load(self, through_ms: int) -> None:
        self.loading_to = through_ms
        self._touched.clear()

    def loaded(self, rows: Iterable[TimerRow], cursor: TimerPlace) -> None:
        """The load is over: `rows` are all up to `cursor`, as they stood when it began."""
        self.loading_to = None
        self.cursor = max(self.cursor, cursor)
        for row in rows:
            key = (row.kind, row.id)
            if (*key, row.timer.name) not in self._touched and (*key, "") not in self._touched:
                self._put(key, row.timer, wake=True)

    def _put(self, key: EntityKey, timer: StoredTimer, *, wake: bool) -> None:
        self._by_entity.setdefault(key, {})[timer.name] = timer
        if wake:
            self.wake(key, timer)

    def _drop(self, key: EntityKey, name: str) -> None:
        if self.loading_to is not None:
            self._touched.add((*key, name))
        timers = self._by_entity.get(key)
        if timers is not None and timers.pop(name, None) is not None and not timers:
            del self._by_entity[key]


def _nobody(key: EntityKey, timer: StoredTimer) -> None:
    pass


class Timers:
    """Fires the due timers of all shards of a host, in step with what it can run."""

    def __init__(
        self,
        *,
        store: Store,
        shards: Mapping[int, OwnedShard],
        commits: CommitPath,
        settings: Settings,
        world: World,
        fire: Callable[[OwnedShard, EntityKey, StoredTimer], bool],
    ) -> None:
        """`fire`: put a tick into its entity's mailbox; False when there is no room."""
        self._store = store
        self._shards = shards
        self._commits = commits
        self._settings = settings
        self._world = world
        self._fire = fire
        self._heap: list[tuple[int, int, OwnedShard, EntityKey, StoredTimer]] = []
        self._count = 0
        """Breaks ties in the heap: in the order of arrival."""
        self._live = 0
        """Of the newest compaction: the heap may hold twice as many before the next."""
        self._changed = asyncio.Event()
        self._in_flight: dict[OwnedShard, int] = {}
        """Per shard: ticks that were fired and are not over."""

    # ---- what its shards and ticks tell it -------------------------------------------------------------------------

    def opened(self, shard: OwnedShard) -> None:
        shard.timers.wake = partial(self._arm, shard)
        self._changed.set()

    def emptied(self, shard: OwnedShard) -> None:
        """Its mailboxes are about to be forgotten, with the ticks that were fired and have not begun."""
        for resident in shard.residents.values():
            for pending in resident.waiting():
                if pending.timer is not None:
                    self.over(shard)

    def reopened(self, shard: OwnedShard) -> None:
        """A release was given up."""
        shard.timers.wake_all()

    def closed(self, shard: OwnedShard) -> None:
        self._in_flight.pop(shard, None)

    def over(self, shard: OwnedShard) -> None:
        """A tick that was fired has run, or was found to be no longer current."""
        left = self._in_flight.get(shard, 0)
        if left > 1:
            self._in_flight[shard] = left - 1
        else:
            self._in_flight.pop(shard, None)
        if self._heap and self._heap[0][0] <= self._world.wall_ms():
            self._changed.set()

    def again(self, shard: OwnedShard, key: EntityKey, timer: StoredTimer, delay_s: float) -> None:
        """Fire the same tick once more, after a pause."""
        self._arm(shard, key, timer, self._world.wall_ms() + int(delay_s * 1000))

    def _arm(self, shard: OwnedShard, key: EntityKey, timer: StoredTimer, at_ms: int | None = None) -> None:
        if at_ms is None:
            at_ms = timer.due_ms
        self._count += 1
        if not self._heap or at_ms < self._heap[0][0]:
            self._changed.set()
        heapq.heappush(self._heap, (at_ms, self._count, shard, key, timer))
        if len(self._heap) > 2 * self._live + PAGE:
            self._heap = [entry for entry in self._heap if _armed(entry)]
            heapq.heapify(self._heap)
            self._live = len(self._heap)

    # ---- its own work ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            self._changed.clear()
            for shard in list(self._shards.values()):
                await self._load(shard)
            self._fire_due()
            await self._rest()

    async def _rest(self) -> None:
        wait_s = LOOK_S
        if self._heap and sum(self._in_flight.values()) < self._settings.timers_in_flight_max:
            wait_s = min(LOOK_S, (self._heap[0][0] - self._world.wall_ms()) / 1000)
        await asyncio.sleep(ROUND_S)
        if wait_s <= ROUND_S:
            return
        try:
            async with asyncio.timeout(wait_s - ROUND_S):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _load(self, shard: OwnedShard) -> None:
        """Load the next page, if what is loaded of this shard ends soon."""
        now_ms = self._world.wall_ms()
        timers = shard.timers
        if len(self._heap) < self._settings.timers_loaded_max:
            lead_ms = LEAD_MS
        elif self._heap[0][0] > now_ms:
            lead_ms = 0  # none of those in memory is due: there may be one elsewhere
        else:
            return
        if not shard.is_open() or timers.cursor[0] > now_ms + lead_ms or timers.load_after_ms > now_ms:
            return
        through_ms = now_ms + LOAD_MS
        timers.begin_load(through_ms)
        await self._commits.settled(shard.ticket)  # the overlay holds committed records only
        view = PendingView(shard.overlay)
        after = timers.cursor
        try:
            rows = await until_done(self._world, lambda: self._store.read_timers(shard.shard, after, through_ms, PAGE))
        except CorruptRecord as error:
            told = about(shard=shard.shard, incarnation=shard.incarnation)
            log.critical("timers of shard %d cannot be read and do not fire: %s", shard.shard, error, extra=told)
            timers.loaded((), after)
            timers.load_after_ms = now_ms + LOAD_MS
            return
        page, more = view.timers(rows, after, through_ms, PAGE)
        timers.loaded(page, more or (through_ms + 1, "", "", ""))
        if more is not None:
            self._changed.set()

    def _fire_due(self) -> None:
        now_ms = self._world.wall_ms()
        room = self._settings.timers_in_flight_max - sum(self._in_flight.values())
        for _ in range(min(room, FIRED_PER_ROUND)):
            if not self._heap or self._heap[0][0] > now_ms:
                return
            _, _, shard, key, timer = heapq.heappop(self._heap)
            if not shard.is_open() or not shard.timers.current(key, timer):
                continue  # cancelled, or set anew: whoever did that armed what counts now
            self._in_flight[shard] = self._in_flight.get(shard, 0) + 1
            if not self._fire(shard, key, timer):
                self.over(shard)
                self.again(shard, key, timer, self._settings.tell_retry_first_s)


def _armed(entry: tuple[int, int, OwnedShard, EntityKey, StoredTimer]) -> bool:
    _, _, shard, key, timer = entry
    return shard.is_open() and shard.timers.current(key, timer)
