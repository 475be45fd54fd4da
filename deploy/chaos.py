"""Faults on a real Ray cluster under steady load: nodes join, drain and leave, processes are killed and stopped, and
the history of two clients tells whether anything was lost, doubled, reordered or read stale.

    python deploy/chaos.py --minutes 1 --json chaos.json           (or: make chaos ARGS="--minutes 1 --json chaos.json")
    python deploy/chaos.py --fault "drain" --fault "node killed"   only these, each once
    python deploy/chaos.py --store postgresql      on a PostgreSQL server of its own, which fails, too

It starts Ray nodes on this machine, an app on them, and two client processes, one inside Ray and one over TCP. One
fault is a round: the cluster is whole, the load runs, the fault is done and *seen to bite* (a host that was stopped was
ended or had its writes refused; moves were under way when the coordinator died), the cluster is whole again, the load
ends, and all that was sent in the round is compared with what the entities hold. Faults come in a random order, each
kind once before any of them comes again. It exits with 0 when nothing was wrong and every fault bit, and leaves nothing
behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from postgres_server import PostgresServer
from rich.console import Console
from rich.table import Table
from three_nodes import Node, RayNodes

import atoll
from atoll.actors.errors import StoreUnavailable
from atoll.actors.settings import Settings
from atoll.persistence.open import open_store
from atoll.persistence.spi import HostRow, HostState, ShardRow, ShardState, Store

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"
sys.path.append(str(HELPERS))  # a folder of modules, no package

from ledger import Findings, app  # noqa: E402 - needs the line above
from steady_load import SteadyLoad, failures, findings_of, loaded_shards, longest_gap_s, steady_load  # noqa: E402

SHARDS = 256
LEASE_S = Settings().lease_s
START_TIMEOUT_S = 120.0
PATIENCE_S = 120.0
"""For anything that has to come about: a busy machine starts a Ray node in 20 s, and Ray notices a dead one in 15."""
LOOK_S = 0.02
CLOSE_LOOK_S = 0.002
"""Where a moment is to be caught."""
ANSWERS = 300
"""Of each client, before a fault and after it."""
NODES_MIN, NODES_MAX = 3, 5
"""Of a mix of faults: with fewer nothing can leave, and more raylets take the machine from the load."""
GROWTH = {"joins": 2, "joins and a leave at once": 2, "come and go": 1}
"""By how many nodes a fault needs more, if only for a while."""
TRIES = 3
"""At a fault that has to meet a moment."""
SHARE_WITHIN = 0.1
KILLED_S = (2.0, 2 * LEASE_S)
"""How long there is no PostgreSQL server, at random: the load would have had its answers in less."""
STOPPED_S = (1.5 * LEASE_S, 4 * LEASE_S)
"""How long it stands still: beyond every lease, and at times beyond the store's time-out for a statement (6 s)."""
GCS_SURVIVES = tuple(int(part) for part in version("ray").split(".")[:2]) >= (2, 60)
"""Its embedded storage (alpha) is in this version of Ray."""

console = Console(stderr=True)


class StoreKind(enum.StrEnum):
    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class ChaosFailed(Exception):
    """It could not be done; the message says what was waited for."""


@dataclass(frozen=True)
class Facts:
    """What the store says at one moment."""

    hosts: Mapping[int, HostRow]
    """Live ones, by incarnation."""
    condemned: frozenset[int]
    """Those whose logs are not sealed yet."""
    shards: Sequence[ShardRow]

    def of(self, incarnation: int) -> frozenset[int]:
        """What it serves, or is about to."""
        return frozenset(row.shard for row in self.shards if incarnation in (row.owner, row.assigned))

    def owners(self) -> dict[int, int]:
        """Shard -> who serves it; shards that nobody serves are left out."""
        return {row.shard: row.owner for row in self.shards if row.owner in self.hosts and row.owner is not None}

    def served(self) -> bool:
        return len(self.owners()) == len(self.shards) and all(row.state is ShardState.OWNED for row in self.shards)

    def whole(self, nodes: Mapping[str, Any]) -> bool:
        """Every shard is served, nothing moves, and the host of each node has its share."""
        takers = [host.incarnation for host in self.hosts.values() if not host.draining]
        if not self.served() or any(row.target is not None for row in self.shards):
            return False
        if sorted(host.node for host in self.hosts.values()) != sorted(nodes) or len(takers) != len(nodes):
            return False
        share = len(self.shards) / len(takers)
        served = Counter(self.owners().values())
        return all(abs(served[taker] - share) <= max(1, SHARE_WITHIN * share) for taker in takers)


