"""The two rows of a log that are no batches, and the order in which rows stand. Pure.

    n = 0      the birth row: names app and incarnation, stays for ever
    n = 1 ...  batches, as records.encode_batch made them
    newest     the seal, once a successor took over; stays for ever, and nothing can follow it

Rows are dropped from the front only, so what is there has no holes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..actors.errors import CorruptRecord, Fenced
from .checksum import proven, wrap
from .records import log_place
from .spi import LogRow


class Birth(msgspec.Struct, array_like=True, frozen=True):
    app: str
    incarnation: int


def birth_blob(app: str, incarnation: int) -> bytes:
    return wrap(msgspec.msgpack.encode(Birth(app, incarnation)), _birth_place(incarnation))


def check_birth(app: str, incarnation: int, blob: Any) -> None:
    """Raises `CorruptRecord` unless this is the birth row of that log."""
    place = _birth_place(incarnation)
    if msgspec.msgpack.decode(proven(blob, place), type=Birth) != Birth(app, incarnation):
        raise CorruptRecord(f"{place}: it is the log of another app; restore this store from a backup")


def no_birth(incarnation: int) -> CorruptRecord:
    return CorruptRecord(f"{_birth_place(incarnation)}: missing; restore this store from a backup")


def seal_blob(incarnation: int, n: int) -> bytes:
    return wrap(b"seal", _seal_place(incarnation, n))


def check_seal(incarnation: int, n: int, blob: Any) -> None:
    """Raises `CorruptRecord` unless this is the seal of that log at `n`."""
    proven(blob, _seal_place(incarnation, n))


def batches(incarnation: int, rows: Iterable[tuple[int, Any, Any]]) -> list[LogRow]:
    """The batches among rows (n, seal, content), which stand in order of n from 1 on. A hole between two, or anything
    above the seal, raises `CorruptRecord`."""
    found: list[LogRow] = []
    sealed_at: int | None = None
    for n, seal, content in rows:
        last = found[-1].n if found else n - 1
        if sealed_at is not None or n != last + 1:
            missing = f"above its seal at {sealed_at}" if sealed_at is not None else f"follows {last}: rows are lost"
            raise CorruptRecord(f"{log_place(incarnation, n)}: {missing}; restore this store from a backup")
        if not seal and isinstance(content, bytes):
            found.append(LogRow(n, content))
        else:
            check_seal(incarnation, n, content)
            sealed_at = n
    return found


def check_refused(incarnation: int, n: int, content: bytes, *, newest: int, sealed: bool, stands_there: object) -> None:
    """Why an append of `content` at `n` found no room: returns when it is there already, and raises what is so
    otherwise. `stands_there`: the content at `n`, None when there is none."""
    if sealed:
        raise Fenced(f"log {incarnation} is sealed at {newest}: another owner took over")
    if n > newest + 1:
        raise ValueError(f"log {incarnation} ends at {newest}: row {n} would leave a gap")
    if n == 0 or stands_there != content:
        raise Fenced(f"log {incarnation} holds something else at or above row {n}: this writer is not its owner")


def _birth_place(incarnation: int) -> str:
    return f"log {incarnation}, birth row"


def _seal_place(incarnation: int, n: int) -> str:
    return f"log {incarnation}, seal {n}"
