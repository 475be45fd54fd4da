"""How the house repeats what the store could not do: exponential backoff with full jitter, for as long as it takes.

Only for work whose outcome must become known (an append, a checkpoint) or without which a turn cannot begin: commands
that wait meanwhile run into their own deadlines, so there is no budget to run out of here; the number of such loops is
bounded (a few per host, and one per runner).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from ..actors.errors import StoreUnavailable
from ..actors.world import World

T = TypeVar("T")

FIRST_S = 0.01
MAX_S = 1.0


def pause_s(world: World, first_s: float, max_s: float, attempt: int) -> float:
    """How long to wait after the `attempt`-th failure (AWS Architecture Blog, "Exponential Backoff And Jitter",
    2015)."""
    return world.random.uniform(0, min(max_s, first_s * 2.0 ** min(attempt, 20)))


async def until_done(world: World, work: Callable[[], Awaitable[T]]) -> T:
    """Call `work` until it does not raise `StoreUnavailable`; what it raises else is raised."""
    try:
        return await work()  # nearly always: without the cost of the machinery below
    except StoreUnavailable:
        pass

    def wait(state: RetryCallState) -> float:
        return pause_s(world, FIRST_S, MAX_S, state.attempt_number)

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable), wait=wait, sleep=asyncio.sleep, reraise=True
    )
    async for attempt in retrying:
        with attempt:
            return await work()
    raise AssertionError("retries without a limit end by success or by another error")
