"""Writer processes that are killed, and the checker of what they leave: for every store.

In the end the histories and the logs together must hold every acknowledged record, exactly as it was written, once, at
gapless positions, and nothing that was appended after a seal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from luck import Luck
from store_process import until

from atoll.persistence.open import open_store
from atoll.persistence.process import is_stopped
from atoll.persistence.recovery import take_over
from atoll.persistence.spi import Assignment, HostState, Store

WRITER = Path(__file__).resolve().parents[1] / "kill" / "writer.py"
APP, SHARDS, KIND = "killed", 3, "Ledger"


class Writer:
    """One writer process, and everything it ever said."""

    def __init__(self, url: str, seed: int, *, unknown: bool) -> None:
        args = [sys.executable, str(WRITER), url, str(seed), *(["--unknown"] if unknown else [])]
        self._process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.incarnation = 0
        self.took_ms = 0
        self.recovered: dict[int, int] = {}
        self.acknowledged: dict[int, dict[int, int]] = {}
        """n -> shard -> position, of each append that returned"""
        self.fenced = False
        self._reader = threading.Thread(target=self._listen)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                break  # killed in the middle of the word: nothing was acknowledged by it
            said: dict[str, Any] = msgspec.json.decode(line)
            positions = {int(shard): position for shard, position in said.get("positions", {}).items()}
            if "n" in said:
                self.acknowledged[said["n"]] = positions
            elif "fenced" in said:
                self.fenced = True
            else:
                self.recovered, self.took_ms, self.incarnation = positions, said["took_ms"], said["incarnation"]

    def await_commits(self, count: int) -> None:
        until(
            lambda: len(self.acknowledged) >= count or self._process.poll() is not None,
            f"writer {self.incarnation} made {len(self.acknowledged)} commits of {count}",
            timeout_s=60,
        )
        assert self._process.poll() is None, f"writer {self.incarnation} ended by itself: {self._process.returncode}"

    def await_owning(self) -> None:
        until(lambda: self.incarnation or self._process.poll() is not None, "nobody took over", timeout_s=60)
        assert self.incarnation, f"the successor ended with {self._process.returncode}"

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)
        if number == signal.SIGSTOP:
            until(lambda: is_stopped(self.pid), "it did not stop")

    def end(self) -> int:
        """How it ended; everything it said is known then."""
        code = self._process.wait(timeout=60)
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def bury(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.end()


class Rounds:
    """Rounds of writers and their faults on one store."""

    def __init__(self, url: str, luck: Luck) -> None:
        self.url = url
        self.luck = luck
        self.writers: list[Writer] = []
        self.bites: Counter[str] = Counter()

    def start(self, *, unknown: bool) -> Writer:
        writer = Writer(self.url, self.luck.randrange(2**32), unknown=unknown)
        self.writers.append(writer)
        return writer

    def pause(self) -> None:
        """Up to a few milliseconds: anywhere between two commits."""
        for _ in range(self.luck.randrange(5_000)):
            WRITER.exists()  # about a microsecond each

    def check_recovered(self, victim: Writer, successor: Writer) -> None:
        """The successor begins at or above everything that was acknowledged."""
        for positions in victim.acknowledged.values():
            for shard, position in positions.items():
                assert successor.recovered[shard] >= position, (victim.incarnation, shard, self.luck)

    def bury(self) -> None:
        for writer in self.writers:
            writer.bury()

    async def check_everything(self) -> int:
        """Take over as the last successor and look at all there is; how many records there are."""
        store = open_store(self.url)
        await store.open(APP, SHARDS)
        try:
            values = await self._all_values(store)
            for host in {writer.incarnation for writer in self.writers}:
                seal = await store.seal(host)
                assert all(row.n < seal for row in await store.read_log(host)), (host, self.luck)
        finally:
            await store.close()
        for writer in self.writers:
            for n, positions in writer.acknowledged.items():
                for shard, position in positions.items():
                    if position == 0:
                        continue  # nothing was written there yet
                    # The newest record of each shard by then, and all before it by gaplessness. Its author is this
                    # writer or an earlier one: a later author would mean that an acknowledged record was replaced.
                    author, of_n = (int(part) for part in values[shard][position].split(b".")[:2])
                    at_most = (writer.incarnation, n)
                    assert (author, of_n) <= at_most, (shard, position, author, of_n, at_most, self.luck)
        return sum(map(len, values.values()))

    async def _all_values(self, store: Store) -> dict[int, dict[int, bytes]]:
        host = await store.register_host("z:1", "node", None)
        for row in await store.hosts():
            if row.state is HostState.LIVE and row.incarnation != host:
                await store.condemn(row.incarnation, row.renewals)
        decided = [Assignment(row.shard, row.epoch, host) for row in await store.shards()]
        assert len(await store.assign(decided)) == SHARDS
        recovered = await take_over(store, host, [(a.shard, a.expected_epoch + 1) for a in decided])
        assert len(recovered) == SHARDS
        values: dict[int, dict[int, bytes]] = {}
        for shard in recovered:
            number, found = shard.row.shard, {}
            commits = [(c.position, c.events) for c in await store.read_history(number)]
            tail = [(record.position, record.events) for record in shard.tail]
            for position, events in [*commits, *tail]:
                (event,) = events
                assert position not in found, ("doubled", number, position, self.luck)
                author, n, of_shard, at, size = (int(part) for part in event.data.split(b".")[:5])
                assert (of_shard, at, size) == (number, position, len(event.data)), ("mixed up", number, position)
                assert event.data == f"{author}.{n}.{of_shard}.{at}.{size}.".encode().ljust(size, b"~")
                found[position] = event.data
            assert sorted(found) == list(range(1, len(found) + 1)), ("a hole", number, self.luck)
            order = [tuple(int(part) for part in found[position].split(b".")[:2]) for position in sorted(found)]
            assert order == sorted(order), ("later owners come later, and so do later batches", number, self.luck)
            values[number] = found
        return values
