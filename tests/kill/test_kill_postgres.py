"""The heart over PostgreSQL, proved by killing it: writers die or freeze at random instants, and so does the server.

    kill      SIGKILL of the writer
    freeze    SIGSTOP for good; its connections stay open and may hold locks: the server's limits end them
    zombie    SIGSTOP, and SIGCONT once a successor has taken over: it must find itself fenced
    server    SIGKILL of the server with all its processes while the writer commits; it is started again, and the writer
              goes on: what it does not know the outcome of it repeats until it does
    both      the server is killed, then the writer, whose last append may or may not be durable

What must hold in the end stands in kill_rounds.py.
"""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from kill_rounds import Rounds, Writer
from luck import Luck
from postgres_databases import PostgresDatabases
from postgres_server import PostgresServer

FAULTS = ("kill", "freeze", "zombie", "server", "both")
TAKES_OVER_MS_MAX = 30_000
"""Locks of a frozen writer are freed after 3 s (`idle_in_transaction_session_timeout`), and each wait for one is 2 s."""


class Run(Rounds):
    """Rounds on one database."""

    def __init__(self, server: PostgresServer, database: str, luck: Luck) -> None:
        super().__init__(server.url(database), luck)
        self.server = server

    def round(self, fault: str) -> None:
        """Start a writer, let it commit, let it meet its fault, let a successor take over and commit once."""
        victim = self.start(unknown=False)
        victim.await_commits(self.luck.randrange(1, 60))
        self.pause()
        if fault in {"server", "both"}:
            self.server.kill()
        if fault in {"kill", "both"}:
            victim.signal(signal.SIGKILL)
        elif fault in {"freeze", "zombie"}:
            victim.signal(signal.SIGSTOP)
        if fault in {"server", "both"}:
            self.server.restart()
        if fault == "server":
            self.goes_on(victim)
        self.succeed(victim, fault)
        self.bites[fault] += 1

    def goes_on(self, victim: Writer) -> None:
        """The writer was never fenced: it finds out what became of its last append, and commits more."""
        victim.await_commits(len(victim.acknowledged) + 3)
        victim.signal(signal.SIGKILL)

    def succeed(self, victim: Writer, fault: str) -> None:
        successor = self.start(unknown=False)
        successor.await_owning()
        if fault == "zombie":
            victim.signal(signal.SIGCONT)
            assert victim.end() == 0, self.luck
            assert victim.fenced, self.luck
        elif fault == "freeze":
            victim.signal(signal.SIGKILL)
            victim.end()
        else:
            assert victim.end() == -signal.SIGKILL, self.luck
        assert successor.took_ms < TAKES_OVER_MS_MAX, (fault, successor.took_ms, self.luck)
        self.check_recovered(victim, successor)
        successor.await_commits(1)
        successor.signal(signal.SIGKILL)
        assert successor.end() == -signal.SIGKILL


def rounds(databases: PostgresDatabases, luck: Luck, faults: list[str]) -> Run:
    with databases.fresh() as name:
        run = Run(databases.server, name, luck)
        try:
            for fault in faults:
                run.round(fault)
            records = asyncio.run(run.check_everything())
        finally:
            run.bury()
    assert records > 50, luck
    return run


def test_nothing_acknowledged_is_lost_when_writers_and_the_server_are_killed(
    postgres_databases: PostgresDatabases,
) -> None:
    """J06, J12, J16, PR01, PR02, PR03, PR04: each fault once."""
    luck = Luck()
    faults = luck.sample(FAULTS, len(FAULTS))
    run = rounds(postgres_databases, luck, faults)
    assert run.bites == dict.fromkeys(FAULTS, 1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_in_minutes_of_kills(postgres_databases: PostgresDatabases) -> None:
    """J06, J12, J16, PR01, PR02, PR03, PR04: in random order, each fault many times."""
    luck = Luck()
    began = time.monotonic()
    faults = [luck.choice(FAULTS) for _ in range(40)] + list(FAULTS) * 2
    run = rounds(postgres_databases, luck, faults)
    worst = max(writer.took_ms for writer in run.writers)
    print(dict(run.bites), f"{worst} ms at worst, {time.monotonic() - began:.0f} s")  # noqa: T201  figures
