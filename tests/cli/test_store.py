"""`atoll store ...` as its users run it."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import InProcess
from ledger import Journal, List, app

import atoll

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
AT = ["ledger:app", "--app-dir", str(HELPERS)]
SETTINGS = {"ATOLL_SHARDS": "8", "ATOLL_LEASE_S": "1.5", "ATOLL_LEASE_RENEW_S": "0.1"}
"""Whoever needs the store to stand still waits for a lease."""


async def add(url: str, token: str) -> Any:
    """Append it to the one entity, and what is always the same, under one command ID, to the other; what they hold."""
    async with atoll.local(app, store=url) as cluster:
        await cluster.entity(Journal, "j").append(token)
        await cluster.entity(List, "l").append.using(command_id="order-1")("once")
        return await cluster.entity(Journal, "j").read(), await cluster.entity(List, "l").read()


@pytest.fixture(autouse=True)
def _few_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)  # of apps in this process; the commands have them, too


@pytest.fixture
async def url(tmp_path: Path) -> str:
    url = f"sqlite:{tmp_path / 'store'}"
    await add(url, "a")
    return url


async def test_a_store_moves_by_export_and_import(tmp_path: Path, url: str, second_store: str) -> None:
    """J13, M03: the app goes on in the other store, and knows there what it did in the first."""
    atoll_ = InProcess(tmp_path, **SETTINGS)
    done = atoll_.run("store", "export", *AT, "ledger.export", "--store", url)
    assert done.returncode == 0, done.stderr
    assert "ledger.export" in done.stdout
    done = atoll_.run("store", "import", *AT, "ledger.export", "--store", second_store)
    assert done.returncode == 0, done.stderr
    assert await add(second_store, "b") == (["a", "b"], ["once"])
    assert atoll_.run("store", "check", *AT, "--store", second_store).returncode == 0
    assert "holds the app" in atoll_.refused("store", "import", *AT, "ledger.export", "--store", second_store)
    assert "exists" in atoll_.refused("store", "export", *AT, "ledger.export", "--store", url)


async def test_a_running_app_is_exported_and_backed_up_and_neither_checked_nor_pruned(tmp_path: Path, url: str) -> None:
    """J13, S15: what reads a copy works; what needs the store to stand still says so, and what reads on, too."""
    atoll_ = InProcess(tmp_path, **SETTINGS)
    async with atoll.local(app, store=url) as cluster:
        await cluster.entity(Journal, "j").append("b")
        run = partial(asyncio.to_thread, atoll_.run)  # the app, which lives on this loop, goes on renewing its lease
        assert (await run("store", "export", *AT, "ledger.export", "--store", url)).returncode == 0
        assert (await run("store", "backup", *AT, "copy", "--store", url)).returncode == 0
        assert (await run("store", "stats", *AT, "--store", url)).returncode == 0
        for command in ("check", "prune"):
            refused = await run("store", command, *AT, "--store", url)
            assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
        await cluster.entity(Journal, "j").append("c")
    assert atoll_.run("store", "import", *AT, "ledger.export", "--store", "sqlite:./second").returncode == 0
    for copy in ("copy", "second"):
        assert await add(f"sqlite:{tmp_path / copy}", "z") == (["a", "b", "z"], ["once"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "ledger.export", "second", "store"]  # noqa: ASYNC240 - all is over


def test_a_damaged_store_is_told_line_by_line(tmp_path: Path, url: str) -> None:
    """J14: exit code 1, the place, and what to do."""
    import apsw

    with apsw.Connection(str(tmp_path / "store" / "tables.db")) as connection:
        connection.execute("UPDATE entities SET row = CAST(row || x'00' AS BLOB) WHERE kind = 'List'")
    done = InProcess(tmp_path, **SETTINGS).run("store", "check", *AT, "--store", url)
    assert done.returncode == 1
    assert "entity List/'l'" in done.stdout
    assert "restore the whole store from a backup" in done.stderr


def test_figures_and_pruning_are_told_in_tables_and_as_json(tmp_path: Path, url: str) -> None:
    """J07: a kind that is not there is a wrong command line."""
    atoll_ = InProcess(tmp_path, **SETTINGS)
    found = atoll_.asked("store", "stats", *AT, "--store", url)
    assert (found["kinds"]["Journal"]["commits"], found["kinds"]["List"]["entities"], found["app"]) == (1, 1, app.name)
    shown = atoll_.run("store", "stats", *AT, "--store", url)
    assert "Journal" in shown.stdout
    dry = atoll_.asked("store", "prune", *AT, "--store", url, "--events-below-snapshot", "Journal", "--dry-run")
    assert set(dry) == {"events", "command_ids", "dead_letters", "log_rows"}
    assert "dropped" in atoll_.run("store", "prune", *AT, "--store", url).stdout
    by_kind = ("--dead-letters-older-than", "Journal=30", "--command-ids-older-than", "List=0", "--dry-run")
    assert atoll_.asked("store", "prune", *AT, "--store", url, *by_kind)["command_ids"] == 1
    for option, value, told in (
        ("--events-below-snapshot", "Jurnal", "Jurnal"),
        ("--dead-letters-older-than", "Jurnal=3", "Jurnal"),
        ("--command-ids-older-than", "3", "kind by kind"),
    ):
        assert told in atoll_.refused("store", "prune", *AT, "--store", url, option, value, code=2)


def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """J14: and the target is not made."""
    atoll_ = InProcess(tmp_path, **SETTINGS)
    (tmp_path / "text").write_text(json.dumps({"a": 1}))
    assert "no complete export" in atoll_.refused("store", "import", *AT, "text", "--store", "sqlite:./second")
    assert "No such file" in atoll_.refused("store", "import", *AT, "nothing", "--store", "sqlite:./second")
    assert not (tmp_path / "second").exists()
    assert "no store" in atoll_.refused("store", "export", *AT, "out", "--store", "sqlite:./nowhere")
    assert not (tmp_path / "out").exists()
