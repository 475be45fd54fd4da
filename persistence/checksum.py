"""Blobs that prove themselves: every stored blob carries a checksum bound to the place where it stands.

    byte 0      format version (1)
    bytes 1-8   xxh3_64 of the body, seeded with the hash of its place, big-endian
    bytes 9-    the body

Binding the place in means that a row moved to another key, or read from the wrong file, is reported as corrupt
instead of being read as something else.
"""

from __future__ import annotations

from xxhash import xxh3_64_digest, xxh3_64_intdigest

from ..actors.errors import CorruptRecord

FORMAT_VERSION = 1
_HEAD = bytes([FORMAT_VERSION])
HEADER_BYTES = 9


def wrap(body: bytes, place: str) -> bytes:
    """Return `body` with its header. `place` names where the blob will stand, e.g. `log 3/17`."""
    return b"".join((_HEAD, xxh3_64_digest(body, seed=xxh3_64_intdigest(place.encode())), body))


def unwrap(blob: bytes, place: str) -> bytes:
    """Return the body, or raise `CorruptRecord` that names `place`."""
    if len(blob) < HEADER_BYTES:
        raise CorruptRecord(f"{place}: {len(blob)} bytes, shorter than a header; restore this store from a backup")
    if blob[0] != FORMAT_VERSION:
        raise CorruptRecord(f"{place}: record format {blob[0]}, this version reads {FORMAT_VERSION}: upgrade atoll")
    body = blob[HEADER_BYTES:]
    if blob[1:HEADER_BYTES] != xxh3_64_digest(body, seed=xxh3_64_intdigest(place.encode())):
        raise CorruptRecord(f"{place}: checksum mismatch over {len(body)} bytes; restore this store from a backup")
    return body


def proven(value: object, place: str) -> bytes:
    """The body of a stored blob. In a damaged store a column may hold anything, whatever the schema says of it."""
    if not isinstance(value, bytes):
        raise CorruptRecord(f"{place}: holds {value!r}; restore this store from a backup")
    return unwrap(value, place)
