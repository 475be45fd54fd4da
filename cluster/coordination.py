"""The coordinator's shell: reads the store, lets the pure coordinator decide, writes, and pokes the hosts.

It keeps a connection to every host. That it closes is the fast sign of a death, and a new connection that a live kernel
refuses is the proof (a host closes its listener only by dying). While it is down, everything placed keeps working.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ..actors.errors import StoreError
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.spi import HostRow, HostState, ShardRow, Store
from ..sharding.coordinator import Coordinator
from ..sharding.messages import Message, Poke
from .link import Access, Link
from .network import Network, Probe
from .token import Token
from .wire import Welcome

log = logging.getLogger("atoll.coordinator")

PROBE_TIMEOUT_S = 0.5
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
        hosts_wanted: int = 1,
    ) -> None:
        """`hosts_wanted`: when no living host has any shard as this coordinator begins, nothing is placed before so
        many are live (or `GATHER_S` are over), so that the first ones of a starting cluster do not take everything."""
        self._access = Access(app_name=app_name, token=token, settings=settings, world=world, network=network)
        self._store = store
        self._settings = settings
        self._world = world
        self._network = network
        self.hosts_wanted = hosts_wanted
        self._gathering_since: float | None = None
        self._gathered = False
        self._coordinator = Coordinator(settings.lease_s, reads_gap_max_s=settings.lease_s / 2)
        self.placing = True
        """False: shards that are given back stay free (the app is being stopped)."""
        self._links: dict[int, Link] = {}
        self._dialing: set[int] = set()
        self._dead: set[int] = set()
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
                log.warning("the store does not answer, looking again: %s", error)
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
        decisions = self._coordinator.decide(began, ended, hosts, shards, frozenset(self._dead))
        by_incarnation = {host.incarnation: host for host in hosts}
        for incarnation, renewals in decisions.condemn:
            if await self._store.condemn(incarnation, renewals):
                address = by_incarnation[incarnation].address
                log.warning("host %d at %s is condemned", incarnation, address, extra=about(incarnation=incarnation))
                self.poke()  # its shards are given away in the next round, on fresh facts
        if decisions.assign and self.placing and self._may_place(hosts, shards):
            changed = await self._store.assign(decisions.assign)
            log.info("assigned %d shards", len(changed))
            for incarnation in {assignment.incarnation for assignment in decisions.assign}:
                if incarnation in self._links:
                    self._links[incarnation].send(Poke())

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
            await Link(self, host.address, self._access, role="coordinator").open()
        except (OSError, ValueError) as error:
            log.debug(
                "no connection to host %d: %s", host.incarnation, error, extra=about(incarnation=host.incarnation)
            )
            self._suspect(host.incarnation)
        finally:
            self._dialing.discard(host.incarnation)

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        self._links[welcome.incarnation] = link
        self._suspects.discard(welcome.incarnation)
        if not self._gathered:
            self.poke()  # it may be the one that was waited for

    def received(self, link: Link, messages: list[Message]) -> None:
        """Hosts tell a coordinator nothing that it acts on: its facts are the store's."""

    def closed(self, link: Link, reason: str) -> None:
        for incarnation in [i for i, known in self._links.items() if known is link]:
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
