"""Tells, messages and timers on virtual time, under faults drawn from a seed: everything tight, everything at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from sim_cluster import SETTINGS, SimCluster, nemesis
from simulator.loop import current_process
from simulator.simulation import Simulation
from stations import Judge, Letter, Plan, Station, Verdicts

import atoll
from atoll.actors.calls import Mode, Request
from atoll.persistence.pending import BEFORE_ALL_TIMERS, PendingView
from atoll.persistence.records import is_stream
from atoll.sharding.host import Host
from atoll.sharding.letters import DROP, REPLAY
from atoll.sharding.resident import Resident
from atoll.sharding.shard import OwnedShard, Phase

STATIONS = [f"s{number}" for number in range(7)]
TIGHT = {
    "mailbox_commands_max": 5,
    "accepted_in_memory_max": 8,
    "mailbox_page": 2,
    "mailbox_stored_max": 20,
    "outbox_messages_max": 20,
    "stream_window": 4,
    "timers_in_flight_max": 3,
    "tell_retry_first_s": 0.05,
    "tell_retry_max_s": 0.5,
    "tell_attempts_max": 3,
    "resuming_max": 2,
    "release_deadline_s": 1.0,
}
APP = atoll.App("delivery", entities=[Station], settings={**SETTINGS, **TIGHT})


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.sharding.timers.PAGE", 2)
    monkeypatch.setattr("atoll.sharding.owed.GROUP", 2)


async def workload(cluster: SimCluster, verdicts: Verdicts, name: str, luck: random.Random, commands: int) -> None:
    client = await cluster.client(name)
    tasks = []
    for number in range(commands):
        id, token = luck.choice(STATIONS), f"{name}.{number}"
        ref = client.entity(Station, id)
        method = "work_slowly" if luck.random() < 0.2 else "work"
        what = luck.random()
        if what < 0.3:
            work = verdicts.ask(name, id, ref, token, method)
        elif what < 0.9:
            work = verdicts.tell(name, id, ref, token, method)
        else:
            work = verdicts.tell_until_known(id, ref, f"{token}+")
        tasks.append(asyncio.ensure_future(work))
        if luck.random() < 0.3:
            await asyncio.sleep(luck.uniform(0, 0.6))
    await asyncio.gather(*tasks)
    await client.client.close()


async def keep_hosts(cluster: SimCluster) -> None:
    """Handlers kill hosts too: there are always two, also when the faults are over."""
    while True:
        await asyncio.sleep(1.0)
        if sum(process.life.value == "running" for process in cluster.hosts.values()) < 2:
            await cluster.start_host()


class Operator:
    """Looks at the dead letters in the store, and replays or drops some of them."""

    def __init__(self, cluster: SimCluster, luck: random.Random) -> None:
        self._cluster = cluster
        self._luck = luck
        self.seen: dict[tuple[int, int], Letter] = {}

    async def look(self) -> set[tuple[int, int]]:
        """Those that are there now."""
        there = set()
        for shard in range(self._cluster.settings.shards):
            for row in await self._cluster.store.read_dead_letters(shard):
                there.add((shard, row.number))
                self.seen.setdefault((shard, row.number), Letter(row))
        return there

    async def work(self) -> None:
        client = await self._cluster.client("operator")
        while True:
            await asyncio.sleep(self._luck.uniform(0.2, 1.0))
            there = [key for key in sorted(await self.look()) if not self.seen[key].act]
            if not there or self._luck.random() < 0.3:
                continue
            letter = self.seen[self._luck.choice(there)]
            letter.act = self._luck.choice((REPLAY, REPLAY, DROP))
            arguments = msgspec.msgpack.encode({"number": letter.number})
            request = Request("Station", letter.id, letter.act, arguments, Mode.ASK, timeout_s=5.0)
            try:
                await client.client.call(request)
            except atoll.OutcomeUnknown:
                continue
            except atoll.NotExecuted:
                letter.act = ""
                continue
            letter.done = True


class Watch:
    """What must hold at every moment of every host, and the highest that was seen."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self._shards: dict[Host, dict[OwnedShard, None]] = {}
        """Also those that a host has lost: turns of theirs may still run."""
        self.highest: dict[str, int] = {}

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            for incarnation, process in self._cluster.hosts.items():
                if process.life.value == "running":
                    self.look(self._cluster.running[incarnation].host)

    def look(self, host: Host) -> None:
        settings = host.settings
        shards = self._shards.setdefault(host, {})
        shards.update(dict.fromkeys(host.shards.values()))
        residents = [resident for shard in shards for resident in shard.residents.values()]
        owed = sum(pending.entry != 0 for resident in residents for pending in in_memory(resident))
        residents = [resident for resident in residents if resident.shard.phase is not Phase.CLOSED]
        ticks = sum(pending.timer is not None for resident in residents for pending in in_memory(resident))
        assert host._holdings.in_memory == owed, (
            f"host {host.incarnation} counts {host._holdings.in_memory}, not {owed}"
        )
        assert sum(host._timers._in_flight.values()) == ticks, f"host {host.incarnation}"
        assert ticks <= settings.timers_in_flight_max
        stored = sum(resident.backlog.stored for resident in residents if resident.backlog is not None)
        stored += sum(entries for shard in host.shards.values() for entries in shard.backlog.values())
        assert host._holdings.stored == stored, f"host {host.incarnation}"
        self._high("ticks", ticks)
        self._high("in memory", owed)
        self._high("stored", host._holdings.stored)
        self._high("outbox", host._staging.messages)
        self._high("mailbox", max([resident.queued() for resident in residents], default=0))
        outbox = sum(len(shard.outbox) for shard in host.shards.values())
        assert host._staging.messages == outbox
        for shard in host.shards.values():
            for client, window in shard.windows.items():
                if is_stream(client):
                    self._high("stream window", len(window))
        for lane in self._cluster.running[host.incarnation]._courier._lanes.values():
            assert len(lane._entered) <= settings.stream_window

    def _high(self, what: str, value: int) -> None:
        self.highest[what] = max(value, self.highest.get(what, 0))


