"""The real world: clocks that agree with the machine's, and tasks that are not lost."""

from __future__ import annotations

import asyncio
import gc
import logging
import time

import pytest

from atoll.actors.world import World
from atoll.cluster.system import SystemWorld


async def test_a_spawned_task_outlives_its_references() -> None:
    """The loop keeps tasks weakly: without the world's set this one could be collected while it waits."""
    world: World = SystemWorld()
    done = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        done.set_result(True)

    world.spawn(work(), "work")
    gc.collect()
    assert await asyncio.wait_for(done, 5)


async def test_an_unexpected_error_of_a_task_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """With the task's name; a cancelled task is no error."""
    world = SystemWorld()

    async def fail() -> None:
        raise ZeroDivisionError

    failing = world.spawn(fail(), "the failing one")
    cancelled = world.spawn(asyncio.sleep(60), "the cancelled one")
    cancelled.cancel()
    await asyncio.wait([failing, cancelled])
    await asyncio.sleep(0)
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.ERROR, "task the failing one ended with an unexpected error")
    ]


def test_clocks_and_luck() -> None:
    """Seconds that only grow, milliseconds since 1970, bytes that differ."""
    world = SystemWorld()
    assert world.monotonic() <= world.monotonic()
    assert abs(world.wall_ms() / 1000 - time.time()) < 5
    assert len({world.entropy(32) for _ in range(10)}) == 10
    assert SystemWorld().random.random() != world.random.random()
