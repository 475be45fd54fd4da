"""A control group with a limit of memory: the kernel ends a process that wants more. Linux, where one may make groups."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

ROOTS = {
    Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",  # version 1
    Path("/sys/fs/cgroup"): "memory.max",
}
EMPTY_S = 10.0


class MemoryGroup:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one in it."""
        return ("sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(self._folder))


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """None where no such group can be made."""
    for root, file in ROOTS.items():
        folder = root / f"atoll-{secrets.token_hex(4)}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            try:
                (folder / file).write_text(str(limit_bytes))
            except OSError:
                continue  # of another controller, or not ours
            yield MemoryGroup(folder)
            return
        finally:
            _remove(folder)
    yield None


def _remove(folder: Path) -> None:
    """Once its processes are gone, which takes a moment after their death."""
    give_up_at = time.monotonic() + EMPTY_S
    while True:
        try:
            folder.rmdir()
        except OSError:
            assert time.monotonic() < give_up_at, f"{folder} is not empty: {(folder / 'cgroup.procs').read_text()}"
            time.sleep(0.02)
        else:
            return
