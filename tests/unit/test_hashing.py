"""The shard of an ID: pinned, because every stored entity is found by it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from atoll.sharding.hashing import shard_of

GOLDEN = {
    "a": (31, 1),
    "alice": (176, 0),
    "bob": (229, 1),
    "é": (179, 1),
    "x" * 255: (157, 1),
    "\U0001f40b": (68, 0),
    "": (194, 0),
}


@pytest.mark.parametrize("id", GOLDEN)
def test_golden_values(id: str) -> None:
    """S01: computed once and written down; xxh3_64 over the UTF-8 bytes, modulo the shard count."""
    assert (shard_of(id, 256), shard_of(id, 2)) == GOLDEN[id]
    assert shard_of(id, 1) == 0


def test_another_process_says_the_same() -> None:
    """S01: neither hash randomization nor anything else of a process plays a part."""
    script = "from atoll.sharding.hashing import shard_of; print([shard_of(f'e{n}', 256) for n in range(200)])"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert found.stdout.strip() == str([shard_of(f"e{n}", 256) for n in range(200)])


def test_ids_spread_evenly() -> None:
    """S01: 100,000 IDs of a plain pattern over 256 shards: none has half or double its share."""
    counts = [0] * 256
    for number in range(100_000):
        counts[shard_of(f"customer-{number}", 256)] += 1
    assert min(counts) > 100_000 / 256 / 1.5
    assert max(counts) < 100_000 / 256 * 1.5
