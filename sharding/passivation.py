"""Residents without commands, in order of their last use. Pure.

Kept in that order, so that a look costs only what it finds.
"""

from __future__ import annotations

from collections import OrderedDict

from .resident import Resident


class IdleList:
    def __init__(self) -> None:
        self.residents: OrderedDict[Resident, None] = OrderedDict()

    def used(self, resident: Resident, now: float) -> None:
        """Its mailbox has just become empty."""
        resident.used = float("-inf") if resident.leaving else now
        self.residents[resident] = None
        self.residents.move_to_end(resident, last=not resident.leaving)

    def forget(self, resident: Resident) -> None:
        self.residents.pop(resident, None)

    def oldest(self, now: float, committed: int) -> Resident | None:
        """The one that was used least recently. None: there is none, or what it shows is not committed.

        Those at work that stand before it are taken off the list: they come back when they are idle again. Those with
        work that waits elsewhere count as used now.
        """
        residents = self.residents
        while residents:
            resident = next(iter(residents))
            if resident.scheduled:
                del residents[resident]
            elif resident.backlog is not None:
                if resident.used >= now:
                    return None  # only such ones are left
                resident.used = now
                residents.move_to_end(resident)
            else:
                return resident if resident.ticket <= committed else None
        return None

    def take(self, before: float, now: float, committed: int, at_most: int) -> list[Resident]:
        """Those that were last used by `before`, oldest first: they are off the list until they are used again."""
        taken: list[Resident] = []
        while len(taken) < at_most:
            resident = self.oldest(now, committed)
            if resident is None or resident.used > before:
                break
            del self.residents[resident]
            taken.append(resident)
        return taken
