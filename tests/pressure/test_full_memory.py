"""A host whose control group has less memory than its entities take: the kernel would end it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ledger import List
from memory_group import MemoryGroup, memory_group
from plain_cluster import PlainCluster, plain_cluster
from pressure import MIB, Heard, Memory

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
LIMIT_MIB = 256
"""A host takes 40 at its beginning."""
STATE = "x" * (128 << 10)
CALLERS = 16
PACE_S = 0.04
"""Of a caller: all bring 50 MiB a second at most. There is as much between the first sign of a full memory and its end."""
SETTINGS: dict[str, Any] = {
    "checkpoint_bytes": 8 * MIB,
    "uncheckpointed_bytes_max": 32 * MIB,
    "command_timeout_s": 60.0,
}
"""Less that is not in the tables yet than there is memory."""
SAMPLE = 50


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group(LIMIT_MIB * MIB) as found:
        if found is None:
            pytest.skip("this machine lets us make no control group with a limit of memory")
        yield found


async def fill(cluster: PlainCluster, count: int, heard: Heard) -> None:
    """So many entities with a large state, for as long as the host lives."""
    (host,) = cluster.hosts
    numbers = iter(range(count))
    async with cluster.connect() as client:

        async def caller() -> None:
            for number in numbers:
                if not host.alive:
                    return
                await heard.of(client.entity(List, f"e{number}").append(STATE))
                await asyncio.sleep(PACE_S)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def run(folder: Path, group: MemoryGroup, mib: int, settings: dict[str, Any]) -> bool:
    """Whether the host lives on."""
    count = mib * MIB // len(STATE)
    heard = Heard()
    async with plain_cluster(
        "ledger:app", "ledger", folder, app_dir=HELPERS, hosts=0, settings=SETTINGS | settings
    ) as cluster:
        host = await cluster.start_host(within=group.within)
        async with Memory.of(host.process.pid) as memory:
            await fill(cluster, count, heard)
        print(heard, memory.chart(), sep="\n")  # noqa: T201
        if not host.alive:
            return False
        assert heard.answers == count, "somebody was turned away"
        async with cluster.connect() as client:
            for number in range(0, count, SAMPLE):
                assert await client.entity(List, f"e{number}").read() == [STATE]
        return host.alive


async def test_a_host_whose_entities_are_more_than_its_memory(group: MemoryGroup, tmp_path: Path) -> None:
    """R05, M13: it lets entities go before the kernel ends it; everybody is answered, and all that left is there."""
    assert await run(tmp_path, group, 3 * LIMIT_MIB // 2, {})


@pytest.mark.soak
@pytest.mark.timeout(300)
async def test_a_host_whose_entities_are_three_times_its_memory(group: MemoryGroup, tmp_path: Path) -> None:
    """R05, M13: the same for longer; what is free goes back to the kernel, again and again."""
    assert await run(tmp_path, group, 3 * LIMIT_MIB, {})


@pytest.mark.soak
async def test_a_host_that_does_not_look_at_its_memory_is_ended(group: MemoryGroup, tmp_path: Path) -> None:
    """Else the others would prove nothing."""
    assert not await run(tmp_path, group, 3 * LIMIT_MIB // 2, {"memory_bytes_max": 1 << 50})
