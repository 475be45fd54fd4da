"""`atoll log` and `atoll journal`: what stands in a store, for people, with or without hosts on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from command_line import InProcess
from ledger import Journal, List, app

import atoll
from atoll.cluster.reading import NothingToRead, StoreReader, reading

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """A store that was written and left in good order."""
    url = f"sqlite:{tmp_path / 'store'}"
    async with atoll.local(app, store=url) as cluster:
        for token in ("a", "b", "ü"):
            await cluster.entity(Journal, "j").append(token)
            await cluster.entity(List, "l").append.using(command_id=f"id-{token}")(token)
    return url


@pytest.fixture
async def reader(url: str) -> AsyncIterator[StoreReader]:
    async with reading([url], app.name, 256) as (reader,):
        yield reader


def lines(done: Any) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_journal_shows_every_commit_decoded(reader: StoreReader) -> None:
    """J01: an event-sourced entity's commits, oldest first, from any version on."""
    commits = await reader.journal("Journal", "j")
    assert [(c["seq"], [e["data"] for e in c["events"]]) for c in commits] == [
        (1, [{"token": "a"}]),
        (2, [{"token": "b"}]),
        (3, [{"token": "ü"}]),
    ]
    assert [c["seq"] for c in await reader.journal("Journal", "j", 2)] == [3]
    assert await reader.journal("Journal", "nobody") == []


async def test_a_state_shows_its_version_and_what_it_holds(reader: StoreReader) -> None:
    """J02: and of an entity that nobody wrote to, that there is nothing."""
    state = await reader.state("List", "l")
    assert (state["seq"], state["state"]["data"]) == (3, {"items": ["a", "b", "ü"]})
    with pytest.raises(NothingToRead, match="nobody"):
        await reader.state("List", "nobody")


async def test_what_is_only_in_a_running_hosts_log_is_shown_too(tmp_path: Path) -> None:
    """J05: tables and log together are the journal, also before the first checkpoint."""
    url = f"sqlite:{tmp_path / 'store'}"
    async with atoll.local(app, store=url) as cluster, reading([url], app.name, 256) as (reader,):
        for token in "abc":
            await cluster.entity(Journal, "j").append(token)
        commits = await reader.journal("Journal", "j")
        assert [c["seq"] for c in commits] == [1, 2, 3]
        assert all(c["reply"] == "OK" for c in commits)
        (log,) = await reader.logs()
        assert (log["state"], log["newest"]) == ("live", 3)
        records = await reader.log(log["incarnation"])
        assert [(r["row"], r["entity"], r["seq"]) for r in records] == [(n, "Journal/j", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "command",
    [["log", "list"], ["log", "show", "7"], ["journal", "show", "List", "l"], ["dead-letters", "list"]],
    ids=" ".join,
)
def test_without_a_store_the_commands_say_where_they_looked(tmp_path: Path, command: list[str]) -> None:
    """One line, exit code 1, and no store is made by looking for one."""
    line = InProcess(tmp_path)
    done = line.run(*command[:2], "ledger:app", *command[2:], "--app-dir", str(HELPERS))
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no store at" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "atoll-data").exists()


def test_the_commands_print_one_object_a_line(tmp_path: Path, url: str) -> None:
    """For eyes, grep and jq alike; an unknown log is refused with what to do."""
    line = InProcess(tmp_path)
    at = ["--app-dir", str(HELPERS), "--store", url]
    assert [c["seq"] for c in lines(line.run("journal", "show", "ledger:app", "Journal", "j", *at))] == [1, 2, 3]
    (state,) = lines(line.run("journal", "state", "ledger:app", "List", "l", *at))
    assert state["state"]["data"]["items"] == ["a", "b", "ü"]
    (log,) = lines(line.run("log", "list", "ledger:app", "--json", *at))
    assert all(record["position"] for record in lines(line.run("log", "show", "ledger:app", "1", *at)))
    assert log["incarnation"] == 1
    unknown = line.run("log", "show", "ledger:app", "99", *at)
    assert unknown.returncode == 1
    assert len(unknown.stderr.splitlines()) == 1
