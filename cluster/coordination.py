"""The coordinator's shell: reads the store, lets the pure coordinator decide, writes, and pokes the hosts.

It keeps a connection to every host. That it closes is the fast sign of a death, and a new connection that a live kernel
refuses is the proof (a host closes its listener only by dying). While it is down, everything placed keeps working.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..actors.errors import StoreError, StoreUnavailable
from ..actors.logs import about
from ..actors.outage import Outage
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import HostRow, HostState, ShardRow, Store
from ..persistence.stripes import ONLY, Stripe
from ..sharding.allocation import Bounds, Move
from ..sharding.coordinator import Coordinator
from ..sharding.messages import Load, Message, Poke
from .link import Access, Link
from .network import Network, Probe
from .stripe_hosts import StripeDirectory
from .token import Token
from .wire import Welcome

log = logging.getLogger("atoll.coordinator")

PROBE_TIMEOUT_S = 0.5
LOAD_WEIGHT = 0.3
"""Of a new report in the average: about six reports until a change counts in full."""
LOGS_LOOK_S = 5.0
"""How often it looks for logs that nobody needs any more."""
GATHER_S = 5.0
"""How long the first living host waits for the others: they start within a second or two of each other."""


class Coordination:
    def __init__(
        self,
        app_name: str,
        *,
        store: Store,
        settings: Settings,
        world: World,
        network: Network,
        token: Token,
        version: str = "",
        hosts_wanted: int = 1,
        stripe: Stripe = ONLY,
        directory: StripeDirectory | None = None,
    ) -> None:
        """`stripe`: that of the store. `directory`: shared by the coordinators of all stripes; None where there is only
        one. `version`: of the app, as in `Coordinator`. `hosts_wanted`: when no living host has any shard as this
        coordinator begins, nothing is placed before so many are live (or `GATHER_S` are over), so that the first ones
        of a starting cluster do not take everything."""
        self._access = Access(app_name=app_name, token=token, settings=settings, world=world, network=network)
        self._store = store
        self._outage = Outage(log)
        self._settings = settings
        self._world = world
        self._network = network
        self.hosts_wanted = hosts_wanted
        self._gathering_since: float | None = None
        self._gathered = False
        bounds = Bounds(moves_under_way=settings.moves_max, moves_per_round=settings.moves_max)
        self._coordinator = Coordinator(
            settings.lease_s, reads_gap_max_s=settings.lease_s / 2, bounds=bounds, version=version
        )
        self.draining_nodes: frozenset[str] = frozenset()
        """Nodes that are about to go: their hosts are drained."""
        self._loads: dict[int, dict[int, float]] = {}
        """Host -> shard -> CPU seconds per second, as it last said."""
        self._moving: dict[int, tuple[Move, float]] = {}
        """Shard -> the move under way that this coordinator asked for, and since when."""
        self.placing = True
        """False: shards that are given back stay free (the app is being stopped)."""
        self._stripe = stripe
        self._directory = StripeDirectory(stripe.count) if directory is None else directory
        self._links: dict[int, Link] = {}
        self._dialing: set[int] = set()
        self._dead: set[int] = set()
        self._writes_failed = False
        """Since the last one, a condemnation, was tried."""
        self._suspects: set[int] = set()
        self._look = asyncio.Event()
        self._unswept: list[int] = []
        self._swept: set[int] = set()
        self._logs_looked = float("-inf")
        self._sessions: dict[int, tuple[int, float]] = {}
        self._sessions_looked = float("-inf")

    def poke(self) -> None:
        """Look now."""
        self._look.set()

    async def run(self) -> None:
        while True:
            try:
                await self.step()
                await self._sweep_logs()
                await self._expire_sessions()
            except StoreError as error:
                self._outage.failed(self._world.monotonic(), "the store does not answer, looking again: %s", error)
            else:
                self._outage.worked(self._world.monotonic(), "the store answers again, after %.1f s")
            try:
                async with asyncio.timeout(self._settings.store_poll_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()

    async def step(self) -> None:
        """One round: read, decide, write."""
        began = self._world.monotonic()
        hosts = await self._store.hosts()
        shards = await self._store.shards()
        ended = self._world.monotonic()
        for host in hosts:
            if host.state is HostState.LIVE:
                self._connect(host)
        await self._prove([host for host in hosts if host.incarnation in self._suspects])
        await self._drain_nodes(hosts)
        decisions = self._coordinator.decide(
            began,
            ended,
            hosts,
            shards,
            frozenset(self._dead),
            met=frozenset(self._links) - self._suspects,
            loads=self._known_loads(hosts),
        )
        by_incarnation = {host.incarnation: host for host in hosts}
        for incarnation, renewals in await self._to_condemn(decisions.condemn):
            if await self._condemned(incarnation, renewals):
                address = by_incarnation[incarnation].address
                log.warning("host %d at %s is condemned", incarnation, address, extra=about(incarnation=incarnation))
                self.poke()  # its shards are given away in the next round, on fresh facts
        self._moving = {
            row.shard: self._moving[row.shard]
            for row in shards
            if row.shard in self._moving and self._moving[row.shard][0].target in (row.target, row.assigned)
        }
        if not self.placing or not self._may_place(hosts, shards):
            return
        if decisions.assign:
            changed = await self._store.assign(decisions.assign)
            log.info("assigned %d shards", len(changed))
            assigned: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for a in decisions.assign:
                if a.shard in changed:
                    assigned[a.incarnation].append((a.shard, a.expected_epoch + 1))
            self._poke_hosts(assigned)
        if decisions.move:
            changed = await self._store.move(decisions.move)
            owners = {row.shard: row.owner for row in shards}
            self._moving.update((m.shard, (m, ended)) for m in decisions.moves if m.shard in changed)
            log.info("moving %d shards", len(changed))
            self._poke_hosts({owner: [] for shard in changed if (owner := owners[shard]) is not None})

    async def _to_condemn(self, silent: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those who had a store to renew at. A full disk is read as ever: who could not be condemned for it could not
        renew either, so when it takes writes again all have a whole lease for their next renewal. A session that nobody
        uses is the write that shows it; it expires. Raises `StoreUnavailable` while it fails."""
        if silent and self._writes_failed:
            await self._store.open_session()
            self._writes_failed = False
            self._coordinator.count_again()
            return [(incarnation, renewals) for incarnation, renewals in silent if incarnation in self._dead]
        return list(silent)

    async def _condemned(self, incarnation: int, renewals: int) -> bool:
        try:
            return await self._store.condemn(incarnation, renewals)
        except StoreUnavailable:
            self._writes_failed = True
            raise

    def moves(self) -> list[dict[str, Any]]:
        """Moves under way: `shard`, `from`, `to` (incarnations), `why`, `since_s` (how long)."""
        now = self._world.monotonic()
        return [
            {
                "shard": m.shard,
                "from": m.source,
                "to": m.target,
                "why": m.reason.value,
                "since_s": round(now - since, 1),
            }
            for m, since in self._moving.values()
        ]

    def _poke_hosts(self, assigned: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        for incarnation, claims in assigned.items():
            if incarnation in self._links:
                self._links[incarnation].send(Poke(tuple(claims)))

    async def _drain_nodes(self, hosts: Sequence[HostRow]) -> None:
        for host in hosts:
            if host.node in self.draining_nodes and host.state is HostState.LIVE and not host.draining:
                log.warning("host %d is drained: its node goes", host.incarnation)
                await self._store.set_draining(host.incarnation, True)

    def _known_loads(self, hosts: Sequence[HostRow]) -> dict[int, float]:
        """Of all shards, once every live host has said: half of the truth would move the wrong ones."""
        live = {host.incarnation for host in hosts if host.state is HostState.LIVE}
        for gone in self._loads.keys() - live:
            del self._loads[gone]
        if not live <= self._loads.keys():
            return {}
        return {shard: load for loads in self._loads.values() for shard, load in loads.items()}

    def _may_place(self, hosts: Sequence[HostRow], shards: Sequence[ShardRow]) -> bool:
        if self._gathered:
            return True
        # Only those that this coordinator has met: rows of an earlier life of the cluster look alive for a while.
        live = {host.incarnation for host in hosts if host.state is HostState.LIVE and host.incarnation in self._links}
        now = self._world.monotonic()
        if live and self._gathering_since is None:
            self._gathering_since = now
        self._gathered = (
            len(live) >= self.hosts_wanted
            or any(row.owner in live or row.assigned in live for row in shards)
            or (self._gathering_since is not None and now - self._gathering_since > GATHER_S)
        )
        return self._gathered

    # ---- connections: the fast sign, and the proof -----------------------------------------------------------------

    def _connect(self, host: HostRow) -> None:
        if host.incarnation not in self._links and host.incarnation not in self._dialing:
            self._dialing.add(host.incarnation)
            self._world.spawn(self._dial(host), f"atoll-coordinator-dial-{host.incarnation}")

    async def _dial(self, host: HostRow) -> None:
        try:
            await Link(self, host.address, self._access, role="coordinator", stripe=self._stripe.index).open()
        except (OSError, ValueError) as error:
            log.debug(
                "no connection to host %d: %s", host.incarnation, error, extra=about(incarnation=host.incarnation)
            )
            self._suspect(host.incarnation)
        finally:
            self._dialing.discard(host.incarnation)

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        self._links[welcome.incarnation] = link
        self._directory.met(self._stripe.index, link)
        self._suspects.discard(welcome.incarnation)
        if not self._gathered:
            self.poke()  # it may be the one that was waited for

    def received(self, link: Link, messages: list[Message]) -> None:
        """Hints: its facts are the store's."""
        for message in messages:
            if type(message) is Poke:
                self.poke()
            elif type(message) is Load:
                self._take_load(link, message)

    def _take_load(self, link: Link, message: Load) -> None:
        """Smoothed over the last few reports, so that a moment's work moves nothing."""
        for incarnation in self._behind(link):
            before = self._loads.get(incarnation, {})
            now = {shard: busy_us / 1000 / max(1, message.interval_ms) for shard, busy_us in message.shards}
            self._loads[incarnation] = {
                shard: load if shard not in before else before[shard] + LOAD_WEIGHT * (load - before[shard])
                for shard, load in now.items()
            }

    def _behind(self, link: Link) -> list[int]:
        """The host that this connection leads to, if it is still that host's."""
        return [incarnation for incarnation, known in self._links.items() if known is link]

    def closed(self, link: Link, reason: str) -> None:
        self._directory.lost(self._stripe.index, link)
        for incarnation in self._behind(link):
            del self._links[incarnation]
            self._suspect(incarnation)

    def _suspect(self, incarnation: int) -> None:
        self._suspects.add(incarnation)
        self.poke()

    async def _prove(self, suspects: Sequence[HostRow]) -> None:
        """All at once: one after the other, a few that do not answer would take longer than the gap between two reads
        that the counting of leases allows, and no silent host would ever be condemned."""
        live = [host for host in suspects if host.state is HostState.LIVE]
        self._suspects.difference_update(host.incarnation for host in suspects if host not in live)
        probes = await asyncio.gather(*(self._network.probe(host.address, PROBE_TIMEOUT_S) for host in live))
        for host, probe in zip(live, probes, strict=True):
            if probe is not Probe.REFUSED:
                continue  # stopped, cut off or busy: its lease decides
            self._dead.add(host.incarnation)
            self._suspects.discard(host.incarnation)

    # ---- what is left of the dead ----------------------------------------------------------------------------------

    async def _sweep_logs(self) -> None:
        """Empty one finished log a round. Successors do it themselves with their first checkpoint; this finds what was
        left when one of them died in between, or when a host gave everything back and ended."""
        if self._unswept:
            incarnation = self._unswept.pop()
            rows = await self._store.read_log(incarnation)
            if len(rows) > 1:  # the newest stays for ever
                await self._store.delete_log_rows(incarnation, rows[-1].n)
            self._swept.add(incarnation)
        elif self._world.monotonic() - self._logs_looked > LOGS_LOOK_S:
            self._logs_looked = self._world.monotonic()
            self._unswept = sorted(set(await self._store.finished_logs()) - self._swept, reverse=True)

    # ---- sessions --------------------------------------------------------------------------------------------------

    async def _expire_sessions(self) -> None:
        """Forget clients that no host has renewed for the session time, counted on this process's own clock."""
        settings = self._settings
        began = self._world.monotonic()
        if began - self._sessions_looked < settings.session_touch_s:
            return
        sessions = await self._store.sessions()
        ended = self._world.monotonic()
        if began - self._sessions_looked > 3 * settings.session_touch_s:
            self._sessions.clear()  # what happened in the gap is not known
        self._sessions_looked = ended
        silent = []
        seen = {}
        for client, renewals in sessions.items():
            known, since = self._sessions.get(client, (-1, ended))
            since = since if known == renewals else ended
            seen[client] = (renewals, since)
            if began - since > settings.session_s:
                silent.append((client, renewals))
        self._sessions = seen
        if silent:
            gone = await self._store.expire_sessions(silent)
            log.info("%d client sessions expired", len(gone))
