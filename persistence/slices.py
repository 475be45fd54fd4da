"""Long lists of sessions in slices: what each transaction takes, so that a renewal never waits behind thousands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

SESSIONS_AT_ONCE = 500
"""Sessions touched in one transaction."""

Item = TypeVar("Item")


def in_slices(items: Iterable[Item], size: int = SESSIONS_AT_ONCE) -> Iterator[list[Item]]:
    """The items in lists of at most `size`."""
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
