"""When a timer is due, and when it is due again.

    set for a time --due--> its tick runs --succeeded--> over, or due again one interval later
                              |  ^
                        failed `--' still due: tried again

A repeating timer keeps to the grid of its first due time, `due + k * every`, however late its ticks run. Of the ticks
that were missed meanwhile (a host was away, a queue was long) *coalesce* runs one for all of them, *catch_up* each.
A tick never runs before its time, and the next one is always later than the one that ran, also when the clock has
stepped back meanwhile: no point of the grid gets two ticks.

Pure: nothing here reads a clock.
"""

from __future__ import annotations

import datetime as dt
from typing import Final, Literal

import msgspec

from .stored import StoredTimer

Missed = Literal["coalesce", "catch_up"]

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MS: Final = dt.timedelta(milliseconds=1)
_END_OF_TIME_MS: Final = (dt.datetime.max.replace(tzinfo=dt.UTC) - EPOCH) // _MS


def next_tick(timer: StoredTimer, now_ms: int) -> StoredTimer | None:
    """What stands of a timer when its tick has succeeded at `now_ms`: its next tick, None when it is over."""
    if not timer.every_ms:
        return None
    steps = 1
    if not timer.catch_up:
        steps = max(1, (now_ms - timer.due_ms) // timer.every_ms + 1)  # to the first point of the grid after now
    return msgspec.structs.replace(timer, due_ms=timer.due_ms + steps * timer.every_ms, attempts=0)


def due_ms_of(when: object, now_ms: int) -> int:
    """The first millisecond that is not before `when`: a delay from now, or an aware time.

    Raises `TypeError` for anything else, `ValueError` for a negative delay, a naive time, or one outside of 1970-9999.
    """
    if isinstance(when, dt.timedelta):
        if when < dt.timedelta():
            raise ValueError(f"a timer is set for later, not for {-when} ago")
        due_ms = now_ms + ceil_ms(when)
    elif isinstance(when, dt.datetime):
        if when.utcoffset() is None:
            raise ValueError(
                f"{when!r} is naive: nobody knows in which zone it is meant; give an aware time, e.g. with tzinfo=UTC"
            )
        due_ms = ceil_ms(when - EPOCH)
    else:
        raise TypeError(f"a timer is set for a timedelta from now or for an aware datetime, not for {when!r}")
    if not 0 <= due_ms <= _END_OF_TIME_MS:
        raise ValueError(f"a timer is set for a time from 1970 to 9999, and {when!r} lies outside")
    return due_ms


def every_ms_of(every: object, every_ms_min: int) -> int:
    """An interval in milliseconds. Raises `TypeError`, and `ValueError` for one under the minimum."""
    if not isinstance(every, dt.timedelta):
        raise TypeError(
            f"every is a timedelta, not {every!r}; give an argument of that name to the command by its position"
        )
    every_ms = ceil_ms(every)
    if every_ms < every_ms_min:
        raise ValueError(f"every is at least timer_every_ms_min ({every_ms_min} ms), not {every!r}")
    return every_ms


def ceil_ms(span: dt.timedelta) -> int:
    """In whole milliseconds, no less than it is."""
    whole, rest = divmod(span, _MS)
    return whole + bool(rest)
