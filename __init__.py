"""Atoll: durable entities on Ray.

    class Cart(atoll.Entity):
        items: dict[str, int] = atoll.field(default_factory=dict)

        @atoll.command
        def add(self, sku: str, count: int = 1) -> int:
            self.items[sku] = self.items.get(sku, 0) + count
            return self.items[sku]

    app = atoll.App("shop", entities=[Cart])

This is the public door: what is not in `__all__` is not public. Importing it stays light (no Ray, no store).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .actors import testing
from .actors.app import App
from .actors.context import Context
from .actors.entity import Entity, EventSourced
from .actors.errors import (
    AtollError,
    CallCycle,
    CircuitOpen,
    CorruptRecord,
    DeadlineExceeded,
    Fenced,
    HandlerFailed,
    IncompatibleStore,
    InvalidCommand,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StoreError,
    StoreUnavailable,
    Unavailable,
)
from .actors.evolution import upcast
from .actors.handlers import Command, Query, apply, batched, command, query
from .actors.ids import make_command_id
from .actors.schema import field
from .actors.settings import Settings
from .cluster.circuit import CircuitBreaker
from .cluster.system import SystemWorld

if TYPE_CHECKING:
    from .cluster.api import Cluster, connect, local
    from .cluster.token import Token

__all__ = [
    "App",
    "AtollError",
    "CallCycle",
    "CircuitBreaker",
    "CircuitOpen",
    "Cluster",
    "Command",
    "Context",
    "CorruptRecord",
    "DeadlineExceeded",
    "Entity",
    "EventSourced",
    "Fenced",
    "HandlerFailed",
    "IncompatibleStore",
    "InvalidCommand",
    "NotExecuted",
    "OutcomeUnknown",
    "Overloaded",
    "Query",
    "Rejected",
    "Settings",
    "StoreError",
    "StoreUnavailable",
    "Token",
    "Unavailable",
    "apply",
    "batched",
    "command",
    "connect",
    "field",
    "local",
    "new_command_id",
    "query",
    "testing",
    "upcast",
]


def new_command_id() -> str:
    """A fresh idempotency key for `.using(command_id=...)`: keep it with the work, and repeat under it.

    It carries its time, so that a host refuses it once the reply under it is forgotten (24 hours by default); a plain
    string used again after that would run again.
    """
    return make_command_id(_world.wall_ms(), _world.entropy(10))


_world = SystemWorld()

_LATER = {"Cluster": "api", "connect": "api", "local": "api", "Token": "token"}
"""What brings sockets and stores along is imported when it is first used."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - part of the delay

    value = getattr(import_module(f".cluster.{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value
