"""Several databases for one app: which of its shards lie in which. Pure.

    shard    0   1   2   3   4   5   6 ...          shard s lies in stripe s % count
    stripe   0   1   2   0   1   2   0 ...          of three databases

A shard has one number, the app's, in every stripe: streams of messages are named by it. Order and number of the
databases are fixed when they are made. Each one knows its place, and the family that all of them belong to, so that
none can be left out, doubled, moved to another place or mixed with another app's.
"""

from __future__ import annotations

import msgspec

from ..actors.errors import IncompatibleStore


def stripe_of(shard: int, count: int) -> int:
    """The index of the stripe that holds a shard, of so many databases."""
    return shard % count


class Stripe(msgspec.Struct, frozen=True):
    """The place of one database among those of its app. One that is alone is stripe 0 of 1."""

    index: int = 0
    count: int = 1
    family: str = ""
    """The same in all databases that were made together. Empty: not known (whoever opens takes what is there)."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"stripe {self.index} of {self.count} cannot be: they count from 0")

    def __contains__(self, shard: int) -> bool:
        return stripe_of(shard, self.count) == self.index

    def shards(self, shards: int) -> range:
        """Those of an app's `shards` that lie here, in order. Raises `ValueError` when a database would have none."""
        if not 1 <= self.count <= shards:
            raise ValueError(f"{shards} shards cannot lie in {self.count} databases: each holds at least one")
        return range(self.index, shards, self.count)

    @property
    def named(self) -> str:
        """For people, who count from 1."""
        return f"database {self.index + 1} of {self.count}"


ONLY = Stripe()


def check_stripe(found: Stripe, asked: Stripe, place: str) -> None:
    """Raise `IncompatibleStore` unless the database at `place`, made as `found`, is what is asked for."""
    if found.count != asked.count:
        others = "it alone" if found.count == 1 else f"all {found.count}, in the order in which they were made"
        raise IncompatibleStore(
            f"{place} was made as {found.named}, and {asked.count} "
            f"{'is' if asked.count == 1 else 'are'} named; the number is fixed at creation: name {others}, or new ones"
        )
    if found.index != asked.index:
        raise IncompatibleStore(
            f"{place} was made as {found.named}, and is named as number {asked.index + 1}: "
            "name all of them in the order in which they were made"
        )
    if asked.family and found.family != asked.family:
        raise IncompatibleStore(
            f"{place} was made as {found.named}, but together with others than those that are named with it: "
            "name the databases that belong together"
        )
