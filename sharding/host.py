"""A host: one incarnation's whole data plane, put together. Everything it touches comes in from outside.

    connections --> Intake --> mailboxes --> Turns/TurnPerformer --> CommitPath --> log
                      |                            |                     |
                      +--- OutputGate <------------+                     +--> Upkeep --> tables
                                ^
    Ownership (claims, closes, tells clients)      Lease (when answers without effect may leave)

Crash-only: `ended` resolves with the reason when this incarnation may not go on (fenced, condemned, or a bug of ours),
and whoever runs it ends the process. There is no state to save on the way out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..actors.calls import Caller
from ..actors.errors import Fenced
from ..actors.kind import EntityKind
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.pending import PendingView
from ..persistence.records import Record, is_stream
from ..persistence.recovery import RecoveredShard
from ..persistence.spi import Store
from ..persistence.stripes import ONLY, Stripe
from .accepting import Accepting, Holdings
from .budget import Budget
from .commit import CommitPath
from .gate import OutputGate
from .guarded import guarded
from .intake import Intake
from .lease import Lease, keep
from .leaving import Leaving
from .letters import Letters
from .messages import Load, Message, Peer, StripeHosts, TableUpdate
from .outbox import Courier, Outbox
from .owed import Owed
from .ownership import Ownership
from .paging import Paging
from .performer import TurnPerformer
from .pressure import BUDGETS, pressure
from .resident import Resident
from .retries import until_done
from .shard import OwnedShard
from .staging import Staging
from .table import ShardTable
from .timers import Timers
from .turns import Turns
from .upkeep import Upkeep

log = logging.getLogger("atoll.host")

HOT = 5
"""Entities and shards that a host names when it is asked for the hottest."""


class Hot(NamedTuple):
    """The largest first."""

    entities: tuple[tuple[str, str, float], ...]
    """(kind, ID, share of the time of all turns)"""
    shards: tuple[tuple[int, float], ...]
    """(shard, share of the host's time)"""


class Host:
    """A `Receiver` of connections (cluster/server.py)."""

    def __init__(
        self,
        *,
        incarnation: int,
        address: str,
        kinds: Mapping[str, EntityKind],
        store: Store,
        settings: Settings,
        world: World,
        app_name: str = "",
        resources: Any = None,
        asker: Caller | None = None,
        courier: Courier | None = None,
        stripe: Stripe = ONLY,
        told_hosts: Callable[[Sequence[Sequence[str]]], None] = lambda _: None,
    ) -> None:
        """`asker`: a client of this cluster, for the asks that handlers make. `courier`: carries the messages that they
        send; without one nothing can be sent. `stripe`: that of the store. `told_hosts`: told where the hosts of every
        stripe listen."""
        self.incarnation = incarnation
        self.address = address
        self.kinds = kinds
        self.settings = settings
        self._store_failing = False
        self._stripe_hosts: StripeHosts | None = None
        """What was last said of other stripes' hosts."""
        self._told_hosts = told_hosts
        self._hot_shards: list[tuple[float, int]] = []
        self.shards: dict[int, OwnedShard] = {}
        self.table = ShardTable()
        self.lease = Lease(settings.lease_s, world.monotonic)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lease_store = store
        self._store = store = guarded(store, world, self._store_fails)
        self._world = world
        self._tasks: list[asyncio.Task[Any]] = []
        self.commits = CommitPath(
            store,
            incarnation,
            settings,
            world,
            self._committed,
            self._about_to_take,
            full=lambda _: self._steer_turns(),
        )
        self._leaving = Leaving(
            commits=self.commits,
            settings=settings,
            world=world,
            schedule=lambda resident: self._turns.schedule(resident),  # noqa: PLW0108 - made below
        )
        self._gate = OutputGate(self.commits, self.lease)
        self._staging = Staging(self.commits, settings)
        self._outbox = Outbox(courier, self._staging, settings, world) if courier is not None else None
        if courier is None:
            self._staging.room = 0
        self._holdings = Holdings(settings)
        self._accepting = Accepting(self._staging, self.commits, self._gate, self._holdings, settings, world)
        self._owed = Owed(
            kinds=kinds,
            staging=self._staging,
            commits=self.commits,
            accepting=self._accepting,
            holdings=self._holdings,
            settings=settings,
            world=world,
            schedule=lambda resident: self._turns.schedule(resident),  # noqa: PLW0108 - made below
        )
        self._timers = self._owed.timers = Timers(
            store=store,
            shards=self.shards,
            commits=self.commits,
            settings=settings,
            world=world,
            fire=self._owed.fire,
        )
        self._performer = TurnPerformer(
            store=store,
            commits=self.commits,
            gate=self._gate,
            staging=self._staging,
            accepting=self._accepting,
            owed=self._owed,
            settings=settings,
            world=world,
            app_name=app_name,
            resources=resources,
            asker=asker,
            ready=self._ready,
            leaving=self._leaving,
        )
        self._turns = Turns(self._performer, world, settings.runners_max, self._broken, self._accepting.quiet)
        self._accepting.nudge = self._turns.nudge
        self._paging = self._performer.paging = Paging(
            store=store,
            commits=self.commits,
            kinds=kinds,
            holdings=self._holdings,
            owed=self._owed,
            settings=settings,
            world=world,
            schedule=self._turns.schedule,
        )
        self.upkeep = Upkeep(
            store=store,
            incarnation=incarnation,
            shards=self.shards,
            commits=self.commits,
            settings=settings,
            world=world,
            lost=lambda shard: self.ownership.close(shard),  # noqa: PLW0108 - made below
        )
        self.budget = Budget(
            self.shards,
            settings,
            world,
            uncommitted=lambda: self.commits.uncommitted_bytes,
            stuck=lambda: self._turns.held,
            expired=self._performer.expired,
        )
        self._intake = Intake(
            kinds=kinds,
            shards=self.shards,
            table=self.table,
            gate=self._gate,
            accepting=self._accepting,
            owed=self._owed,
            letters=Letters(
                store=store,
                kinds=kinds,
                commits=self.commits,
                accepting=self._accepting,
                gate=self._gate,
                world=world,
                schedule=self._turns.schedule,
            ),
            settings=settings,
            world=world,
            budget=self.budget,
            schedule=self._turns.schedule,
            poked=lambda assigned: self.ownership.poke(assigned),  # noqa: PLW0108 - made below
            told_hosts=self._hear_of_hosts,
        )
        self.ownership = Ownership(
            store=store,
            incarnation=incarnation,
            address=address,
            shards=self.shards,
            table=self.table,
            intake=self._intake,
            upkeep=self.upkeep,
            commits=self.commits,
            settings=settings,
            world=world,
            listener=self,
            courier=courier,
            stripe=stripe,
        )

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work. The lease is kept by `keep_lease`, on a loop of the caller's choice."""
        for name, work in (
            ("commits", self.commits.run),
            ("ownership", self.ownership.run),
            ("upkeep", self.upkeep.run),
            ("passivation", self._leaving.run),
            ("sessions", self._touch_sessions),
            ("load reports", self._report_load),
            ("timers", self._timers.run),
            ("stored commands", self._paging.run),
        ):
            self._tasks.append(self._world.spawn(self._watch(name, work), f"atoll-{name}-{self.incarnation}"))

    async def _watch(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Fenced as error:
            self.end(f"fenced: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, this incarnation does not go on without its {name}
            self._broken(error)
        else:
            self.end(f"{name} ended")

    def _broken(self, error: BaseException) -> None:
        told = about(incarnation=self.incarnation)
        log.critical("host %d ends on an internal error", self.incarnation, exc_info=error, extra=told)
        self.end(f"internal error: {type(error).__name__}: {error}")

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    async def keep_lease(self, renewed: Callable[[], None]) -> None:
        """Keep the lease until the store says that this host is condemned. May run on another thread's loop; then
        `renewed` must hand `lease_renewed` over to the host's loop."""
        await keep(
            self.lease,
            self._lease_store,
            self.incarnation,
            renew_s=self.settings.lease_renew_s,
            monotonic=self._world.monotonic,
            renewed=renewed,
        )

    def lease_renewed(self) -> None:
        self._gate.lease_renewed()

    async def stop(self) -> None:
        """Give back every shard that can be given back, then stop working. The graceful way; a kill is as safe."""
        await asyncio.gather(*(self.ownership.release(shard) for shard in list(self.shards)))
        self.halt()

    def halt(self) -> None:
        """Stop working at once, as a kill does: nothing is saved."""
        self._turns.stop()
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        for peer in self._intake.peers():
            peer.close("the host stops")

    # ---- connections (Receiver) ------------------------------------------------------------------------------------

    async def admit(self, client: int) -> int | None:
        """Register a new client (0), or check that a known one's session still exists (None: it expired)."""
        if client:
            return None if client in await self._store.touch_sessions([client]) else client
        return await self._store.open_session()

    def connected(self, peer: Peer) -> None:
        self._intake.connected(peer)
        peer.send(TableUpdate(self.table.entries()))
        if self._stripe_hosts is not None and peer.client:
            peer.send(self._stripe_hosts)

    def received(self, peer: Peer, messages: Sequence[Message]) -> None:
        self._intake.received(peer, messages)

    def disconnected(self, peer: Peer) -> None:
        self._intake.disconnected(peer)

    def _hear_of_hosts(self, hosts: StripeHosts) -> None:
        """A coordinator says where the hosts of each stripe are: clients ask us for those that they do not know."""
        if hosts == self._stripe_hosts:
            return
        self._stripe_hosts = hosts
        self._told_hosts(hosts.addresses)
        for peer in self._intake.peers():
            peer.send(hosts)

    # ---- glue ------------------------------------------------------------------------------------------------------

    def _ready(self, resident: Resident) -> None:
        self._turns.ready(resident)

    def _store_fails(self, fails: bool) -> None:
        self._store_failing = fails
        self._steer_turns()

    def _steer_turns(self) -> None:
        """While the store is stuck no turn begins: what would run now could only wait for it."""
        held = self.commits.is_full or self._store_failing
        if held is self._turns.held:
            return
        self._performer.held = held
        self._turns.hold(held)
        if held:
            self.budget.look()

    def _about_to_take(self) -> None:
        self._accepting.about_to_take()

    def _committed(self, n: int, records: list[Record], sizes: list[int]) -> None:
        self.upkeep.committed(n, records, sizes)
        self._leaving.committed()
        if self._outbox is None:
            return
        for record in records:
            if record.delivery is not None and record.delivery.outbox:
                shard = self.shards.get(record.shard)
                if shard is not None:
                    self._outbox.committed(shard, record)

    # ---- its shards (ShardListener) --------------------------------------------------------------------------------

    def opened(self, shard: OwnedShard, recovered: RecoveredShard) -> None:
        self._timers.opened(shard)
        if self._outbox is not None:
            self._outbox.opened(shard, PendingView(recovered.overlay).outbox(recovered.pending.outbox))
        self._paging.opened(shard, sum(mailbox.bytes for mailbox in recovered.pending.mailboxes))

    def emptied(self, shard: OwnedShard) -> None:
        self._timers.emptied(shard)
        self._paging.emptied(shard)

    def reopened(self, shard: OwnedShard) -> None:
        self._timers.reopened(shard)
        self._paging.reopened(shard)

    def closed(self, shard: OwnedShard) -> None:
        self._timers.closed(shard)
        self._paging.closed(shard)
        self._leaving.closed(shard)
        if self._outbox is not None:
            self._outbox.closed(shard)

    def memory_seen(self, share: float) -> None:
        """This share of the memory that it may take is taken by this host's process."""
        before = self._leaving.pressure
        level = pressure(share, before)
        self._leaving.memory_seen(level)
        if level is before:
            return
        told = about(incarnation=self.incarnation)
        log.log(
            logging.WARNING if level > before else logging.INFO,
            "memory is at %.0f %%: %s now, it was %s",
            share * 100,
            level.name,
            before.name,
            extra=told,
        )
        self.budget.shrink(BUDGETS[level])

    @property
    def entities(self) -> int:
        """In memory. May be asked from another thread."""
        return self._leaving.resting + sum(len(shard.residents) for shard in list(self.shards.values()))

    async def _report_load(self) -> None:
        """Tell coordinators how busy each shard was since the last report."""
        before: dict[OwnedShard, float] = {}
        began = self._world.monotonic()
        while True:
            await asyncio.sleep(self.settings.load_report_s)
            now = self._world.monotonic()
            shards = {shard: shard.busy_s for shard in self.shards.values()}
            busy = tuple(
                (shard.shard, int((busy_s - before.get(shard, 0.0)) * 1_000_000)) for shard, busy_s in shards.items()
            )
            for peer in self._intake.coordinators():
                peer.send(Load(int((now - began) * 1000), busy))
            shares = ((busy_s - before.get(shard, 0.0)) / (now - began) for shard, busy_s in shards.items())
            self._hot_shards = sorted(zip(shares, (shard.shard for shard in shards), strict=True), reverse=True)[:HOT]
            self._performer.hot.fade()
            before, began = shards, now

    def hot(self) -> Hot:
        """What has kept this host busy lately. May be called from another thread."""
        return Hot(
            tuple((*key, share) for key, share in self._performer.hot.hottest(HOT)),
            tuple((shard, share) for share, shard in self._hot_shards if share > 0),
        )

    async def _touch_sessions(self) -> None:
        """Keep the sessions of connected clients alive; forget what the shards remember of expired ones."""
        while True:
            await asyncio.sleep(self.settings.session_touch_s)
            peers = {peer.client: peer for peer in self._intake.peers()}
            known = {client for shard in self.shards.values() for client in shard.windows if not is_stream(client)}
            gone = await until_done(self._world, partial(self._store.touch_sessions, peers))
            alive = (await until_done(self._world, self._store.sessions)).keys()
            for client in gone:
                peers[client].close("the session expired: connect again")
            for shard in self.shards.values():
                shard.forget((known - alive) & shard.windows.keys())
