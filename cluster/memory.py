"""How much of the memory that it may use this process takes, as the kernel counts it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import psutil

from ..sharding.pressure import BEGINS, EASED, Pressure

LOOK_S = 0.25
"""Often enough to see a container of some hundred MiB fill, at 100 MiB a second, before it is full."""
GIVE_BACK_FROM = BEGINS[Pressure.TIGHT] - EASED
APART_BYTES = 128 << 10
"""glibc's own limit, before it begins to raise it."""
_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def memory_limit(asked: int, hosts: int = 1) -> int:
    """Bytes that this process may use: `asked`, or if that is 0 its share of what its control groups or its machine
    have, where so many `hosts` have to do with it."""
    if asked:
        return asked
    limit = psutil.virtual_memory().total
    for path in _limits_of_groups():
        try:
            limit = min(limit, int(path.read_text()))
        except (OSError, ValueError):
            continue  # not there, or "max"
    return limit // hosts


def _limits_of_groups() -> Iterator[Path]:
    """Of this process's control group and of all above it, of version 2 and of version 1. At any of these it is ended.
    A container sees its own group as the uppermost, whatever that is called outside."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, file = (_GROUPS / controllers, "memory.limit_in_bytes") if controllers else (_GROUPS, "memory.max")
        group = PurePosixPath(name)
        for each in (group, *group.parents):
            yield root / each.relative_to("/") / file


async def watch_memory(asked: int, hosts: int, seen: Callable[[float], None]) -> None:
    """Tell `seen` several times a second which share of its memory this process takes."""
    limit, process = memory_limit(asked, hosts), psutil.Process()
    while True:
        share = process.memory_info().rss / limit
        seen(share)
        if share >= GIVE_BACK_FROM:
            await asyncio.to_thread(_give_back_what_is_free)
        await asyncio.sleep(LOOK_S)


def keep_large_blocks_apart() -> None:
    """Let blocks of `APART_BYTES` and more go back to the kernel when they are freed. glibc does so only until the
    first of them is freed, then it raises the limit (mallopt(3)), and large answers that come and go leave holes in
    what it keeps: 600 MiB were measured for 80 in use."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, APART_BYTES)


def _give_back_what_is_free() -> None:
    """To the kernel. The allocator keeps what was freed: a host that was full once would look full for ever. (Measured:
    50 ms for 150 MiB that go, 2 ms for none.)"""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
