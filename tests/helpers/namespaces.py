"""A network namespace on a bridge, which can be cut off without a word and joined again. Linux, as root."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator


class CutOff:
    """One namespace. Its one link leads over a bridge to everybody else."""

    def __init__(self) -> None:
        name, subnet = f"atoll{secrets.token_hex(3)}", f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(256)}"
        self.name = name
        self.here = f"{subnet}.1"
        """The address outside."""
        self.there = f"{subnet}.2"
        """The address inside."""
        self._bridge, self._link = f"b{name}", f"v{name}"

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs another one inside."""
        return ("ip", "netns", "exec", self.name)

    def make(self) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.here}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        ip("link", "add", self._link, "type", "veth", "peer", "name", "inside", "netns", self.name)
        ip("link", "set", self._link, "master", self._bridge, "up")
        ip("-n", self.name, "addr", "add", f"{self.there}/24", "dev", "inside")
        ip("-n", self.name, "link", "set", "inside", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """From now on nothing passes, in either direction; nobody is told."""
        ip("link", "set", self._link, "down")

    def heal(self) -> None:
        ip("link", "set", self._link, "up")

    def remove(self) -> None:
        for arguments in (
            ("link", "del", self._link),  # its namespace lives as long as a process in it
            ("netns", "del", self.name),
            ("link", "del", self._bridge),
        ):
            with contextlib.suppress(OSError):
                ip(*arguments)


def ip(*arguments: str) -> None:
    """Raises `OSError` with what `ip` said."""
    run = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False, timeout=30)
    if run.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {run.stderr.strip()}")


@contextlib.contextmanager
def namespace() -> Iterator[CutOff | None]:
    """A joined namespace; None where this machine allows none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield None
        return
    cut_off = CutOff()
    try:
        try:
            cut_off.make()
        except OSError:
            yield None
            return
        yield cut_off
    finally:
        cut_off.remove()
