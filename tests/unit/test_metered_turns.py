"""What an async turn counts as: its own steps, however long it waits between them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atoll.sharding.performer import Metered


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_steps_of_a_turn_count_and_what_it_waits_for_does_not() -> None:
    """S11: a shard of async handlers has a load too, and one that waits for others is not taken for a busy one."""
    clock, took = Clock(), list[float]()
    woken = asyncio.Event()

    async def turn() -> Any:
        clock.now += 1
        async with asyncio.timeout(60):
            await woken.wait()
        clock.now += 2
        return "result"

    async def metered() -> Any:
        return await Metered(turn(), took.append, clock)

    task = asyncio.create_task(metered())
    await asyncio.sleep(0)
    clock.now += 10
    woken.set()
    assert await task == "result"
    assert sum(took) == 3


async def test_a_cancellation_and_an_error_of_a_metered_turn_are_its_own() -> None:
    """M08: a handler sees that it is cancelled, and what it raises goes to whoever awaits it."""
    clock, took = Clock(), list[float]()
    seen = []

    async def turn() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
        raise ValueError("its own")

    async def metered() -> Any:
        return await Metered(turn(), took.append, clock)  # type: ignore[arg-type]  # as above

    task = asyncio.create_task(metered())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(ValueError, match="its own"):
        await task
    assert seen == ["cancelled"]
