"""A call as both ends mean it: what was asked of whom, how it ended, and the door that carries it.

References make a `Request` and hand it to a `Caller` (the client of a cluster, the local one, the test kit); the host
side ends with a `Status` and a payload. The wire and the log store these numbers: they never change their meaning.
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec


class Mode(enum.IntEnum):
    """How a command is sent. Stored and sent as its number."""

    ASK = 0
    """Answered after its effects are committed."""
    TELL = 1
    """Answered once it is durably accepted; carries no result, and no refusal of the entity."""


class Priority(enum.IntEnum):
    """How soon a host runs a command that waits beside others of other entities. Sent as its number."""

    NORMAL = 0
    INTERACTIVE = 1
    BACKGROUND = 2


class Status(enum.IntEnum):
    """How a command ended. Stored and sent as its number."""

    OK = 0
    """Payload: the encoded result."""
    REJECTED = 1
    """Payload: an encoded `Rejected` (see codec)."""
    INVALID_COMMAND = 2
    """Payload: a UTF-8 message. It never ran."""
    HANDLER_FAILED = 3
    """Payload: a UTF-8 message. Nothing was kept."""
    OVERLOADED = 4
    """Payload: a UTF-8 message. It never ran, or there was no room for the messages that it sent and nothing of it was
    kept."""
    DEADLINE_EXCEEDED = 5
    """Payload: a UTF-8 message. It never ran."""
    UNAVAILABLE = 6
    """Payload: a UTF-8 message. It never ran."""
    CALL_CYCLE = 7
    """Payload: a UTF-8 message. It never ran."""
    BELOW_FLOOR = 8
    """The client had given this number up: a late copy was dropped. Payload: empty."""
    STORE_AWAY = 9
    """Payload: a UTF-8 message. This copy did not run, and will not: the store did not answer before its deadline."""


class Request(msgspec.Struct, frozen=True, gc=False):
    """One command or query, its arguments already encoded (and so already checked against the signature)."""

    kind: str
    id: str
    method: str
    arguments: bytes
    """A MessagePack map by parameter name."""
    mode: Mode = Mode.ASK
    query: bool = False
    command_id: str = ""
    """Caller-supplied idempotency key, empty for none."""
    timeout_s: float | None = None
    """None: the setting `command_timeout_s`."""
    fail_fast: bool = False
    """At a full queue: `Overloaded` at once, where the default waits until the deadline."""
    chain: tuple[str, ...] = ()
    """The entities (`kind/id`) that wait for this request, outermost first: asks made inside handlers."""
    priority: Priority = Priority.NORMAL


class Caller(Protocol):
    """Carries requests to entities. One per connected cluster."""

    @property
    def app_name(self) -> str: ...

    async def call(self, request: Request) -> bytes:
        """Return the encoded result (empty for a tell), or raise the `AtollError` that tells the command's fate."""
        ...
