"""`atoll dead-letters`: what was given up, read from a store whatever runs on it, and replayed or dropped by the app."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_line import InProcess
from failing import SETTINGS, Till, app
from luck import Luck
from plain_cluster import PlainCluster, plain_cluster
from store_rows import letter, own

import atoll
from atoll.actors.calls import Request
from atoll.cluster import reading as reading_module
from atoll.cluster.api import Cluster
from atoll.cluster.cli_dead_letters import COLUMNS
from atoll.cluster.reading import NothingToRead, StoreReader, reading
from atoll.persistence.checkpoint import ShardCheckpoint, plan
from atoll.persistence.memory import MemoryStore
from atoll.persistence.overlay import Overlay
from atoll.persistence.records import Delivery, Record, encode_batch
from atoll.persistence.recovery import take_over
from atoll.persistence.spi import Assignment, CheckpointEnd, TableWrite

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
SHARDS = 256
AT = ["--app-dir", str(HELPERS)]


async def names(reader: StoreReader, *of: str) -> list[tuple[str, int]]:
    return [(row.id, row.number) async for row in reader.dead_letters(*of)]


async def until_dead(reader: StoreReader, count: int) -> list[tuple[str, int]]:
    """Whose letters they are, once there are so many."""
    async with asyncio.timeout(60):
        while len(found := await names(reader)) < count:  # noqa: ASYNC110 - nobody here is told
            await asyncio.sleep(0.02)
    return found


async def fill(cluster: Cluster, reader: StoreReader) -> None:
    """Four dead letters: of a refused tell, of one that failed, of a timer's tick, of a message."""
    till = cluster.entity(Till, "a")
    await till.take.using(command_id="order-1").tell(1, slip=b"\x00slip", notes={"a": [1, None]})
    await until_dead(reader, 1)
    await till.force.tell(2)
    await until_dead(reader, 2)
    await till.take_soon(3)
    await until_dead(reader, 3)
    await till.pass_on("b", 4)
    await until_dead(reader, 4)


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """A store with dead letters that was left in good order."""
    url = f"sqlite:{tmp_path / 'store'}"
    async with atoll.local(app, store=url) as cluster, reading([url], app.name, SHARDS) as (reader,):
        await fill(cluster, reader)
    return url


@pytest.fixture
async def reader(url: str) -> AsyncIterator[StoreReader]:
    async with reading([url], app.name, SHARDS) as (reader,):
        yield reader


# ---- reading


async def test_a_dead_letter_says_all_there_is_to_know(reader: StoreReader) -> None:
    """M08: what it was, why it died, with which arguments, and whose it was: a client's, a timer's, a shard's."""
    told = [await reader.dead_letter("Till", id, number) for id, number in await names(reader)]
    of_client, failed, of_timer, of_message = sorted(told, key=lambda one: one["arguments"]["amount"])
    assert of_client["reason"] == of_timer["reason"] == of_message["reason"] == "rejected"
    assert of_client["error"] == "the till is locked\nunlock it first"
    assert of_client["arguments"] == {"amount": 1, "slip": "AHNsaXA=", "notes": {"a": [1, None]}}
    assert of_client["command_id"] == "order-1"
    assert of_client["sender"] == {"client": 1, "number": 1}
    assert (failed["method"], failed["reason"], failed["attempts"]) == ("force", "failed", 2)
    assert (of_timer["timer"], "sender" in of_timer) == ("closing [bold]time", False)
    assert of_message["sender"]["from_shard"] == of_client["shard"] != of_message["shard"]


async def test_letters_are_told_apart_by_their_names(reader: StoreReader) -> None:
    """By kind, by entity, by number; a name under which there is none is refused, and so is another entity's."""
    everything = await names(reader)
    assert await names(reader, "Till") == everything
    of_a = await names(reader, "Till", "a")
    assert of_a == [name for name in everything if name[0] == "a"]
    assert len(of_a) == 3
    assert await names(reader, "") == await names(reader, "Till", "") == await names(reader, "Account", "a") == []
    for kind, id, number in (("Till", "a", 99), ("Account", *of_a[0]), ("Till", "c", of_a[0][1])):
        with pytest.raises(NothingToRead, match=f"{kind}/{id} has no dead letter {number}"):
            await reader.dead_letter(kind, id, number)


async def test_what_no_json_has_is_shown_all_the_same() -> None:
    """Extensions and bytes in base64, keys as text; what is no MessagePack as it is."""
    encode, extension = msgspec.msgpack.encode, msgspec.msgpack.Ext(5, b"\x00x")
    for data, shown in (
        (encode({"a": extension, "b": b"ab"}), {"a": {"extension": 5, "bytes": "AHg="}, "b": "YWI="}),
        (encode({1: None}), {"1": None}),
        (encode({(1, 2): 3}), {"bytes": "gZIBAgM="}),
        (b"\xc1", {"bytes": "wQ=="}),
        (b"", {"bytes": ""}),
        (b"\xa1\xff", {"bytes": "of8="}),
    ):
        assert reading_module._readable(data) == shown
        json.dumps(shown)


