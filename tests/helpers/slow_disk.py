"""A disk whose fsync takes its time: the calls of a process are made to (slow_disk.c). Linux, with a C compiler."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


class SlowDisk:
    def __init__(self, folder: Path, library: Path) -> None:
        self._told = folder / "fsync-takes-ms"
        self._library = library

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one on it."""
        return ("env", f"LD_PRELOAD={self._library}", f"SLOW_DISK={self._told}")

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Each fsync that begins meanwhile takes so much longer."""
        self._told.write_text(f"{seconds * 1000:.0f}")
        try:
            yield
        finally:
            self._told.unlink()


def slow_disk(folder: Path) -> SlowDisk | None:
    """None where nothing can be compiled."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "slow_disk.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return SlowDisk(folder, library)
