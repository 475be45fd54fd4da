"""The store behind a circuit breaker: while it fails, a host tries it now and then, not from every turn that waits.

Refused calls raise `StoreUnavailable` like failed ones: whoever repeats (retries.py) does so here, and the store sees
one trial per pause. A call that hangs is not a failure; the commit path's own bound stops the turns then. The lease is
not kept through here: its renewals are the store's own heartbeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from ..actors.breaker import Breaker, BreakerState
from ..actors.errors import StoreUnavailable
from ..actors.world import World
from ..persistence.spi import Store

FAILURES = 5
"""In a row: with the pauses between repeats, a third of a second of failures."""
PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 1.0
"""No longer: with the pause of whoever repeats, a store that is back is noticed within two seconds."""


class _Guarded:
    """A `Store`, call by call."""

    def __init__(self, store: Store, world: World, changed: Callable[[bool], None]) -> None:
        self._store = store
        self._world = world
        self._changed = changed
        self._breaker = Breaker(FAILURES, PAUSE_FIRST_S, PAUSE_MAX_S)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._store, name)

        async def guarded(*args: Any, **kwargs: Any) -> Any:
            breaker = self._breaker
            call = breaker.enter(self._world.monotonic())
            if call is None:
                raise StoreUnavailable(f"{name}: the store failed lately, and is tried again soon")
            was_closed = breaker.state is BreakerState.CLOSED
            try:
                result = await method(*args, **kwargs)
            except StoreUnavailable:
                breaker.failed(call, self._world.monotonic(), self._world.random.random())
                raise
            except Exception:
                breaker.succeeded(call)  # it answers
                raise
            except BaseException:
                breaker.abandoned(call, self._world.monotonic())
                raise
            else:
                breaker.succeeded(call)
                return result
            finally:
                is_closed = breaker.state is BreakerState.CLOSED
                if is_closed is not was_closed:
                    self._changed(not is_closed)

        return guarded


def guarded(store: Store, world: World, changed: Callable[[bool], None]) -> Store:
    """The store behind a breaker. `changed(True)` when it opens, `changed(False)` when it is closed again."""
    return cast("Store", _Guarded(store, world, changed))
