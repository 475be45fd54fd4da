"""What a host does as its memory fills, before the kernel ends it. Pure.

    share of its memory   entities in memory            what may wait for its turn
    below 0.80            as the settings say           as the settings say
    from 0.80 (TIGHT)     a quarter leaves each look    a quarter
    from 0.90 (CRITICAL)  a quarter leaves each look    a sixteenth: senders wait

Whoever looks has the allocator give back what is free (cluster/memory.py); else a host that was full once would stay
so. It never stops reading altogether: not all that was used once goes back to the system, and a host that waits for
that would never serve again. A level ends `EASED` below where it began.
"""

from __future__ import annotations

import enum


class Pressure(enum.IntEnum):
    NONE = 0
    TIGHT = 1
    CRITICAL = 2


BEGINS = {Pressure.TIGHT: 0.80, Pressure.CRITICAL: 0.90}
"""Shares of the memory. Ray ends workers when a node is at 0.95, the kernel at 1."""
EASED = 0.05
BUDGETS = {Pressure.NONE: 1.0, Pressure.TIGHT: 1 / 4, Pressure.CRITICAL: 1 / 16}
"""Of what may wait for its turn."""
LEAVE = 0.25
"""Of the entities in memory, at each look."""


def pressure(share: float, before: Pressure) -> Pressure:
    """`share`: of its memory that the process takes now. `before`: the level so far."""
    level = Pressure.NONE
    for each, begins in BEGINS.items():
        if share >= (begins - EASED if each <= before else begins):
            level = each
    return level


def active_max(level: Pressure, active: int, asked: int) -> int:
    """How many entities may stay in memory. `active`: are there; `asked`: the setting."""
    return asked if level is Pressure.NONE else min(asked, int(active * (1 - LEAVE)))
