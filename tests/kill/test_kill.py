"""The heart, proved by killing it: writers die or freeze at random instants, successors take over, nothing is lost.

Each round starts a writer (writer.py) in a process of its own; it takes over from the last one and commits. After a random
number of its commits it meets its fault:

    kill      SIGKILL
    freeze    SIGSTOP, for good: its successor ends it before it seals
    zombie    SIGSTOP of a writer whose process the successor cannot know, and SIGCONT once the successor has taken over:
              it must find itself fenced

In the end the histories and the logs together must hold every acknowledged record, exactly as it was written, once, at
gapless positions, and nothing that was appended after a seal.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
from kill_rounds import Rounds
from luck import Luck

from atoll.persistence.process import wal_lock_holders


class Run(Rounds):
    """Rounds on one folder."""

    def __init__(self, folder: Path, luck: Luck) -> None:
        super().__init__(f"sqlite:{folder}", luck)
        self.folder = folder

    def round(self, fault: str) -> None:
        """Start a writer, let it commit, let it meet its fault, let a successor take over and commit once."""
        victim = self.start(unknown=fault == "zombie")
        victim.await_commits(self.luck.randrange(1, 60))
        self.pause()
        victim.signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        held = bool(wal_lock_holders(self.folder / "logs" / f"{victim.incarnation}.db"))
        successor = self.start(unknown=False)
        successor.await_owning()
        if fault == "zombie":
            victim.signal(signal.SIGCONT)
        code = victim.end()
        if fault == "zombie" and not victim.fenced:
            # It was stopped with the lock of its log, or of the tables, in its hand, and was killed for that.
            assert code == -signal.SIGKILL, (code, self.luck)
            fault = "zombie killed with a lock"
        elif fault == "zombie":
            assert code == 0, (code, self.luck)
        else:
            assert code == -signal.SIGKILL, (code, self.luck)
        self.bites[fault] += 1
        self.bites["held its log's lock"] += held
        if fault != "kill":
            assert successor.took_ms < 20_000, (fault, held, successor.took_ms, self.luck)
        self.check_recovered(victim, successor)
        successor.await_commits(1)
        successor.signal(signal.SIGKILL)
        assert successor.end() == -signal.SIGKILL


def test_nothing_acknowledged_is_lost_when_writers_are_killed_and_frozen(tmp_path: Path) -> None:
    """J06, J12, J16, PR01, PR02, PR03, PR04, PR18: seconds of it. Each fault bites at least once, or the test fails."""
    luck = Luck()
    run = Run(tmp_path / "store", luck)
    try:
        for fault in ("kill", "freeze", "zombie"):
            run.round(fault)
        for _ in range(20):  # whether a zombie was stopped with a lock in its hand is luck
            if run.bites["zombie"]:
                break
            run.round("zombie")
        run.round(luck.choice(["kill", "freeze"]))
        records = asyncio.run(run.check_everything())
    finally:
        run.bury()
    assert records > 50, luck
    for fault in ("kill", "freeze", "zombie"):
        assert run.bites[fault] >= 1, (run.bites, luck)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_in_a_minute_of_kills(tmp_path: Path) -> None:
    """J06, J12, J16, PR01, PR02, PR03, PR04, PR18: a minute of it, in random order, each fault many times."""
    luck = Luck()
    run = Run(tmp_path / "store", luck)
    give_up_at = time.monotonic() + 60
    try:
        while time.monotonic() < give_up_at:
            run.round(luck.choice(["kill", "freeze", "zombie"]))
        records = asyncio.run(run.check_everything())
    finally:
        run.bury()
    print(dict(run.bites), records, "records", max(w.took_ms for w in run.writers), "ms at worst")  # noqa: T201  figures
    for fault in ("kill", "freeze", "zombie", "held its log's lock"):
        assert run.bites[fault] >= 2, (run.bites, luck)
