"""One row of a table as it stands there: its struct behind a checksum that binds it to its place."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from ..actors.errors import CorruptRecord
from .checksum import proven, wrap

Struct = TypeVar("Struct")
_encode = msgspec.msgpack.Encoder().encode


def encoded(struct: object, place: str) -> bytes:
    return wrap(_encode(struct), place)


def decoded(decoder: msgspec.msgpack.Decoder[Struct], blob: object, place: str) -> Struct:
    """Raises `CorruptRecord` naming the place when the blob does not prove itself there."""
    try:
        return decoder.decode(proven(blob, place))
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptRecord(f"{place}: {error}; restore this store from a backup") from None


def check_same(place: str, content: Any, columns: Any) -> None:
    """What SQL compares must be what the row says."""
    if content != columns:
        raise CorruptRecord(f"{place}: holds {content!r} under {columns!r}; restore this store from a backup")
