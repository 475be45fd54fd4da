"""`atoll pin` and `atoll unpin`, without a Ray cluster: what they ask the coordinator, wait for, and refuse."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from atoll.cluster import cli_pins
from atoll.cluster.cli import app
from atoll.cluster.ray_adapter import Node, RayProblem
from atoll.persistence.spi import HostRow, HostState, ShardRow, ShardState
from atoll.sharding.hashing import shard_of
from atoll.sharding.pinning import not_there, pin_states, why_not

SHARDS = 8
NODES = [Node(letter * 56, f"10.0.0.{i}", f"machine-{letter}", head=i == 1) for i, letter in enumerate("abc", 1)]


class FakeApp:
    """The Ray actors of an app whose shards move when they are looked at."""

    def __init__(self) -> None:
        self.runs = True
        self.hosts = [HostRow(i, "h:1", HostState.LIVE, 0, node.id, None) for i, node in enumerate(NODES, 1)]
        self.rows = [ShardRow(s, ShardState.OWNED, 1, s % 3 + 1, s % 3 + 1, (), 0) for s in range(SHARDS)]
        self.answers_lost = 0
        self.interrupted = False
        self.stuck = False

    def ask(self, _handle: Any, method: str, *args: Any) -> Any:
        answer = getattr(self, method)(*args)
        if self.answers_lost:
            self.answers_lost -= 1
            raise RayProblem("it died")
        return answer

    def pin(self, shard: int, node: str | None) -> dict[str, Any]:
        refused = not_there(shard, SHARDS) or why_not(shard, node, self.hosts, self.rows)
        if not refused:
            self.rows[shard] = replace(self.rows[shard], pin=node)
        return {"refused": refused, "pin": self.rows[shard].pin if shard < SHARDS else None}

    def ownership(self) -> dict[str, Any]:
        if self.interrupted:
            raise KeyboardInterrupt
        if not self.stuck:
            self._move_one()
        pins = [{**msgspec.structs.asdict(p), "alone": p.is_alone} for p in pin_states(self.hosts, self.rows)]
        return {"shards": SHARDS, "pins": pins}

    def _move_one(self) -> None:
        apart = {row.owner: row for row in self.rows if row.pin is not None}
        for row in self.rows:
            if row.owner in apart and row.pin is None:
                self.rows[row.shard] = replace(row, owner=min({1, 2, 3} - apart.keys()))
                return


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApp]:
    fake = FakeApp()
    of = "atoll.cluster.ray_"
    monkeypatch.setattr(cli_pins, "in_ray", lambda _address: contextlib.nullcontext())
    monkeypatch.setattr("atoll.cluster.pinning.LOOK_S", 0.001)
    monkeypatch.setattr(of + "status.apps", lambda: ["bank"])
    monkeypatch.setattr(of + "status.coordinator", lambda name: fake if fake.runs and name == "bank" else None)
    monkeypatch.setattr(of + "status.host_actors", lambda name: [fake] if fake.runs and name == "bank" else [])
    monkeypatch.setattr(of + "adapter.nodes", lambda: NODES)
    monkeypatch.setattr(of + "adapter.ask", fake.ask)
    monkeypatch.setattr(of + "adapter.ask_all", lambda *_args, **_options: [{"kinds": ["Account", "Order"]}])
    before = signal.getsignal(signal.SIGTERM)
    yield fake
    signal.signal(signal.SIGTERM, before)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def refused(*arguments: str, code: int = 1) -> str:
    ended = run(*arguments)
    assert (ended.exit_code, ended.stdout) == (code, ""), ended.output
    (line,) = ended.stderr.splitlines()
    return line.removeprefix("atoll: ")


def test_a_shard_is_pinned_and_the_command_returns_when_it_is_alone(fake: FakeApp) -> None:
    """S11"""
    ended = run("pin", "bank", "--shard", "4")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout == f"shard 4 of bank is alone on host 2 (node {'b' * 12}, which any other may replace)\n"
    assert {row.shard for row in fake.rows if row.owner == 2} == {4}


def test_an_entity_is_named_instead_of_its_shard_and_the_node_by_its_hostname(fake: FakeApp) -> None:
    """S11: `--json` is the pin as in the status."""
    shard = shard_of("alice", SHARDS)
    fake.rows[shard] = replace(fake.rows[shard], owner=1)
    found = json.loads(run("pin", "bank", "Account", "alice", "--node", "machine-a", "--json").stdout)
    assert found == {"shard": shard, "node": "a" * 56, "host": 1, "at": "a" * 56, "beside": 0, "alone": True}
    ended = run("unpin", "bank", "Account", "alice")
    assert ended.stdout == f"shard {shard} of bank is not pinned any more: its host gets a fair share again\n"
    assert {row.pin for row in fake.rows} == {None}


def test_an_answer_that_was_lost_is_asked_for_again(fake: FakeApp) -> None:
    """S06: the coordinator died after it had written the pin; that the next one knows it already is no refusal."""
    fake.answers_lost = 1
    assert run("pin", "bank", "--shard", "4").exit_code == 0
    fake.answers_lost = 1
    assert run("unpin", "bank", "--shard", "4").exit_code == 0


def test_who_waits_no_longer_is_told_that_the_pin_stays(fake: FakeApp) -> None:
    fake.interrupted = True
    said = refused("pin", "bank", "--shard", "4", code=130)
    assert said == "interrupted: the pin stays, and `atoll unpin` takes it back"
    assert fake.rows[4].pin == ""


def test_a_shard_that_does_not_get_there_in_time_stays_pinned(fake: FakeApp) -> None:
    fake.stuck = True
    said = refused("pin", "bank", "--shard", "4", "--timeout", "1")
    assert said == (
        "shard 4 is not alone on host 2 yet (2 beside it) after 1 s; the pin stays, and `atoll unpin` takes it back"
    )
    assert fake.rows[4].pin == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "8"], "'bank': shard 8 does not exist: there are shards 0 to 7"),
        (["--shard", "1", "--node", "d"], "no node of this Ray cluster is 'd'; there are "),
        (["Acount", "alice"], "'bank' has no kind 'Acount'; it has Account, Order"),
        (["Account", ""], "an entity ID has 1 to 255 bytes of UTF-8, this one has 0"),
        (["--shard", "5"], "'bank': shard 5 is pinned already, to any node: `atoll unpin` takes that back"),
    ],
    ids=["shard", "node", "kind", "ID", "pinned already"],
)
def test_what_cannot_be_pinned_is_refused_in_one_line(fake: FakeApp, arguments: list[str], said: str) -> None:
    """Exit code 1, and nothing is pinned."""
    fake.rows[5] = replace(fake.rows[5], pin="")
    before = list(fake.rows)
    assert refused("pin", "bank", *arguments).startswith(said)
    assert fake.rows == before


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("command", ["pin", "unpin"])
@pytest.mark.parametrize("arguments", [[], ["Account"], ["Account", "alice", "--shard", "1"]])
def test_a_shard_is_named_in_one_way(command: str, arguments: list[str]) -> None:
    assert refused(command, "bank", *arguments, code=2) == "name a shard with --shard N, or an entity with KIND ID"


@pytest.mark.parametrize("command", ["pin", "unpin"])
@pytest.mark.parametrize("arguments", [["--shard", "1"], ["Account", "alice"]])
def test_an_app_that_does_not_run_is_refused(fake: FakeApp, command: str, arguments: list[str]) -> None:
    fake.runs = False
    said = "'shop' does not run in this Ray cluster: start it with `atoll start`; running are bank"
    assert refused(command, "shop", *arguments) == said


@pytest.mark.usefixtures("fake")
def test_a_shard_that_is_not_pinned_is_not_unpinned() -> None:
    assert refused("unpin", "bank", "--shard", "1") == "'bank': shard 1 is not pinned"


# ---- whether there is room


def host(incarnation: int, node: str, state: HostState = HostState.LIVE, *, draining: bool = False) -> HostRow:
    return HostRow(incarnation, "h:1", state, 0, node, None, draining)


def row(shard: int, pin: str | None = None) -> ShardRow:
    return ShardRow(shard, ShardState.FREE, 0, None, None, (), 0, pin=pin)


def test_one_node_always_remains_for_all_other_shards() -> None:
    """S11: hosts that drain or are gone are none, and two of one node (an upgrade) are one."""
    hosts = [host(1, "a"), host(2, "a"), host(3, "b"), host(4, "c", draining=True), host(5, "d", HostState.GONE)]
    rows = [row(0), row(1), row(2)]
    assert why_not(0, "", hosts, rows) == ""
    rows[1] = row(1, "")
    assert why_not(0, "", hosts, rows) == (
        "1 shard is pinned, 2 nodes may have shards, and one must remain for all others: unpin one, or let a node join"
    )
    assert why_not(0, "", [*hosts, host(6, "e")], rows) == ""


def test_a_node_is_for_one_pinned_shard() -> None:
    """S11: one that has no host, a draining one, or another shard's pin, is refused by name."""
    hosts = [host(1, "a"), host(2, "b"), host(3, "c"), host(4, "d", draining=True)]
    rows = [row(0), row(1, "a"), row(2)]
    assert why_not(0, "a", hosts, rows) == "node a is for shard 1 alone: name another node, or unpin that"
    assert why_not(0, "d", hosts, rows) == "node d has no host that may have shards"
    assert why_not(0, "e", hosts, rows) == "node e has no host that may have shards"
    assert why_not(0, "b", hosts, rows) == ""