@dataclass(frozen=True)
class Bite:
    """What a fault did."""

    shards: frozenset[int]
    """Whose callers may have noticed."""
    bit: bool
    told: str
    broken: str = ""
    """A promise about this fault that was not kept, in words."""
    away_s: float = 0.0
    """How long the store was away; a server that was killed recovers before it answers."""


@dataclass
class Fault:
    """One round."""

    name: str
    bite: Bite
    seconds: float
    """From the fault until all was whole again."""
    gap_s: float
    """The longest time between two answers that a steady caller of an affected shard saw."""
    unowned_s: float
    """The longest time that a shard was seen without an owner."""
    moves: int
    """Changes of owners that were seen."""
    operations: int
    failed: list[str]
    """What callers were told instead of an answer."""
    findings: Findings


class Watch:
    """Looks at the shards' rows all the time: how long one had no owner, how often one changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._task = asyncio.create_task(self._look())
        self.begin()

    def begin(self) -> None:
        self.unowned_s = 0.0
        self.moves = 0
        self._owner: dict[int, int] = {}
        self._since: dict[int, float] = {}

    async def _look(self) -> None:
        while True:
            began = time.monotonic()
            try:
                rows = await self._store.shards()
            except StoreUnavailable:
                rows = []  # it is the store that fails
            for row in rows:
                if row.owner is None:
                    since = self._since.setdefault(row.shard, began)
                    self.unowned_s = max(self.unowned_s, began - since)
                    continue
                self._since.pop(row.shard, None)
                self.moves += self._owner.get(row.shard, row.owner) != row.owner
                self._owner[row.shard] = row.owner
            await asyncio.sleep(LOOK_S)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class Chaos:
    """A running cluster with its load, and the faults. Each fault leaves it whole."""

    def __init__(
        self,
        nodes: RayNodes,
        store: Store,
        load: SteadyLoad,
        token_file: str,
        seed: int,
        postgres: PostgresServer | None = None,
    ) -> None:
        """`postgres`: the server that the store is on, if it is on one."""
        self.faults = faults_on(StoreKind.SQLITE if postgres is None else StoreKind.POSTGRESQL)
        self.nodes = nodes
        self.store = store
        self.load = load
        self.seed = seed
        self.luck = random.Random(seed)
        self.watch = Watch(store)
        self.done: list[Fault] = []
        self.token_file = token_file
        self._postgres = postgres
        self._by_id: dict[str, Node] = {node.node_id: node for node in nodes.nodes}
        self._loaded = loaded_shards(SHARDS)
        self._kept: list[subprocess.Popen[bytes]] = []
        """Processes started here; they end with the nodes."""

    # ---- a round

    async def inflict(self, name: str, fault: Callable[[], Awaitable[Bite]] | None = None) -> Fault:
        """One fault under load, from whole to whole. `fault`: another one than that of this name."""
        told = f"{name} (seed {self.seed}, round {len(self.done)})"
        await self.whole()
        await self.load.begin(f"r{len(self.done)}")
        await self.load.more(ANSWERS)
        self.watch.begin()
        began = time.monotonic()
        try:
            bite = await (fault() if fault else self.faults[name](self))
            await self.whole()
        except (TimeoutError, RuntimeError, ChaosFailed) as error:
            raise ChaosFailed(f"{told}: {error}") from error
        over = time.monotonic()
        unowned_s, moves = self.watch.unowned_s, self.watch.moves
        await self.load.more(ANSWERS)
        operations = await self.load.end()
        async with self.connected() as cluster:
            findings = await findings_of(operations, cluster)
        gap_s = longest_gap_s(operations, bite.shards, began, over)
        done = Fault(told, bite, over - began, gap_s, unowned_s, moves, len(operations), failures(operations), findings)
        self.done.append(done)
        return done

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[atoll.Cluster]:
        """A client in this process, which knows nothing of Ray."""
        addresses = ",".join(host.address for host in (await self.facts()).hosts.values())
        async with atoll.connect(f"tcp://{addresses}", token_file=self.token_file) as cluster:
            yield cluster

    # ---- what there is

    async def facts(self) -> Facts:
        """Waits for a store that does not answer."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await self._facts()
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise ChaosFailed(f"the store does not answer: {error}") from error
                await asyncio.sleep(LOOK_S)

    async def _facts(self) -> Facts:
        hosts = await self.store.hosts()  # before the shards: an owner that is not among them is news
        live = {host.incarnation: host for host in hosts if host.state is HostState.LIVE}
        condemned = frozenset(host.incarnation for host in hosts if host.state is HostState.GONE)
        return Facts(live, condemned, await self.store.shards())

    async def until(self, condition: Callable[[Facts], bool], what: str, look_s: float = LOOK_S) -> Facts:
        deadline = time.monotonic() + PATIENCE_S
        while not condition(facts := await self.facts()):
            if time.monotonic() > deadline:
                shares = Counter(facts.owners().values())
                raise ChaosFailed(f"{what}: not so after {PATIENCE_S:g} s; {facts.hosts}, they serve {shares}")
            await asyncio.sleep(look_s)
        return facts

    async def whole(self) -> Facts:
        return await self.until(lambda facts: facts.whole(self._by_id), "the cluster is whole")

    def _loaded_of(self, facts: Facts, incarnation: int) -> frozenset[int]:
        """The shards of a host that have steady callers."""
        return frozenset(facts.of(incarnation) & self._loaded)

    def victim(self, facts: Facts, *, head: bool = True) -> HostRow:
        """A host with steady callers, drawn at random."""
        able = [
            host
            for incarnation, host in sorted(facts.hosts.items())
            if self._loaded_of(facts, incarnation) and (head or not self._by_id[host.node].head)
        ]
        return self.luck.choice(able)

    # ---- faults: processes

    async def kill_host(self) -> Bite:
        """SIGKILL of a host process. Its node gets another one."""
        facts = await self.facts()
        victim = self.victim(facts)
        shards = self._loaded_of(facts, victim.incarnation)
        process = _process(victim)
        process.kill()
        after = await self._relieved(victim)
        bit = not _runs(process) and not shards & after.of(victim.incarnation)
        return Bite(shards, bit, f"host {victim.incarnation}, pid {process.pid}")

    async def _relieved(self, victim: HostRow) -> Facts:
        """Once others serve all that it had, and its log is sealed."""

        def relieved(facts: Facts) -> bool:
            return victim.incarnation not in facts.hosts.keys() | facts.condemned and facts.served()

        return await self.until(relieved, f"others serve what host {victim.incarnation} had")

    async def stop_host(self) -> Bite:
        """SIGSTOP of a host until others serve what it had, then SIGCONT. It bit when the process was ended while it
        stood still (on SQLite, by its successor) or when it went on (by the coordinator), or ended itself because a
        write or a renewal of it was refused."""
        facts = await self.facts()
        victim = self.victim(facts)
        shards = self._loaded_of(facts, victim.incarnation)
        process = _process(victim)
        process.suspend()
        try:
            await self._relieved(victim)
            bit, told = not _runs(process), "ended while it stood still"
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        if not bit:
            deadline = time.monotonic() + PATIENCE_S
            while _runs(process):
                if time.monotonic() > deadline:
                    raise ChaosFailed(f"{process} was relieved, and still runs")
                await asyncio.sleep(LOOK_S)
            told = await asyncio.to_thread(self._last_words, process.pid)
            bit = not told or any(reason in told for reason in ("Fenced", "seal", "condemned"))
            told = told or "ended by the coordinator, which made another host on its node"
        return Bite(shards, bit, f"host {victim.incarnation}, pid {process.pid}: {told}")

    def _last_words(self, pid: int) -> str:
        """Why a host ended, as it logged it; empty when it was ended."""
        logs = self.nodes.folder.glob(f"session_2*/logs/worker-*-{pid}.err")
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines() if " ended: " in line]
        return lines[-1] if lines else ""

    async def kill_node(self, *, again: bool = True) -> Bite:
        """SIGKILL of a raylet (not the head's) with its workers. `again`: then a node joins in its place."""
        facts = await self.facts()
        victim = self.victim(facts, head=False)
        node = self._by_id[victim.node]
        shards = self._loaded_of(facts, victim.incarnation)
        process = _process(victim)
        killed = await asyncio.to_thread(self.nodes.kill, node.index)
        del self._by_id[node.node_id]
        bit = process.pid in killed and node.raylet_pid in killed
        await self._relieved(victim)
        if again:
            await self.whole()
            await self._add()
        return Bite(shards, bit, f"node {node.index}: {len(killed)} processes, host {victim.incarnation} among them")

    async def kill_coordinator(self) -> Bite:
        """SIGKILL of the coordinator's process. Ray makes another one."""
        process = await asyncio.to_thread(self.coordinator)
        process.kill()
        again = await self._another_coordinator(process)
        return Bite(self._loaded, not _runs(process), f"pid {process.pid}, then {again.pid}")

    async def kill_coordinator_amid_moves(self) -> Bite:
        """The same while a drain is under way: it goes on when the next one is there."""
        for _ in range(TRIES):
            bite = await self._kill_coordinator_amid_drain()
            if bite.bit:
                break
            await self.whole()  # the drain was over before its end was seen: once more
        return bite

    async def _kill_coordinator_amid_drain(self) -> Bite:
        facts = await self.facts()
        victim = self.victim(facts, head=False)
        shards = self._loaded_of(facts, victim.incarnation)
        process = await asyncio.to_thread(self.coordinator)
        draining = asyncio.create_task(self.load.inside.tell(drain=victim.node))
        await self.until(lambda facts: _moving(facts) > 0, "shards are moved", CLOSE_LOOK_S)
        process.kill()
        left = await self.facts()
        moving, owned = _moving(left), len(left.of(victim.incarnation))
        again = await self._another_coordinator(process)
        await draining
        await self._empty(victim)
        await self.load.inside.tell(undrain=victim.node)
        told = f"pid {process.pid} with {moving} moves under way and {owned} shards left, then {again.pid}"
        return Bite(shards, moving + owned > 0 and not _runs(process), told)

    async def kill_gcs(self, down_s: float = 0.0) -> Bite:
        """SIGKILL of Ray's GCS; commands are answered all the same. Then, after `down_s` at least, it is started again
        on its storage, and is asked something by a driver and by the coordinator. (Ray's own processes end after 60 s
        without it.)"""
        process = await asyncio.to_thread(self._ray_process, "gcs_server")
        began = time.monotonic()
        arguments, environment = process.cmdline(), process.environ()
        process.kill()
        await self.load.more(ANSWERS)
        while time.monotonic() - began < down_s:
            await self.load.more(ANSWERS)
        bit = not _runs(process)
        port = self.nodes.address.rpartition(":")[2]  # it was any free one: now it must be that one
        arguments = [f"--gcs_server_port={port}" if a.startswith("--gcs_server_port=") else a for a in arguments]
        again = await asyncio.to_thread(_start_detached, arguments, environment, self.nodes.folder / "gcs-again.log")
        self._kept.append(again)
        seconds = time.monotonic() - began
        await self.load.inside.tell(undrain=next(iter(self._by_id)))  # found by name, and it changes nothing
        return Bite(self._loaded, bit, f"pid {process.pid}, then {again.pid} after {seconds:.1f} s")

    def coordinator(self) -> psutil.Process:
        """Its process, as Ray titles it."""
        return self._ray_process("ray::CoordinatorActor")

    def _ray_process(self, name: str) -> psutil.Process:
        for process in self.nodes.processes():
            with contextlib.suppress(psutil.Error):
                if Path((process.cmdline() or [""])[0]).name.startswith(name):
                    return process
        raise ChaosFailed(f"there is no {name}")

    async def _another_coordinator(self, before: psutil.Process) -> psutil.Process:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(ChaosFailed):
                found = await asyncio.to_thread(self.coordinator)
                if found.pid != before.pid:
                    return found
            if time.monotonic() > deadline:
                raise ChaosFailed("Ray made no other coordinator")

    # ---- faults: the store

    async def kill_postgres(self, down_s: float | None = None) -> Bite:
        """SIGKILL of the PostgreSQL server with all its processes. It is started again after `down_s`."""
        server = self._server()
        down_s = self.luck.uniform(*KILLED_S) if down_s is None else down_s
        return await self._without_store(server.kill, server.restart, down_s)

    async def stop_postgres(self, down_s: float | None = None) -> Bite:
        """SIGSTOP of all its processes for `down_s`, then SIGCONT: connections stay open, and nobody answers."""
        server = self._server()
        down_s = self.luck.uniform(*STOPPED_S) if down_s is None else down_s
        return await self._without_store(server.suspend, server.resume, down_s)

    def _server(self) -> PostgresServer:
        assert self._postgres is not None, "this store is on no server"
        return self._postgres

    async def _without_store(self, down: Callable[[], None], up: Callable[[], None], down_s: float) -> Bite:
        """It bit when the load waited for the store; nobody may be condemned for that."""
        before = await self.facts()
        began = time.monotonic()
        await asyncio.to_thread(down)
        answers = asyncio.create_task(self.load.more(ANSWERS))
        try:
            answered, _ = await asyncio.wait({answers}, timeout=down_s)
        finally:
            await asyncio.to_thread(up)
        away_s = time.monotonic() - began
        await answers
        after = await self.whole()
        lost = sorted(before.hosts.keys() - after.hosts.keys())
        broken = f"hosts {lost} ended, though only the store was silent" if lost else ""
        told = f"down for {down_s:.1f} s, back after {away_s:.1f} s"
        return Bite(self._loaded, not answered, told, broken, away_s)

    # ---- faults: nodes that come and go

    async def drain(self, victim: HostRow | None = None) -> Bite:
        """A host is drained, and may have shards again when it is empty."""
        facts = await self.facts()
        victim = victim or self.victim(facts)
        shards = self._loaded_of(facts, victim.incarnation)
        empty = await self._drain(victim)
        bit = bool(shards) and victim.incarnation in empty.hosts
        await self.load.inside.tell(undrain=victim.node)
        return Bite(shards, bit, f"host {victim.incarnation} gave {len(facts.of(victim.incarnation))} shards away")

    async def _drain(self, victim: HostRow) -> Facts:
        """Returns when it serves nothing."""
        await self.load.inside.tell(drain=victim.node)
        return await self._empty(victim)

    async def _empty(self, victim: HostRow) -> Facts:
        return await self.until(
            lambda facts: facts.served() and not facts.of(victim.incarnation), f"host {victim.incarnation} is empty"
        )

    async def join(self, count: int = 2) -> Bite:
        """Nodes join: each gets a host, and that its share."""
        before = (await self.facts()).owners()
        joined = [await self._add() for _ in range(count)]
        after = await self.whole()
        return self._joined(joined, before, after)

    def _joined(self, joined: Sequence[Node], before: Mapping[int, int], after: Facts) -> Bite:
        by_node = {host.node: incarnation for incarnation, host in after.hosts.items()}
        shares = [len(after.of(by_node[node.node_id])) for node in joined]
        moved = frozenset(shard for shard, owner in after.owners().items() if before[shard] != owner)
        return Bite(moved & self._loaded, all(shares), f"the new hosts have {shares}")

    async def _add(self) -> Node:
        node = await asyncio.to_thread(self.nodes.add)
        self._by_id[node.node_id] = node
        return node

    async def leave(self) -> Bite:
        """A node is drained, and ends when it is empty."""
        facts = await self.facts()
        victim = self.victim(facts, head=False)
        return await self._leave(facts, victim)

    async def _leave(self, facts: Facts, victim: HostRow) -> Bite:
        shards = self._loaded_of(facts, victim.incarnation)
        node = self._by_id[victim.node]
        process = _process(victim)
        await self._drain(victim)
        killed = await asyncio.to_thread(self.nodes.kill, node.index)
        del self._by_id[node.node_id]
        bit = bool(facts.of(victim.incarnation)) and process.pid in killed
        return Bite(shards, bit, f"node {node.index} left, host {victim.incarnation} with it")

    async def join_and_leave(self) -> Bite:
        """Two nodes join while one is drained and leaves."""
        facts = await self.facts()
        victim = self.victim(facts, head=False)
        leaving = asyncio.create_task(self._leave(facts, victim))
        joined = [await self._add() for _ in range(2)]
        left = await leaving
        after = await self.whole()
        arrived = self._joined(joined, facts.owners(), after)
        return Bite(left.shards | arrived.shards, left.bit and arrived.bit, f"{left.told}; {arrived.told}")

    async def come_and_go(self, times: int = 1) -> Bite:
        """A node joins, gets its share, is drained and leaves; again and again."""
        bites = []
        for _ in range(times):
            bites.append(await self.join(1))
            facts = await self.whole()
            newest = max(facts.hosts)  # incarnations grow
            bites.append(await self._leave(facts, facts.hosts[newest]))
            await self.whole()
        shards = frozenset[int]().union(*(bite.shards for bite in bites))
        return Bite(shards, all(bite.bit for bite in bites), "; ".join(bite.told for bite in bites))

    # ---- many

    async def mix(self, minutes: float, say: Callable[[str], None]) -> None:
        """Faults in a random order, each kind once before any comes again, until the time is over."""
        end = time.monotonic() + 60 * minutes
        deck: list[str] = []
        while time.monotonic() < end:
            if not deck:
                deck = sorted(self.faults)
                self.luck.shuffle(deck)
            nodes = len(self._by_id)
            if nodes < NODES_MIN:
                await self.run("joins", say)
            elif nodes + GROWTH.get(deck[-1], 0) > NODES_MAX:
                await self.run("leave", say)
            else:
                await self.run(deck.pop(), say)

    async def run(self, name: str, say: Callable[[str], None]) -> None:
        fault = await self.inflict(name)
        problems = len(fault.findings.all()) + len(fault.failed) + bool(fault.bite.broken)
        say(
            f"{name}: {fault.bite.told}; gap {fault.gap_s * 1000:.0f} ms, whole after {fault.seconds:.1f} s, "
            f"{fault.moves} moves, {fault.operations} operations"
            + ("" if fault.bite.bit else " [red]did not bite[/red]")
            + (f" [red]{problems} problems[/red]" if problems else "")
        )

    def figures(self) -> dict[str, Any]:
        """What `--json` writes."""
        gaps: dict[str, list[float]] = defaultdict(list)
        for fault in self.done:
            if fault.gap_s:  # else no shard of a steady caller was concerned
                gaps[fault.name.partition(" (")[0]].append(fault.gap_s * 1000)
        return {
            "lost": sum(len(fault.findings.lost) for fault in self.done),
            "doubled": sum(len(fault.findings.doubled) for fault in self.done),
            "reordered": sum(len(fault.findings.reordered) for fault in self.done),
            "stale_reads": sum(len(fault.findings.stale_reads) for fault in self.done),
            "invented": sum(len(fault.findings.invented) for fault in self.done),
            "failed": sum(len(fault.failed) for fault in self.done),
            "operations": sum(fault.operations for fault in self.done),
            "faults": len(self.done),
            "faults_bit": sum(fault.bite.bit for fault in self.done),
            "gaps_ms": {
                name: {"count": len(ms), "p50": round(statistics.median(ms), 1), "max": round(max(ms), 1)}
                for name, ms in sorted(gaps.items())
            },
            "seed": self.seed,
        }

    def wrong(self) -> list[str]:
        """All that must not be, in words."""
        found = []
        for fault in self.done:
            found += [f"{fault.name}: {finding}" for finding in [*fault.findings.all(), *fault.failed]]
            if not fault.bite.bit:
                found.append(f"{fault.name} did not bite: {fault.bite.told}")
            if fault.bite.broken:
                found.append(f"{fault.name}: {fault.bite.broken}")
        return found


