"""Which shard an entity's ID belongs to: the same in every process, on every machine, for ever.

The hash is xxh3_64 over the ID's UTF-8 bytes alone, so that kinds with the same ID stand in the same shard. Golden
values pin it (tests/unit/test_hashing.py): a change would lose sight of every stored entity.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest


def shard_of(id: str, shards: int) -> int:
    """Return the shard, 0 <= shard < shards, of the entity ID `id`."""
    return xxh3_64_intdigest(id.encode()) % shards
