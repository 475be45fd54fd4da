"""How much of the memory that it may use this process takes, as the kernel counts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil

LOOK_S = 1.0
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of version 2 and of version 1: a container's own limit, below which it is ended."""


def memory_limit(asked: int, hosts: int = 1) -> int:
    """Bytes that this process may use: `asked`, or if that is 0 its share of its container's or its machine's memory,
    where so many `hosts` have to do with it."""
    if asked:
        return asked
    limit = psutil.virtual_memory().total
    for path in _CGROUP_LIMITS:
        try:
            limit = min(limit, int(path.read_text()))
        except (OSError, ValueError):
            continue  # not there, or "max"
    return limit // hosts


async def watch_memory(asked: int, hosts: int, seen: Callable[[float], None]) -> None:
    """Tell `seen` each second which share of its memory this process takes."""
    limit, process = memory_limit(asked, hosts), psutil.Process()
    while True:
        seen(process.memory_info().rss / limit)
        await asyncio.sleep(LOOK_S)
