"""How the house repeats what the store could not do: exponential backoff with full jitter, for as long as it takes.

Only for work whose outcome must become known (an append, a checkpoint): commands that wait meanwhile run into their own
deadlines, so there is no budget to run out of here; the number of such loops is fixed (a few per host).
"""

from __future__ import annotations

import asyncio

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from ..actors.world import World

FIRST_S = 0.01
MAX_S = 1.0


def store_retries(world: World, *errors: type[Exception]) -> AsyncRetrying:
    """`async for attempt in store_retries(world, StoreUnavailable): with attempt: ...` until it works."""

    def wait(state: RetryCallState) -> float:
        return world.random.uniform(0, min(MAX_S, FIRST_S * 2 ** min(state.attempt_number, 16)))

    return AsyncRetrying(retry=retry_if_exception_type(errors), wait=wait, sleep=asyncio.sleep, reraise=True)
