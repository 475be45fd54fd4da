"""The circuit breaker that handlers use for their own calls to services outside. When it opens, actors/breaker.py says.

Written here because no library fits: those for asyncio (aiobreaker, purgatory, aiocircuitbreaker) pause for a fixed
time, without jitter, and read their own clock, which the simulator cannot replace.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from ..actors.breaker import Breaker, BreakerState
from ..actors.errors import CircuitOpen
from ..actors.world import World
from .system import SystemWorld


class CircuitBreaker:
    """Stops calling a service that fails, and tries it again from time to time.

        class Payments:                                    # what `App(resources=...)` gives to each host
            def __init__(self) -> None:
                self.breaker = atoll.CircuitBreaker()

        async with self.context.resources.payments.breaker:      # in an `async def` handler
            async with asyncio.timeout(2):
                await client.post(...)

    One for each service and host, shared by all that call it. After `failures` in a row it is open: whoever enters gets
    `CircuitOpen`. After a pause one call is let through; if it fails too, the pause is doubled, up to `pause_max_s`.
    Exceptions of the classes `counts` are failures, everything else proves that the service answers; a call that is
    cancelled from outside proves nothing.

    A handler that lets `CircuitOpen` escape fails: a caller gets `HandlerFailed`; tells, messages and timers are tried
    again with pauses, and become dead letters after `tell_attempts_max`.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        pause_first_s: float = 0.5,
        pause_max_s: float = 30.0,
        counts: type[Exception] | tuple[type[Exception], ...] = Exception,
        world: World | None = None,
    ) -> None:
        """`world`: clock and luck; None: the real ones. Raises `ValueError` for bounds that make no sense."""
        self._breaker = Breaker(failures, pause_first_s, pause_max_s)
        self._counts = counts
        self._world: World = SystemWorld() if world is None else world
        self._calls: dict[asyncio.Task[object] | None, list[int]] = {}
        """What is under way, by task: one may call inside a call."""

    @property
    def state(self) -> BreakerState:
        return self._breaker.state

    async def __aenter__(self) -> Self:
        now = self._world.monotonic()
        call = self._breaker.enter(now)
        if call is None:
            retry_after_s = self._breaker.retry_after_s(now)
            raise CircuitOpen(f"it failed lately, and is tried again in {retry_after_s:.1f} s", retry_after_s)
        self._calls.setdefault(asyncio.current_task(), []).append(call)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        calls = self._calls[task]
        call = calls.pop()
        if not calls:
            del self._calls[task]
        if isinstance(error, self._counts):
            self._breaker.failed(call, self._world.monotonic(), self._world.random.random())
        elif error is None or isinstance(error, Exception):
            self._breaker.succeeded(call)
        else:
            self._breaker.abandoned(call, self._world.monotonic())
