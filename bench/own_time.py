"""How much of the time a process had a core, for rates that mean something on a machine where other things run."""

from __future__ import annotations

import time
from pathlib import Path


class OwnTime:
    """Seconds in which a process's main thread ran or had nothing to do: what it waited for a core is left out. On a
    system that does not say, all of the time."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/schedstat")
        self._since = self._now()

    def _now(self) -> float:
        waited_ns = int(self._file.read_text().split()[1]) if self._file.exists() else 0
        return time.monotonic() - waited_ns / 1e9

    def seconds(self) -> float:
        return self._now() - self._since
