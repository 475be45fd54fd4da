"""Which entities leave memory: those that asked to, those idle for long, the least recently used above the bound.

Pure bookkeeping, kept in order of last use, so that a look costs only what it finds.
"""

from __future__ import annotations

from collections import OrderedDict

from .resident import Resident


class IdleList:
    def __init__(self, idle_s: float, active_max: int) -> None:
        self._idle_s = idle_s
        self.active_max = active_max
        self._residents: OrderedDict[Resident, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._residents)

    def used(self, resident: Resident, now: float) -> None:
        """Its mailbox has just become empty."""
        resident.used = float("-inf") if resident.leaving else now
        self._residents[resident] = None
        self._residents.move_to_end(resident, last=not resident.leaving)

    def forget(self, resident: Resident) -> None:
        self._residents.pop(resident, None)

    def due(self, now: float, committed: int, at_most: int) -> list[Resident]:
        """Those that should leave now: not scheduled, everything they show committed. At most `at_most`."""
        due: list[Resident] = []
        excess = len(self._residents) - self.active_max
        for resident in self._residents:
            if len(due) >= at_most or (now - resident.used < self._idle_s and excess <= len(due)):
                break
            if not resident.scheduled and resident.ticket <= committed and resident.backlog is None:
                due.append(resident)
        return due