FAULTS: dict[str, Callable[[Chaos], Awaitable[Bite]]] = {
    "host killed": Chaos.kill_host,
    "host stopped": Chaos.stop_host,
    "node killed": Chaos.kill_node,
    "coordinator killed": Chaos.kill_coordinator,
    "coordinator killed amid moves": Chaos.kill_coordinator_amid_moves,
    "drain": Chaos.drain,
    "joins": Chaos.join,
    "leave": Chaos.leave,
    "joins and a leave at once": Chaos.join_and_leave,
    "come and go": Chaos.come_and_go,
}
if GCS_SURVIVES:
    FAULTS["GCS killed"] = Chaos.kill_gcs
FAULTS_OF_POSTGRES: dict[str, Callable[[Chaos], Awaitable[Bite]]] = {
    "PostgreSQL killed": Chaos.kill_postgres,
    "PostgreSQL stopped": Chaos.stop_postgres,
}


def faults_on(store: StoreKind) -> dict[str, Callable[[Chaos], Awaitable[Bite]]]:
    return FAULTS if store is StoreKind.SQLITE else FAULTS | FAULTS_OF_POSTGRES


def _process(host: HostRow) -> psutil.Process:
    assert host.process is not None
    return psutil.Process(host.process.pid)


def _runs(process: psutil.Process) -> bool:
    """A zombie has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _start_detached(arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as file:
        return subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _moving(facts: Facts) -> int:
    return sum(row.target is not None or row.state is not ShardState.OWNED for row in facts.shards)


@contextlib.asynccontextmanager
async def running(
    folder: Path, seed: int, *, nodes: int = 3, pause_s: float = 0.03, store: StoreKind = StoreKind.SQLITE
) -> AsyncIterator[Chaos]:
    """A fresh cluster with its load. Nothing of it outlives the `async with` but the folder, which is the caller's.
    `pause_s`: of each steady caller, between an answer and what it sends next."""
    async with contextlib.AsyncExitStack() as stack:
        made = contextlib.ExitStack()
        stack.push_async_callback(asyncio.to_thread, made.close)
        url, postgres = await asyncio.to_thread(made.enter_context, _own_store(store, folder))
        ray = await asyncio.to_thread(RayNodes.start, nodes, environment=_surviving(folder))
        stack.push_async_callback(asyncio.to_thread, ray.stop)
        started = await asyncio.to_thread(_start_app, ray, folder, url)
        looking = open_store(url)
        stack.push_async_callback(looking.close)
        await looking.open(app.name, SHARDS)
        load = await stack.enter_async_context(
            steady_load(
                app.name,
                started["url"],
                started["token_file"],
                ray_address=ray.address,
                folder=folder,
                seed=seed,
                shards=SHARDS,
                pause_s=pause_s,
            )
        )
        chaos = Chaos(ray, looking, load, started["token_file"], seed, postgres)
        stack.push_async_callback(chaos.watch.stop)
        yield chaos


def _surviving(folder: Path) -> dict[str, str]:
    """Ray's settings for a GCS that can be started again. With its own, in memory, Ray's drivers and actors give up."""
    if not GCS_SURVIVES:
        return {}
    (folder / "gcs").mkdir()
    return {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder / "gcs")}


@contextlib.contextmanager
def _own_store(kind: StoreKind, folder: Path) -> Iterator[tuple[str, PostgresServer | None]]:
    """The URL of an empty store, and the server that it is on."""
    if kind is StoreKind.SQLITE:
        yield f"sqlite:{folder / 'store'}", None
        return
    with PostgresServer.start() as server:
        yield server.create_store(app.name), server


def _start_app(nodes: RayNodes, folder: Path, store_url: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "RAY_"))}
    arguments = ["start", "ledger:app", "--app-dir", str(HELPERS), "--store", store_url, "--json"]
    run = subprocess.run(
        [str(Path(sys.executable).with_name("atoll")), *arguments, "--timeout", str(START_TIMEOUT_S)],
        env={**environment, "RAY_ADDRESS": nodes.address, "ATOLL_SHARDS": str(SHARDS)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * START_TIMEOUT_S,
        check=False,
    )
    if run.returncode != 0:
        raise ChaosFailed(f"atoll start ended with {run.returncode}: {run.stderr}")
    started: dict[str, Any] = json.loads(run.stdout)
    return started


# ---- command line

cli = typer.Typer(add_completion=False)


@cli.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.0, help="Go on with faults for so long.")] = 1.0,
    fault: Annotated[list[str] | None, typer.Option(help="Only this one, once; may be given several times.")] = None,
    store: Annotated[
        StoreKind, typer.Option(help="What keeps the app's data; `postgresql`: a server of its own.")
    ] = StoreKind.SQLITE,
    seed: Annotated[int | None, typer.Option(help="Replays the order of faults and their victims.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Faults on a real Ray cluster under steady load, and whether the history is one that can be."""
    known = faults_on(store).keys()
    unknown = sorted(set(fault or ()) - known)
    if unknown:
        raise typer.BadParameter(f"{unknown} is none of {sorted(known)}", param_hint="--fault")
    drawn = random.SystemRandom().randrange(2**32) if seed is None else seed
    console.print(f"seed {drawn}")
    folder = Path(tempfile.mkdtemp(prefix="atoll-chaos-"))
    try:
        figures, wrong = asyncio.run(_run(folder, drawn, minutes, fault or [], store))
    except ChaosFailed as error:
        console.print(f"[red]failed[/red] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")
    _show(figures)
    for line in wrong[:20]:
        console.print(f"[red]wrong[/red] {line[:500]}", soft_wrap=True)
    raise typer.Exit(1 if wrong else 0)


async def _run(
    folder: Path, seed: int, minutes: float, names: Sequence[str], store: StoreKind
) -> tuple[dict[str, Any], list[str]]:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    async with running(folder, seed, store=store) as chaos:
        if names:
            for name in names:
                await chaos.run(name, say)
        else:
            await chaos.mix(minutes, say)
        return chaos.figures(), chaos.wrong()


def _show(figures: Mapping[str, Any]) -> None:
    table = Table("fault", "times", "gap p50, ms", "max, ms")
    for name, gaps in figures["gaps_ms"].items():
        table.add_row(name, str(gaps["count"]), str(gaps["p50"]), str(gaps["max"]))
    console.print(table)
    counted = (
        "lost",
        "doubled",
        "reordered",
        "stale_reads",
        "invented",
        "failed",
        "operations",
        "faults",
        "faults_bit",
    )
    console.print("   ".join(f"{name} {figures[name]}" for name in counted))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    cli()
