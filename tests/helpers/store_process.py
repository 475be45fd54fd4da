"""A process that uses an SQLite store, for tests that stop it, kill it or open the store beside it.

    python store_process.py FOLDER open                 opens the store after a line on stdin
    python store_process.py FOLDER hold FILE            begins to write into FILE ("log", "tables.db" or "leases.db"),
                                                        and keeps the transaction open

It says on stdout how far it is, a JSON line at a time. Run it with `StoreProcess`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import apsw

from atoll.persistence.process import is_stopped, this_process
from atoll.persistence.spi import Assignment
from atoll.persistence.sqlite import SQLiteStore

APP = "bank"
SHARDS = 4


class StoreProcess:
    """The test's side."""

    def __init__(self, folder: Path, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def line(self) -> Any:
        """What it says next; fails the test when it died instead."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        assert text, f"process {self.pid} ended with {self._process.wait()}"
        return json.loads(text)

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        """SIGSTOP, and back when it is really stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: is_stopped(self.pid), f"process {self.pid} did not stop")

    def kill(self) -> int:
        """SIGKILL if it still runs; how it ended."""
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        code = self._process.wait(timeout=30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        return code

    def is_alive(self) -> bool:
        return self._process.poll() is None


def until(condition: Any, otherwise: str, timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, otherwise
        time.sleep(0.002)


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def open_when_told(folder: Path) -> None:
    say("ready")
    sys.stdin.readline()
    store = SQLiteStore(folder)
    await store.open(APP, SHARDS)
    incarnation = await store.register_host("a:1", "node", this_process())
    await store.append(incarnation, 1, b"one")
    say(incarnation)
    sys.stdin.readline()
    await store.close()


async def hold(folder: Path, file: str) -> None:
    """Own every shard, commit two rows, then hang in the middle of the next transaction."""
    store = SQLiteStore(folder)
    await store.open(APP, SHARDS)
    incarnation = await store.register_host("a:1", "node", this_process())
    await store.assign([Assignment(shard, 0, incarnation) for shard in range(SHARDS)])
    await store.claim(incarnation, [(shard, 1) for shard in range(SHARDS)])
    for n in (1, 2):
        await store.append(incarnation, n, b"row %d" % n)
    path = folder / (f"logs/{incarnation}.db" if file == "log" else file)
    connection = apsw.Connection(str(path))
    connection.execute("BEGIN IMMEDIATE")
    if file == "log":
        connection.execute("INSERT INTO log VALUES (3, 0, ?)", (b"row 3",))
    elif file == "tables.db":
        connection.execute("UPDATE shards SET row = x'00'")
    else:
        connection.execute("UPDATE hosts SET renewals = 99")
    say(incarnation)
    sys.stdin.readline()
    connection.execute("COMMIT")
    say("committed")
    sys.stdin.readline()


if __name__ == "__main__":
    asyncio.run(open_when_told(Path(sys.argv[1])) if sys.argv[2] == "open" else hold(Path(sys.argv[1]), sys.argv[3]))