def in_memory(resident: Resident) -> Iterator[Any]:
    if resident.running is not None:
        yield resident.running
    yield from resident.waiting()


async def pending(cluster: SimCluster) -> list[str]:
    """What is not done yet, anywhere."""
    left = []
    shards = await cluster.store.shards()
    for row, work in zip(shards, await cluster.store.read_pending(range(len(shards))), strict=True):
        number = row.shard
        if row.owner not in cluster.running or cluster.hosts[row.owner].life.value != "running":
            left.append(f"shard {number} has no running owner")
            continue
        shard = cluster.running[row.owner].host.shards.get(number)
        if shard is None:
            left.append(f"shard {number} is not open")
            continue
        left += [f"shard {number}: {mailbox}" for mailbox in work.mailboxes]
        left += [f"shard {number}: {message}" for message in work.outbox]
        left += [f"shard {number}: {t}" for t in await cluster.store.read_timers(number, BEFORE_ALL_TIMERS, 2**60, 99)]
        view = PendingView(shard.overlay)
        left += [f"shard {number}: {key} has entries in the overlay" for key in view.mailboxes()]
        left += [f"shard {number}: {message} in the overlay" for message in view.outbox([])]
        timers, _ = view.timers([], BEFORE_ALL_TIMERS, 2**60, 99)
        left += [f"shard {number}: {timer} in the overlay" for timer in timers]
        if shard.position != shard.committed_position or shard.overlay.dirty.records or shard.overlay.frozen:
            left.append(f"shard {number}: not everything is in the tables")
        left += [f"shard {number}: {resident.key} at work" for resident in shard.residents.values() if busy(resident)]
    for incarnation, process in cluster.hosts.items():
        if process.life.value == "running" and cluster.running[incarnation].host._holdings.in_memory:
            left.append(f"host {incarnation} has something in memory")
    return left


def busy(resident: Resident) -> bool:
    return resident.scheduled or bool(list(in_memory(resident))) or resident.backlog is not None


