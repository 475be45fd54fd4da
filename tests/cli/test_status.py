"""What `atoll status` and `atoll shards` show of what was found, without a Ray cluster."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import Any

import pytest
from typer.testing import CliRunner

from atoll.actors.errors import Unavailable
from atoll.cluster import cli_status
from atoll.cluster.cli import app

FOUND = {
    "app": "bank",
    "version": "2",
    "shards": 4,
    "stripes": 1,
    "silent": [],
    "served": 4,
    "hosts": [
        {
            "stripe": 0, "incarnation": 7, "address": "10.0.0.1:7700", "node": "a" * 56, "version": "1", "state": "draining", "pid": 41,
            "shards": 3, "entities": 5, "lease_valid": True, "connections": 2,
            "hot": {"entities": [["Account", "alice", 0.75], ["Account", "bob", 0.1]], "shards": [[2, 0.6], [1, 0.1]]},
        },
        {
            "stripe": 0, "incarnation": 8, "address": "10.0.0.2:7700", "node": "b" * 56, "version": "2", "state": "no answer",
            "shards": 1, "entities": 0, "lease_valid": False, "connections": 0,
        },
    ],
    "moves": [
        {"stripe": 0, "shard": 1, "from": 7, "to": 8, "why": "leaving", "since_s": 0.2},
        {"stripe": 0, "shard": 2, "from": 7, "to": 8, "why": "leaving", "since_s": 1.25},
    ],
    "pins": [
        {"stripe": 0, "shard": 2, "node": "", "host": 7, "at": "a" * 56, "beside": 0, "alone": True},
        {"stripe": 0, "shard": 3, "node": "b" * 56, "host": 7, "at": "a" * 56, "beside": 1, "alone": False},
        {"stripe": 0, "shard": 0, "node": "", "host": None, "at": "", "beside": 0, "alone": False},
    ],
    "url": "tcp://10.0.0.1:7700",
    "token_file": "/somewhere/token",
    "coordinator": True,
    "problem": "",
}  # fmt: skip

SHARDS = [
    {"shard": 0, "stripe": 0, "state": "owned", "owner": 7, "address": "10.0.0.1:7700", "epoch": 3, "target": 8, "position": 12, "pin": "b" * 56},
    {"shard": 1, "stripe": 0, "state": "free", "owner": None, "address": None, "epoch": 9, "target": None, "position": 0, "pin": ""},
    {"shard": 2, "stripe": 0, "state": "free", "owner": None, "address": None, "epoch": 1, "target": None, "position": 0, "pin": None},
]  # fmt: skip


class FakeRay:
    """Answers in the place of the app's Ray actors."""

    def __init__(self) -> None:
        self.apps = ["bank"]
        self.statuses: list[Any] = [FOUND]
        """Each look takes the next one; the last one stays."""

    def status(self, name: str) -> dict[str, Any]:
        found = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if isinstance(found, BaseException):
            raise found
        return {**found, "app": name}


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(cli_status, "in_ray", lambda _address: contextlib.nullcontext())
    monkeypatch.setattr("atoll.cluster.ray_status.apps", lambda: fake.apps)
    monkeypatch.setattr("atoll.cluster.ray_status.status", fake.status)
    monkeypatch.setattr("atoll.cluster.ray_status.shards", lambda _name: SHARDS)
    return fake


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


@pytest.mark.usefixtures("ray")
def test_hosts_are_shown_with_state_version_and_shards_and_moves_with_their_reason() -> None:
    """Moves between the same two hosts for the same reason are one line, with the longest of them."""
    shown = run("status", "bank")
    assert shown.exit_code == 0, shown.stderr
    assert "bank (version 2): 4 of 4 shards served" in shown.stdout
    told = rows(shown.stdout)
    assert ["7", "10.0.0.1:7700", "draining", "1", "3", "5", "valid", "2", "41", "a" * 12] in told
    assert ["8", "10.0.0.2:7700", "no", "answer", "2", "1", "0", "lapsed", "0", "?", "b" * 12] in told
    assert ["2", "shards", "7", "8", "leaving", "1.2", "s"] in told
    assert ["shard", "2", "7", "60%"] in told
    assert ["Account/alice", "7", "52%"] in told
    assert "bob" not in shown.stdout


