"""The rows of hosts as the stores keep them: what SQL compares stands in columns, the rest behind a checksum."""

from __future__ import annotations

from typing import Any

import msgspec

from ..actors.errors import CorruptRecord
from .row_codec import decoded, encoded
from .spi import HostRow, HostState, ProcessIdentity


class _About(msgspec.Struct, array_like=True, frozen=True):
    """What SQL does not compare."""

    address: str
    node: str
    process: ProcessIdentity | None
    version: str = ""  # from here on: missing in rows of schema 1
    weight: float = 1.0
    draining: bool = False


_decoder = msgspec.msgpack.Decoder(_About)


def about_blob(row: HostRow) -> bytes:
    about = _About(row.address, row.node, row.process, row.version, row.weight, row.draining)
    return encoded(about, _place(row.incarnation))


def host_row(incarnation: int, state: str, renewals: int, blob: Any) -> HostRow:
    about = decoded(_decoder, blob, _place(incarnation))
    return HostRow(
        incarnation,
        about.address,
        host_state(incarnation, state),
        renewals,
        about.node,
        about.process,
        draining=about.draining,
        version=about.version,
        weight=about.weight,
    )


def host_state(incarnation: int, state: str) -> HostState:
    try:
        return HostState(state)
    except ValueError:
        raise CorruptRecord(f"{_place(incarnation)}: state {state!r}; restore this store from a backup") from None


def never_registered(incarnation: int) -> ValueError:
    return ValueError(f"no host was ever registered as incarnation {incarnation}")


def _place(incarnation: int) -> str:
    return f"host {incarnation}"
