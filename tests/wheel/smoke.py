"""Tries the installed wheel from a foreign folder: `make wheel` runs it with the interpreter of an empty environment.

Not collected by pytest, which would import the checkout. It uses what users use: the door, the local cluster, the CLI.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import atoll


class Counter(atoll.Entity):
    value: int = 0

    @atoll.command
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @atoll.query
    def current(self) -> int:
        return self.value


async def count() -> int:
    async with atoll.local(atoll.App("smoke", entities=[Counter])) as cluster:
        counter = cluster.entity(Counter, "one")
        await counter.add(2)
        await counter.add(3)
        return await counter.current()


def main() -> None:
    environment = Path(sys.prefix).resolve()
    door = Path(atoll.__file__ or "").resolve()
    assert door.is_relative_to(environment), f"this is not the wheel: {door}"
    assert "ray" not in sys.modules, "import atoll must not import ray"
    assert files("atoll").joinpath("py.typed").is_file(), "the wheel lacks py.typed: users would lose the types"
    migrations = files("atoll.persistence").joinpath("postgres_migrations", "0001_tables.sql")
    assert migrations.is_file(), "the wheel lacks the migrations: `atoll store migrate` could make no tables"

    shipped = {file.parts[0] for file in distribution("atoll").files or [] if not file.parts[0].startswith("..")}
    assert shipped <= {"atoll", next(name for name in shipped if name.endswith(".dist-info"))}, f"strays: {shipped}"
    folders = {file.parts[1] for file in distribution("atoll").files or [] if file.parts[0] == "atoll"}
    assert not folders & {"tests", "examples", "bench", "deploy"}, f"the wheel ships {sorted(folders)}"

    assert asyncio.run(count()) == 5
    shown = subprocess.run(
        [str(environment / "bin" / "atoll"), "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "start" in shown.stdout, shown.stdout
    print(f"the wheel of atoll {distribution('atoll').version} works from {Path.cwd()}")  # noqa: T201 - a script


if __name__ == "__main__":
    main()
