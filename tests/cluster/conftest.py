"""Tests of real sockets run on both event loops: hosts use uvloop, a client uses whatever its program runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

Factory = Callable[[], asyncio.AbstractEventLoop]

ON_BOTH_LOOPS = frozenset({"test_bad_peers.py", "test_network.py"})


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Factory]:
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