async def quiet(cluster: SimCluster, timeout_s: float = 300.0) -> None:
    """Wait until nothing is left to do."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while left := await pending(cluster):
        assert loop.time() < end, "\n".join(["never done:", *left])
        await asyncio.sleep(0.1)


def check_counters(cluster: SimCluster) -> None:
    """Nothing is counted that is not there."""
    for incarnation, process in cluster.hosts.items():
        if process.life.value != "running":
            continue
        running = cluster.running[incarnation]
        host = running.host
        holdings, staging, settings = host._holdings, host._staging, host.settings
        assert (holdings.in_memory, holdings.stored, holdings.bytes) == (0, 0, 0), f"host {incarnation}"
        assert (staging.messages, staging.bytes, staging.room) == (0, 0, settings.outbox_messages_max)
        assert host._timers._in_flight == {}
        assert not host._paging._resuming
        assert host._paging._permits._value == settings.resuming_max
        assert not host._accepting._waiting
        assert not host._accepting._due
        assert running.server.unanswered == (0, 0)
        assert not running._courier._lanes
        for shard in host.shards.values():
            assert not shard.outbox
            assert not shard.delivered
            assert not shard.backlog
            assert len(shard.timers) == 0


async def chaos(cluster: SimCluster, plan: Plan, *, seconds: float = 20.0, commands: int = 80) -> dict[str, int]:
    seed = plan.seed
    await cluster.open()
    cluster.start_coordinator(hosts_wanted=2)
    await cluster.start_host()
    await cluster.start_host()
    verdicts, operator, watch = Verdicts(), Operator(cluster, random.Random(f"{seed}/operator")), Watch(cluster)
    work = [
        asyncio.ensure_future(workload(cluster, verdicts, name, random.Random(f"{seed}/{name}"), commands))
        for name in ("X", "Y")
    ]
    keeping, watching, operating = (
        asyncio.ensure_future(work) for work in (keep_hosts(cluster), watch.watch(), operator.work())
    )
    faults = await nemesis(cluster, random.Random(f"{seed}/chaos"), seconds)
    assert faults > 3
    for process in cluster.hosts.values():
        process.resume()
    await cluster.start_host()
    await asyncio.gather(*work)
    await ended(operating)
    plan.busy = False
    reader = await cluster.client("reader")
    for id in STATIONS:
        await done_for_sure(reader.entity(Station, id).finish, f"finish {id}")
    await quiet(cluster)
    check_counters(cluster)
    await ended(watching)
    await ended(keeping)
    there = await operator.look()
    for key, letter in operator.seen.items():
        letter.gone = key not in there
        assert letter.act or not letter.gone, f"{key} went by itself"
        assert letter.gone or not letter.done, f"{key} is still there"
    logs = {id: await reader.entity(Station, id).read() for id in STATIONS}
    sent = {id: await reader.entity(Station, id).counts() for id in STATIONS}
    Judge(plan, logs, sent, list(operator.seen.values()), verdicts).check()
    assert sum(fate == "accepted" for fate in verdicts.told.values()) > commands / 4
    assert sum(map(len, sent.values())) > len(STATIONS)
    assert all(watch.highest.values()), f"nothing was tight: {watch.highest}"
    return watch.highest


async def ended(task: asyncio.Task[None]) -> None:
    """End what goes on in the background; raises what it raised."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def done_for_sure(command: Any, command_id: str) -> None:
    while True:
        try:
            await command.using(command_id=command_id, timeout=5.0)()
        except (atoll.OutcomeUnknown, atoll.NotExecuted):
            continue
        return


def kill_this_process() -> None:
    process = current_process()
    assert process is not None
    process.kill()


@pytest.mark.parametrize("seed", range(int(os.environ.get("CHAOS_SEEDS", "12"))))
def test_what_is_owed_is_done_once_and_in_order_under_random_faults(seed: int) -> None:
    """M01, M05, M06, M07, M08, M09, M10, M14, S08, J15, PR13, PR23, PR24, PR28: clients tell and ask, entities send and
    schedule, handlers fail, wait and kill their hosts, while everything is killed, stopped, cut and moved. Each accepted
    tell and each message ends once, by its run or as a dead letter; what a sender sent to one entity runs in order; each
    schedule ticks as it says; and in the end no host counts, holds or stores anything of it."""
    with Simulation(f"delivery-{seed}") as simulation:
        plan = Plan(seed, STATIONS, kill=kill_this_process)
        simulation.run(chaos(SimCluster(simulation, app=APP, resources=plan), plan))
