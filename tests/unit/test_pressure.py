"""What a filling memory asks for, level by level."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from atoll.cluster import memory
from atoll.cluster.memory import memory_limit, watch_memory
from atoll.sharding.pressure import Pressure, active_max, pressure

NONE, TIGHT, CRITICAL = Pressure.NONE, Pressure.TIGHT, Pressure.CRITICAL


@pytest.mark.parametrize(
    ("share", "before", "level"),
    [
        (0.79, NONE, NONE),
        (0.80, NONE, TIGHT),
        (0.90, NONE, CRITICAL),
        (0.76, TIGHT, TIGHT),
        (0.74, TIGHT, NONE),
        (0.86, CRITICAL, CRITICAL),
        (0.84, CRITICAL, TIGHT),
        (0.76, CRITICAL, TIGHT),
        (0.74, CRITICAL, NONE),
        (0.86, TIGHT, TIGHT),
    ],
)
def test_a_level_ends_below_where_it_began(share: float, before: Pressure, level: Pressure) -> None:
    """R05: it does not come and go with each look."""
    assert pressure(share, before) is level


def test_a_quarter_of_the_entities_leaves_at_each_look() -> None:
    assert active_max(NONE, 1000, 200_000) == 200_000
    assert active_max(TIGHT, 1000, 200_000) == 750
    assert active_max(CRITICAL, 1000, 500) == 500
    assert active_max(CRITICAL, 1, 500) == 0


def test_the_limit_is_what_was_asked_for_or_what_there_is() -> None:
    assert memory_limit(123) == 123
    assert memory_limit(0) > 1 << 26


@pytest.mark.parametrize(
    ("groups", "limits", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "4096"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "2048", "a/memory.max": "4096"}, 2048),
        ("0::/of/the/machine\n", {"memory.max": "1024"}, 1024),
        ("9:cpu:/x\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "8192", "x/memory.max": "1"}, 8192),
    ],
    ids=["of a group above", "of its own group", "of a container", "version 1"],
)
def test_the_limit_is_that_of_the_tightest_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, limits: dict[str, str], limit: int
) -> None:
    """R05: the kernel ends a process at any of them."""
    (tmp_path / "own").write_text(groups)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    assert memory_limit(0) == limit


async def test_a_process_is_told_its_share() -> None:
    shares: list[float] = []
    watching = asyncio.ensure_future(watch_memory(1 << 30, 1, shares.append))
    await asyncio.sleep(0)
    watching.cancel()
    assert 0.01 < shares[0] < 4