class ShardOnPaper:
    """One shard whose letters are buried and taken away, checkpointed and taken over, as its owners would."""

    def __init__(self, store: MemoryStore, luck: Luck) -> None:
        self.store = store
        self.luck = luck
        self.alive: list[int] = []
        self.overlay = Overlay()
        self.position = self.host = self.n = self.epoch = 0
        self.rows: list[tuple[int, int]] = []
        """(n, position) of this host's log."""

    async def take_over(self) -> None:
        self.host = await self.store.register_host("10.0.0.1:1", "node", None)
        await self.store.assign([Assignment(0, self.epoch, self.host)])
        (recovered,) = await take_over(self.store, self.host, [(0, self.epoch + 1)])
        self.overlay, self.position = recovered.overlay, recovered.position
        self.epoch, self.n, self.rows = recovered.row.epoch, 0, []

    async def commit(self) -> None:
        """Bury one, or take one away."""
        self.position += 1
        self.n += 1
        record = Record(0, self.position, "Account", "alice")
        if self.alive and self.luck.random() < 0.5:
            gone = self.luck.choice(self.alive)
            self.alive.remove(gone)
            record.delivery = Delivery(letter_gone=gone)
        else:
            self.alive.append(self.position)
            record.delivery = Delivery(dead=letter(self.position).letter)
        await self.store.append(self.host, self.n, encode_batch([record], self.host, self.n))
        self.overlay.lay(record)
        self.rows.append((self.n, self.position))

    async def checkpoint(self) -> None:
        """One that may stop anywhere; if it does not, log rows go."""
        dirty = self.overlay.freeze(self.position)
        part = ShardCheckpoint(0, self.epoch, self.overlay.frozen_position, dirty, ())
        transactions = list(plan([part], 2, 10**9))
        done = self.luck.randint(0, len(transactions))
        for writes in transactions[:done]:
            assert not await self.store.checkpoint(self.host, writes)
        if done == len(transactions):
            self.overlay.written()
            for n in [n for n, position in self.rows if position <= part.position][-1:]:
                await self.store.delete_log_rows(self.host, n)


async def test_tables_and_logs_together_are_the_letters_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """J05: whatever was checkpointed, half or whole, whoever took over, and wherever a page ends."""
    luck = Luck()
    monkeypatch.setattr(reading_module, "LETTERS_PAGE", 3)
    store = MemoryStore()
    await store.open("letters", 1)
    shard, reader = ShardOnPaper(store, luck), StoreReader(store, 1)
    await shard.take_over()
    for _ in range(400):
        what = luck.random()
        if what < 0.75:
            await shard.commit()
        elif what < 0.97:
            await shard.checkpoint()
        else:
            await shard.take_over()
        assert [number for _, number in await names(reader)] == shard.alive, luck
        for number in luck.sample(range(1, shard.position + 1), min(2, shard.position)):
            if number in shard.alive:
                assert (await reader.dead_letter("Account", "alice", number))["number"] == number, luck
            else:
                with pytest.raises(NothingToRead):
                    await reader.dead_letter("Account", "alice", number)


async def test_a_shard_that_changes_hands_meanwhile_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """J05: the newest owner's log counts too, also when it took over after the first look."""
    store = MemoryStore()
    await store.open("letters", 1)
    first = await store.register_host("10.0.0.1:1", "node", None)
    await own(store, first)
    buried = Record(0, 1, "Account", "alice", delivery=Delivery(dead=letter(1).letter))
    await store.append(first, 1, encode_batch([buried], first, 1))
    read, moved = store.read_log, False

    async def read_log(incarnation: int, after_n: int = 0) -> Any:
        nonlocal moved
        rows = await read(incarnation, after_n)
        if not moved:
            moved = True
            second = await store.register_host("10.0.0.2:1", "node", None)
            await own(store, second)
            await store.seal(first)
            dropped = Record(0, 2, "Account", "alice", delivery=Delivery(letter_gone=1))
            await store.append(second, 1, encode_batch([dropped], second, 1))
        return rows

    monkeypatch.setattr(store, "read_log", read_log)
    assert await names(StoreReader(store, 1)) == []