@pytest.mark.usefixtures("ray")
def test_pins_are_shown_with_the_node_they_are_for_and_what_is_beside_them() -> None:
    """S11: also while the shard is not there yet, or served by nobody."""
    told = rows(run("status", "bank").stdout)
    assert ["shard", "2", "any", "7", "a" * 12, "nothing"] in told
    assert ["shard", "3", "b" * 12, "7", "a" * 12, "1", "shard"] in told
    assert ["shard", "0", "any", "nobody", "0", "shards"] in told


def test_what_is_not_well_is_said_after_the_table(ray: FakeRay) -> None:
    """Exit code 1, and one line."""
    ray.statuses = [{**FOUND, "served": 3}]
    shown = run("status", "bank")
    assert (shown.exit_code, shown.stderr.splitlines()) == (
        1,
        ["atoll: 1 of 4 shards are not served right now: look again"],
    )
    assert "3 of 4 shards served" in shown.stdout


@pytest.mark.usefixtures("ray")
def test_json_is_what_was_found() -> None:
    assert json.loads(run("status", "bank", "--json").stdout) == FOUND
    assert json.loads(run("shards", "--json").stdout) == {"app": "bank", "shards": SHARDS}


@pytest.mark.usefixtures("ray")
def test_shards_are_shown_with_owner_epoch_target_position_and_pin() -> None:
    shown = run("shards", "bank")
    assert ["0", "owned", "7", "10.0.0.1:7700", "3", "8", "12", "b" * 12] in rows(shown.stdout)
    assert ["1", "free", "9", "0", "any"] in rows(shown.stdout)
    assert ["2", "free", "1", "0"] in rows(shown.stdout)
    assert "bank: 2 free, 1 owned; 1 wanted elsewhere" in shown.stdout


def test_of_several_databases_each_host_and_shard_is_shown_with_its_own(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as people count, since incarnations begin with 1 in each. One that does not answer is named."""
    other = {**FOUND["hosts"][1], "stripe": 1, "incarnation": 7}
    ray.statuses = [{**FOUND, "stripes": 2, "silent": [1], "hosts": [FOUND["hosts"][0], other]}]
    shown = run("status", "bank")
    assert (shown.exit_code, shown.stderr) == (
        1,
        "atoll: of 2 databases number 2 does not answer: its shards wait, the others are served\n",
    )
    told = [line[:3] for line in rows(shown.stdout)]
    assert ["1", "7", "10.0.0.1:7700"] in told
    assert ["2", "7", "10.0.0.2:7700"] in told
    assert "7 of database 1" in shown.stdout
    monkeypatch.setattr("atoll.cluster.ray_status.shards", lambda _name: [SHARDS[0], {**SHARDS[1], "stripe": 1}])
    told = rows(run("shards", "bank").stdout)
    assert ["0", "1", "owned", "7", "10.0.0.1:7700", "3", "8", "12", "b" * 12] in told
    assert ["1", "2", "free", "9", "0", "any"] in told


@pytest.mark.parametrize(
    ("apps", "code", "said"),
    [([], 1, "no app runs in this Ray cluster"), (["bank", "shop"], 2, "several apps run, name one: bank, shop")],
)
def test_shards_of_which_app(ray: FakeRay, apps: list[str], code: int, said: str) -> None:
    ray.apps = apps
    shown = run("shards")
    assert (shown.exit_code, shown.stderr) == (code, f"atoll: {said}\n")


def test_watching_draws_it_again_until_interrupted(ray: FakeRay) -> None:
    """What goes wrong in between is drawn too; being interrupted is the ordinary end: exit code 0, nothing said."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.statuses = [FOUND, Unavailable("gone for a moment"), {**FOUND, "served": 2}, KeyboardInterrupt()]
        shown = run("status", "bank", "--watch", "--every", "0.1")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (shown.exit_code, shown.stderr) == (0, "")
    drawn = ["bank (version 2): 4 of 4", "atoll: gone for a moment", "bank (version 2): 2 of 4"]
    places = [shown.stdout.index(text) for text in drawn]
    assert places == sorted(places)


@pytest.mark.usefixtures("ray")
def test_watching_and_json_do_not_go_together() -> None:
    shown = run("shards", "bank", "--json", "--watch")
    assert (shown.exit_code, shown.stderr) == (2, "atoll: --watch draws tables: leave out --json\n")
