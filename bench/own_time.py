"""How much of the time a process had a core, for rates that mean something on a machine where other things run."""

from __future__ import annotations

import time
from pathlib import Path


class OwnTime:
    """Seconds in which a process's main thread ran or had nothing to do: what it waited for a core is left out. On a
    system that does not say, all of the time."""

    def __init__(self, pid: int) -> None:
        file = Path(f"/proc/{pid}/schedstat")
        self._file = file.open("rb", buffering=0) if file.exists() else None
        self._since = self._now()

    def _now(self) -> float:
        waited_ns = 0
        if self._file is not None:
            self._file.seek(0)
            waited_ns = int(self._file.read().split()[1])
        return time.monotonic() - waited_ns / 1e9

    def seconds(self) -> float:
        return self._now() - self._since
