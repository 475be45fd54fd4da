"""Who rests, and who leaves memory: those that asked to, those idle for long, the least recently used above the bound.

    at work --no command--> idle --rest_idle_s--> at rest (resting.py) ---.
                             |  `--cannot rest--> stays -----------------> gone
                             `--asked to leave, or above the bound------'

The bound is kept at every instant, not at the next look: who goes idle, or becomes durable, above it makes the least
recently used leave at once. Only who is at work, is not durable yet, or has an `on_passivate` to run, stays until then.
Looks go in steps, between which the loop does other things.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from ..actors.activation import Activation
from ..actors.settings import Settings
from ..actors.stored import StoredEntity
from ..actors.turn import Turn
from ..actors.world import World
from .commit import CommitPath
from .log_fields import of_entity
from .passivation import IdleList
from .pressure import Pressure, active_max
from .resident import NORMAL_LANE, Resident
from .resting import Resting
from .shard import OwnedShard, Phase

log = logging.getLogger("atoll.host")

LOOK_S = 1.0
STEP = 200
"""Entities that rest or leave before the loop goes on: less than a millisecond."""
HOOKS_MAX = 64
"""Entities whose `on_passivate` runs at the same time; the others wait for their turn to leave."""


class Leaving:
    def __init__(
        self, *, commits: CommitPath, settings: Settings, world: World, schedule: Callable[[Resident], None]
    ) -> None:
        """`schedule`: see to a resident that got a command while it was leaving."""
        self._commits = commits
        self._settings = settings
        self._world = world
        self._schedule = schedule
        self._idle = IdleList()
        """Those that may come to rest."""
        self._staying = IdleList()
        """Those that cannot."""
        self._resting = Resting(settings.passivate_idle_s, settings.active_entities_max)
        self._active_max = settings.active_entities_max
        self._hooked: Resident | None = None
        """Above the bound, the next to leave: it has an `on_passivate`."""
        self._full = False
        """Memory was seen to be: entities leave now, and not with the next look."""
        self._due = asyncio.Event()
        self._hooks = asyncio.Semaphore(HOOKS_MAX)
        self.pressure = Pressure.NONE
        """How full this process's memory is, as it was last seen."""

    def __len__(self) -> int:
        """Entities in memory that are not at work."""
        return len(self._idle.residents) + len(self._staying.residents) + self._resting.count

    @property
    def resting(self) -> int:
        return self._resting.count

    # ---- what the turns tell it ------------------------------------------------------------------------------------

    def idle(self, resident: Resident) -> None:
        """Its mailbox is empty."""
        resident.scheduled = False
        resident.lane = NORMAL_LANE
        if self._staying.residents:
            self._staying.forget(resident)
        now = self._world.monotonic()
        self._idle.used(resident, now)
        if resident.ticket <= self._commits.committed and len(self) > self._active_max:
            self._make_room(now, self._active_max)

    def committed(self) -> None:
        """More is durable: of who went idle before that, too."""
        if len(self) > self._active_max:
            self._make_room(self._world.monotonic(), self._active_max)

    def wake(self, resident: Resident) -> StoredEntity | None:
        """What it is made from again, if it rests here."""
        return self._resting.take(resident.shard, resident.key)

    def closed(self, shard: OwnedShard) -> None:
        """It is not ours any more: its entities leave, those with a hook in good order."""
        self._resting.close(shard)
        for resident in shard.residents.values():
            if not resident.scheduled:
                self._left_behind(resident)

    def _left_behind(self, resident: Resident) -> None:
        self._forget(resident)
        if resident.kind.has_on_passivate and resident.activation is not None:
            resident.leaving = True
            self._staying.used(resident, 0.0)

    def _forget(self, resident: Resident) -> None:
        self._idle.forget(resident)
        self._staying.forget(resident)

    # ---- the bound -------------------------------------------------------------------------------------------------

    def _make_room(self, now: float, bound: int) -> bool:
        """One step of letting the least recently used leave. True: there are more above the bound that can."""
        for _ in range(STEP):
            if len(self) <= bound:
                return False
            resident = self._staying.oldest(now, self._commits.committed)
            if self._resting.count and (resident is None or resident.used > self._resting.oldest_use()):
                self._resting.drop()
                continue
            resident = resident or self._idle.oldest(now, self._commits.committed)
            if resident is None:
                return False
            if resident.kind.has_on_passivate and resident.activation is not None:
                self._hooked = resident
                self._due.set()
                return False
            self._forget(resident)
            self._drop(resident)
        return True

    def under(self, pressure: Pressure) -> None:
        """The memory was looked at."""
        self.pressure = pressure
        if pressure is not Pressure.NONE:
            self._full = True
            self._due.set()

    # ---- looks -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        looked = self._world.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(looked + LOOK_S - self._world.monotonic()):
                    await self._due.wait()
            now = self._world.monotonic()
            if self._full or now >= looked + LOOK_S:
                self._full = False
                looked = now
                await self._look(now)
            await self._run_hooks(self._active_max)

    async def _look(self, now: float) -> None:
        idle_since = now - self._settings.passivate_idle_s
        for residents in (self._staying, self._idle):
            while leaving := residents.take(idle_since, now, self._commits.committed, STEP):
                for resident in leaving:
                    await self._passivate(resident)
                await asyncio.sleep(0)
        while resting := self._idle.take(now - self._settings.rest_idle_s, now, self._commits.committed, STEP):
            for resident in resting:
                self._rest(resident)
            await asyncio.sleep(0)
        while self._resting.oldest_use() <= idle_since:
            for _ in range(min(STEP, self._resting.count)):
                if self._resting.oldest_use() > idle_since:
                    break
                self._resting.drop()
            await asyncio.sleep(0)
        # Memory that fills makes some leave at each look; it is no bound for those that come in between.
        bound = active_max(self.pressure, len(self), self._active_max)
        while self._make_room(now, bound):  # noqa: ASYNC110 - it waits for nothing: the loop has its turn
            await asyncio.sleep(0)
        await self._run_hooks(bound)

    async def _run_hooks(self, bound: int) -> None:
        """Of those above the bound, whose `on_passivate` has to run before they leave."""
        while True:
            self._due.clear()
            self._hooked = None
            self._make_room(self._world.monotonic(), bound)
            if self._hooked is None:
                return
            await self._passivate(self._hooked)

    def _rest(self, resident: Resident) -> None:
        activation, shard = resident.activation, resident.shard
        if shard.phase is Phase.CLOSED:  # it was at work when that happened
            self._left_behind(resident)
            return
        if activation is None:
            self._drop(resident)
            return
        stored = None if resident.leaving else activation.at_rest()
        if stored is None:
            self._staying.used(resident, resident.used)
            return
        self._resting.put(shard, resident.key, stored, resident.used)
        self._drop(resident)

    async def _passivate(self, resident: Resident) -> None:
        if resident.scheduled or resident.backlog is not None or resident.ticket > self._commits.committed:
            return  # used while others were leaving
        self._forget(resident)
        if resident.activation is None or not resident.kind.has_on_passivate:
            self._drop(resident)
            return
        resident.scheduled = True  # no turn begins while the hook runs; commands wait in the mailbox
        await self._hooks.acquire()
        self._world.spawn(self._run_hook(resident, resident.activation), "atoll-on-passivate")

    async def _run_hook(self, resident: Resident, activation: Activation) -> None:
        try:
            await activation.on_passivate(Turn(self._world.wall_ms(), self._settings.command_timeout_s))
        except Exception as error:
            log.warning("on_passivate of %s/%s failed", *resident.key, exc_info=error, extra=of_entity(resident))
        finally:
            self._hooks.release()
        resident.scheduled = False
        self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        """Out of memory, unless a command came meanwhile: then it is activated anew."""
        shard = resident.shard
        resident.activation = None
        resident.leaving = False
        if resident.mailbox:
            self._schedule(resident)
            return
        shard.loaded.pop(resident, None)
        if shard.residents.get(resident.key) is resident:
            del shard.residents[resident.key]