async def test_what_an_old_record_says_of_a_letter_counts_no_more() -> None:
    """J05: a shard that comes back to a former owner has records below p in that one's log, which other shards still
    need; what another owner did in between stands in the tables alone."""
    store = MemoryStore()
    await store.open("letters", 1)
    one = await store.register_host("10.0.0.1:1", "node", None)
    other = await store.register_host("10.0.0.2:1", "node", None)
    epoch = (await own(store, one))[0]
    buried = Record(0, 1, "Account", "alice", delivery=Delivery(dead=letter(1).letter))
    await store.append(one, 1, encode_batch([buried], one, 1))
    given_up = TableWrite(0, epoch, dead_letters=(letter(1),), end=CheckpointEnd(1, release=True))
    assert not await store.checkpoint(one, [given_up])
    epoch = (await own(store, other))[0]
    assert await names(StoreReader(store, 1)) == [("alice", 1)]
    dropped = TableWrite(0, epoch, letters_gone=(1,), end=CheckpointEnd(2, release=True))
    assert not await store.checkpoint(other, [dropped])
    await own(store, one)
    assert await names(StoreReader(store, 1)) == []


async def test_a_log_shows_what_its_records_say_of_waiting_work(url: str, reader: StoreReader) -> None:
    """What was accepted, sent, scheduled and buried, without what it carries."""
    async with atoll.local(app, store=url) as cluster:
        await cluster.entity(Till, "c").pass_on("d", 4711)
        await until_dead(reader, 5)
        log = (await reader.logs())[-1]
        records = await reader.log(log["incarnation"])
        assert any(record.get("outbox") == ["Till/d.take"] for record in records)
        assert any(record.get("dead", {}).get("reason") == "rejected" for record in records)
        assert any("from_shard" in record and record.get("reply") == "OK" for record in records)
        assert "4711" not in json.dumps([record for record in records if record.get("entity") == "Till/d"])


# ---- the commands on a store at rest


def lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_list_and_show_need_nothing_but_the_store(tmp_path: Path, url: str) -> None:
    """A table for eyes with one line a letter, one JSON object a line for programs, the newest last."""
    line = InProcess(tmp_path)
    at = [*AT, "--store", url]
    found = lines(line.run("dead-letters", "list", "failing:app", "--json", *at))
    assert [tuple(one) for one in found] == [COLUMNS] * 4
    assert [one["time"] for one in found] == sorted(one["time"] for one in found)
    newest = lines(line.run("dead-letters", "list", "failing:app", "Till", "a", "--limit", "1", "--json", *at))
    assert newest == [one for one in found if one["id"] == "a"][-1:]
    table = line.run("dead-letters", "list", "failing:app", "--limit", "3", *at)
    assert table.returncode == 0, table.stderr
    header, _rule, *rows = [row for row in table.stdout.splitlines() if row.strip()]
    assert header.split() == list(COLUMNS)
    assert [row.split()[3] for row in rows[:3]] == [str(one["number"]) for one in found[1:]]
    assert rows[2].rstrip().endswith("rejected   the till is locked"), "the first line of the error"
    assert rows[-1] == "these are the newest 3 of 4: see more with --limit"
    (shown,) = lines(line.run("dead-letters", "show", "failing:app", "Till", "b", str(found[-1]["number"]), *at))
    assert shown["arguments"]["amount"] == 4
    assert "has no dead letter 99" in line.refused("dead-letters", "show", "failing:app", "Till", "b", "99", *at)


@pytest.mark.parametrize(
    "named", [[], ["a"], ["a", "7", "--all"]], ids=["a kind without --all", "an entity without --all", "one, and --all"]
)
def test_what_is_to_be_replayed_must_be_said_in_full(tmp_path: Path, named: list[str]) -> None:
    """A wrong command line, exit code 2, before the store or the app is looked for."""
    said = InProcess(tmp_path).refused("dead-letters", "replay", "failing:app", "Till", *named, *AT, code=2)
    assert said == "name one dead letter by KIND ID NUMBER, or those of a KIND, or of a KIND and ID, with --all"


# ---- the commands on a running app


