"""Names that come from outside: of entities, kinds, commands, timers. Checked here, once, before anything sees them."""

from __future__ import annotations

import re

from xxhash import xxh3_128_hexdigest

from .errors import InvalidCommand

ENTITY_ID_BYTES_MAX = 255
"""Of UTF-8. Every record, frame and index row carries the ID; a key that long is data in disguise."""
COMMAND_ID_BYTES_MAX = 255
TIMER_NAME_BYTES_MAX = 255
KIND_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
VERSION_PATTERN = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
"""Of an app: "2", "1.4.0", a commit. Part of the names of its Ray actors."""
_COMMAND_ID_PATTERN = re.compile(r"atl-([0-9a-f]{12})-[0-9a-f]{20}")


def checked_entity_id(value: object) -> str:
    """Return `value` when it can be an entity's ID, else raise `InvalidCommand` that says why not."""
    return _checked(value, "an entity ID", ENTITY_ID_BYTES_MAX)


def checked_command_id(value: object) -> str:
    """Return `value` when it can be a caller-supplied command ID, else raise `InvalidCommand`."""
    return _checked(value, "a command ID", COMMAND_ID_BYTES_MAX)


def checked_timer_name(value: object) -> str:
    """Return `value` when it can name a timer, else raise `InvalidCommand`."""
    return _checked(value, "a timer's name", TIMER_NAME_BYTES_MAX)


def _checked(value: object, what: str, bytes_max: int) -> str:
    if not isinstance(value, str):
        raise InvalidCommand(f"{what} is a str, got {type(value).__name__}: convert it, e.g. str(...)")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidCommand(f"{what} must be valid Unicode, this one holds a lone surrogate") from None
    if not 1 <= size <= bytes_max:
        raise InvalidCommand(f"{what} has 1 to {bytes_max} bytes of UTF-8, this one has {size}")
    return value


def make_command_id(wall_ms: int, entropy: bytes) -> str:
    """A command ID that carries its time of birth, so that a host can refuse it once its reply is forgotten."""
    return f"atl-{wall_ms & 0xFFFFFFFFFFFF:012x}-{entropy[:10].hex():0>20}"


def derived_command_id(root: str, ordinal: int) -> str:
    """The command ID of the `ordinal`-th ask that a handler makes: the same when the handler runs again."""
    return "ask-" + xxh3_128_hexdigest(f"{root}/{ordinal}".encode())


def command_id_time_ms(command_id: str) -> int | None:
    """The time of birth of an ID made by `make_command_id`; None for a plain string."""
    match = _COMMAND_ID_PATTERN.fullmatch(command_id)
    return int(match.group(1), 16) if match else None
