"""What an export is: a stream of MessagePack objects, to be read by any MessagePack library. Pure.

    {"format": "atoll-export", "version": 1, "id": ..., "app": ..., "shards": ..., ...}     the head, a map
    ["session", client, renewals]                                                           every session
    ["entities", shard, row] ["history", shard, row] ...                                    shard by shard, table by
    ["shard", shard, epoch, position]                                                       table; then the shard's end
    ["end", digest]                                                                         xxh3_128 of all bytes before

A row is an array; the head's `fields` names the fields of each table's rows, and of the structs inside them by their
own names, in order. What users stored (states, events, arguments, replies) is MessagePack again, in a `bin`.

An export comes from outside: the digest is checked before anything is done with it, sizes and depths before an object
is made, types before a row is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

import msgpack
import msgspec
from xxhash import xxh3_128

from ..actors.errors import StoreError
from ..actors.stored import StoredEvent, StoredMessage, StoredState, StoredTimer
from .records import Accepted, DeadLetter, RecordedReply
from .spi import Numbers
from .tables import ROW_TYPES, Table, TableRow

FORMAT = "atoll-export"
VERSION = 1
OBJECT_BYTES_MAX = 1 << 30
"""One object: the row of a client that has all its replies of the largest size is the largest there is."""
ITEMS_MAX = 1 << 20
"""In one array or map."""
CHUNK_BYTES = 1 << 20
_END = b"\x92\xa3end\xc4\x10"
"""["end", and the head of a `bin` of 16 bytes: the last object always takes the same room."""
END_BYTES = len(_END) + 16

Made = int | str | bytes | bool | None | list[Any] | dict[Any, Any]


class DamagedExport(StoreError):
    """The file is no export, was cut short or changed, or was made by another version; the message says which."""


class Head(msgspec.Struct, frozen=True):
    id: str
    """Another one for each export: an interrupted import goes on only with the same file."""
    app: str
    shards: int
    sessions: int
    numbers: Numbers
    made_ms: int = 0
    """Wall clock, for people."""
    software: str = ""
    format: str = FORMAT
    version: int = VERSION
    fields: dict[str, list[str]] = {}


class Session(msgspec.Struct, array_like=True, frozen=True):
    client: int
    renewals: int


class ShardEnd(msgspec.Struct, array_like=True, frozen=True):
    """Everything of the shard stands before it."""

    shard: int
    epoch: int
    position: int


class ExportedRow(msgspec.Struct, frozen=True):
    table: Table
    shard: int
    row: TableRow


Item = Session | ExportedRow | ShardEnd

_encode = msgspec.msgpack.Encoder().encode
_TABLES = frozenset(table.value for table in Table)
_NESTED = (StoredState, StoredEvent, StoredMessage, StoredTimer, RecordedReply, Accepted, DeadLetter)


class ExportWriter:
    """Hands the bytes of an export to `write`."""

    def __init__(self, write: Callable[[bytes], Any], head: Head) -> None:
        self._write = write
        self._digest = xxh3_128()
        self._put(msgspec.structs.replace(head, fields=_fields()))

    def session(self, session: Session) -> None:
        self._put(("session", session.client, session.renewals))

    def row(self, table: Table, shard: int, row: TableRow) -> None:
        self._put((table.value, shard, row))

    def shard(self, end: ShardEnd) -> None:
        self._put(("shard", end.shard, end.epoch, end.position))

    def end(self) -> None:
        self._write(_END + self._digest.digest())

    def _put(self, item: object) -> None:
        encoded = _encode(item)
        self._digest.update(encoded)
        self._write(encoded)


def check_whole(file: IO[bytes], size: int) -> None:
    """Raise `DamagedExport` unless the `size` bytes of the file end as their own digest says. Reads all of it."""
    digest = xxh3_128()
    left = size - END_BYTES
    while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    end = file.read(END_BYTES)
    if left or not end.startswith(_END):
        raise DamagedExport("this is no complete export: it was cut short, or is another kind of file; export it again")
    if end[len(_END) :] != digest.digest():
        raise DamagedExport("this export was changed since it was made: its digest does not fit; copy it again")


class ExportReader:
    """Reads an export whose digest was checked. Iterate over it once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._unpacker = msgpack.Unpacker(
            file,
            read_size=CHUNK_BYTES,
            max_buffer_size=OBJECT_BYTES_MAX,
            max_array_len=ITEMS_MAX,
            max_map_len=ITEMS_MAX,
            max_ext_len=0,
            raw=False,
        )
        self.head = self._read_head()

    @property
    def bytes_read(self) -> int:
        position: int = self._unpacker.tell()
        return position

    def _read_head(self) -> Head:
        made = self._next()
        if not isinstance(made, dict) or made.get("format") != FORMAT:
            raise DamagedExport("this is no export of Atoll")
        if made.get("version") != VERSION:
            raise DamagedExport(
                f"this export has version {made.get('version')}, this version of atoll reads {VERSION}: "
                "import it with the atoll that made it, or upgrade"
            )
        head: Head = _converted(made, Head)
        return head

    def __iter__(self) -> Iterator[Item]:
        while True:
            match self._next():
                case ["end", bytes()]:
                    return
                case ["session", *session]:
                    yield _converted(session, Session)
                case ["shard", *end]:
                    yield _converted(end, ShardEnd)
                case [str(name), int(shard), row] if name in _TABLES:
                    yield ExportedRow(Table(name), shard, _converted(row, ROW_TYPES[Table(name)]))
                case _:
                    raise DamagedExport(f"there is an object that this version of atoll does not know {self._where()}")

    def _next(self) -> Made:
        try:
            made: Made = self._unpacker.unpack()
        except msgpack.OutOfData:
            raise DamagedExport("this export ends before its end") from None
        except (ValueError, RecursionError, msgpack.UnpackException) as error:
            raise DamagedExport(
                f"what stands {self._where()} is no MessagePack that may be: {error or type(error)}"
            ) from None
        return made

    def _where(self) -> str:
        return f"before byte {self.bytes_read}"


def _converted(made: Any, type: type[Any]) -> Any:
    try:
        return msgspec.convert(made, type)
    except msgspec.ValidationError as error:
        raise DamagedExport(f"there is a {type.__name__} that is none: {error}") from None


def _fields() -> dict[str, list[str]]:
    named = {table.value: row_type for table, row_type in ROW_TYPES.items()}
    nested = {type.__name__: type for type in _NESTED}
    return {name: list(type.__struct_fields__) for name, type in {**named, **nested}.items()}
