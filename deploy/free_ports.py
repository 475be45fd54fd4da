"""Ports to be taken a moment later by another process: a server of PostgreSQL or Ray, a host that is told its port.

Asking the kernel for any free port and letting go of it again does not do: until the other process has it, whoever asks
for any port (all clients do, and all of Ray's processes) may be given that very one.
"""

from __future__ import annotations

import itertools
import random
import socket

FIRST, LAST = 20_000, 32_000
"""Above the ports that Ray hands to its workers, and below those that Linux (from 32768) and macOS (from 49152) give to
whoever asks for any."""


def free_ports(count: int = 1) -> int:
    """The first of `count` free ports in a row. Where the search begins is luck: two who look at once should not find
    the same ones. Raises `OSError` when there are none."""
    begin = random.SystemRandom().randrange(FIRST, LAST)
    for first in itertools.chain(range(begin, LAST, count), range(FIRST, begin, count)):
        if all(map(_is_free, range(first, first + count))):
            return first
    raise OSError(f"there are no {count} free ports in a row between {FIRST} and {LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port on which a connection was closed lately is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
