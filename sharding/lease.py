"""The lease: until when this host may answer what no commit vouches for (queries, refusals, unchanged replies).

A renewal counts from before it was sent, on the host's own monotonic clock; the coordinator counts from after it saw
the renewal, on its own. A lapsed lease holds such answers and ends nothing: a store outage would end all hosts at once.
Only being condemned (a renewal that the store refuses) or fenced ends the process.

Runs on a thread of its own in a real process, so that a handler that burns CPU does not cost the host its shards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ..actors.errors import StoreError


class LeaseStore(Protocol):
    """The part of a store that keeping a lease needs."""

    async def renew(self, incarnation: int) -> bool: ...


class Lease:
    """Read by the host's loop, written by the keeper; a float is replaced as a whole."""

    def __init__(self, lease_s: float, monotonic: Callable[[], float]) -> None:
        self.lease_s = lease_s
        self.until = float("-inf")
        self._monotonic = monotonic

    def valid(self) -> bool:
        return self._monotonic() < self.until


async def keep(
    lease: Lease,
    store: LeaseStore,
    incarnation: int,
    *,
    renew_s: float,
    monotonic: Callable[[], float],
    renewed: Callable[[], None],
) -> None:
    """Renew for ever; call `renewed` after each success. Returns when the store says that this host is condemned."""
    while True:
        began = monotonic()
        try:
            async with asyncio.timeout(lease.lease_s):
                alive = await store.renew(incarnation)
        except (StoreError, TimeoutError):
            alive = None  # unknown: the lease lapses by itself if this goes on
        if alive is False:
            return
        if alive:
            lease.until = began + lease.lease_s
            renewed()
        await asyncio.sleep(max(0.0, renew_s - (monotonic() - began)))