class Running:
    """A cluster of one plain process with locked tills, and the command line beside it."""

    def __init__(self, cluster: PlainCluster, client: Cluster, reader: StoreReader, folder: Path) -> None:
        self.client = client
        self.reader = reader
        self._line = InProcess(folder)
        self._at = [*AT, "--store", cluster.store_url, "--url", f"tcp://{cluster.addresses[0]}"]
        self._at += ["--token-file", str(cluster.token_file)]

    async def run(self, command: str, *named: str, app: str = "failing:app") -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self._line.run, "dead-letters", command, app, *named, *self._at)

    async def refused(self, command: str, *named: str, app: str = "failing:app", code: int = 1) -> str:
        return await asyncio.to_thread(self._line.refused, "dead-letters", command, app, *named, *self._at, code=code)

    async def take(self, id: str, amounts: list[int]) -> list[str]:
        """Tells that become dead letters; their numbers."""
        before = await names(self.reader)
        for amount in amounts:
            await self.client.entity(Till, id).take.tell(amount)
        found = await until_dead(self.reader, len(before) + len(amounts))
        return [str(number) for name, number in found if name == id]

    async def taken(self, id: str, count: int) -> list[int]:
        """What the till holds once it is so much."""
        async with asyncio.timeout(60):
            while len(found := await self.client.entity(Till, id).read()) < count:  # noqa: ASYNC110 - nobody here is told
                await asyncio.sleep(0.02)
        return found


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with (
        plain_cluster("failing:app", app.name, tmp_path, app_dir=HELPERS, settings=SETTINGS) as cluster,
        cluster.connect() as client,
        reading([cluster.store_url], app.name, SHARDS) as (reader,),
    ):
        yield Running(cluster, client, reader, tmp_path)


async def test_a_replayed_letter_runs_once_and_is_gone(running: Running) -> None:
    """M08: a second replay of it is refused, and changes nothing; others stay where they are."""
    one, other = await running.take("a", [1, 2])
    await running.client.entity(Till, "a").unlock()
    done = await running.run("replay", "Till", "a", one)
    assert (done.returncode, done.stdout) == (0, f"replayed Till/a {one}\n"), done.stderr
    assert await running.taken("a", 1) == [1]
    said = await running.refused("replay", "Till", "a", one)
    assert "Till/a has no dead letter" in said
    assert await running.taken("a", 1) == [1]
    assert await names(running.reader) == [("a", int(other))]


async def test_all_letters_of_an_entity_are_replayed_in_the_order_in_which_they_died(running: Running) -> None:
    """M08: oldest first, and what dies again meanwhile is another letter, left for the next time."""
    await running.take("a", [3, 1, 2])
    await running.take("b", [9])
    await running.client.entity(Till, "a").unlock()
    done = await running.run("replay", "Till", "a", "--all")
    assert (done.returncode, done.stdout) == (0, "replayed 3\n"), done.stderr
    assert await running.taken("a", 3) == [3, 1, 2]
    again = await running.run("replay", "Till", "--all")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("replayed Till/b "), "of the whole kind there is one left, and its till is locked"
    ((id, number),) = await until_dead(running.reader, 1)
    assert id == "b"
    assert (await running.reader.dead_letter("Till", id, number))["arguments"]["amount"] == 9
    await running.client.entity(Till, "b").unlock()
    await running.run("replay", "Till", "b", str(number))
    assert await running.taken("b", 1) == [9]
    none_left = await running.run("replay", "Till", "--all")
    assert (none_left.returncode, none_left.stdout) == (0, "no dead letters\n")


async def test_letters_are_dropped_only_when_that_is_meant(running: Running) -> None:
    """M08: asked first, unless --yes says so; what was dropped is gone for ever."""
    one, other, third = await running.take("a", [1, 2, 3])
    unsure = await running.run("drop", "Till", "a", one)
    assert unsure.returncode == 1
    assert unsure.stderr.splitlines() == [
        f"drop Till/a {one} for ever? [y/N]:",
        "atoll: nothing was dropped: --yes drops without asking",
    ]
    assert len(await names(running.reader)) == 3
    dropped = await running.run("drop", "Till", "a", one, "--yes")
    assert (dropped.returncode, dropped.stdout) == (0, f"dropped Till/a {one}\n"), dropped.stderr
    assert await names(running.reader) == [("a", int(other)), ("a", int(third))]
    dropped = await running.run("drop", "Till", "--all", "--yes")
    assert (dropped.returncode, dropped.stdout) == (0, "dropped 2\n"), dropped.stderr
    assert await names(running.reader) == []
    assert "has no dead letter" in await running.refused("drop", "Till", "a", one, "--yes")


async def test_the_letters_of_one_app_are_never_sent_to_another(running: Running) -> None:
    """The hosts behind --url must be the app's: exit code 2, and nothing was done."""
    (number,) = await running.take("a", [1])
    said = await running.refused("drop", "Till", "a", number, "--yes", app="failing:other_app", code=2)
    assert "is the app 'failing', not 'other'" in said
    assert await names(running.reader) == [("a", int(number))]


@pytest.mark.parametrize("arguments", [b"", b"\xc1", b"\x80", b"\x81\xa6number\xa11", b"\x81\xa6number\xff"])
async def test_a_replay_of_no_letter_is_refused(running: Running, arguments: bytes) -> None:
    """R03: whatever stands where the number should, the caller is told."""
    with pytest.raises(atoll.InvalidCommand, match="dead letter"):
        await running.client.client.call(Request("Till", "a", "atoll:replay", arguments, timeout_s=5))
