"""The PostgreSQL store: for clusters of several machines. One database holds the store of one app.

Connections and errors stand in postgres_link.py, the SQL in the postgres_* modules beside it. A row is the same as on
SQLite (table_rows.py and the like), so is what a transition means (ownership.py); only where it lies differs.

Positions and seals must never go back: see postgres_meta.py for what a promoted standby means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from ..actors.errors import CorruptRecord
from . import (
    ownership,
    postgres_history,
    postgres_leases,
    postgres_log,
    postgres_pending,
    postgres_scan,
    postgres_tables,
)
from .host_rows import never_registered
from .postgres_entities import EntityReads
from .postgres_link import Lane, Life, Link, Still, life_of, log
from .postgres_meta import (
    check_durable,
    check_promotion,
    finish_load,
    loads,
    open_meta,
    read_meta,
    unlimited,
    version_of,
)
from .postgres_schema import check_version
from .records import ClientRow, Commit, DeadLetterRow, EntityRow, MailboxRow, NamedReply, TimerRow
from .slices import in_slices
from .spi import (
    Assignment,
    HostRow,
    HostState,
    LogRow,
    Numbers,
    PendingWork,
    ProcessIdentity,
    ShardRow,
    Store,
    TableWrite,
)
from .stripes import ONLY, Stripe
from .tables import Key, Table, TableRow
from .urls import split_pooler


class PostgresStore:
    """`Store` in a PostgreSQL database, whose tables `atoll store migrate` has made. Any event loop of the process may
    use it; `close` on the loop that opened it."""

    def __init__(self, url: str) -> None:
        """`url`: `postgresql://USER[:PASSWORD]@HOST[:PORT][,HOST...]/DATABASE[?sslmode=verify-full&...]`, as libpq has
        it, and `pooler=` (urls.py); other options become settings of the session. Raises `ValueError`."""
        split_pooler(url)
        self.url = url
        self._app = ""
        self._shards = 0
        self._stripe = ONLY
        self._link: Link | Still | None = None
        self._life: Life | None = None
        self._synchronous = False
        self._reads: dict[asyncio.AbstractEventLoop, EntityReads] = {}
        self._registered: set[int] = set()
        """Incarnations that are known to have a row and a log; both stay for ever."""
        self._acknowledged: dict[int, int] = {}
        """Incarnation -> the newest n of its log that is durable, of logs that this process writes."""

    # ---- life ------------------------------------------------------------------------------------------------
    @property
    def stripe(self) -> Stripe:
        return self._stripe

    async def open(self, app: str, shards: int, stripe: Stripe = ONLY) -> None:
        if self._link is not None:
            raise RuntimeError("this store is open already: close it first, or make another one")
        link = Link(self.url, self._met)
        try:
            async with link.transaction(Lane.WRITE) as connection:
                await check_durable(connection, link.place)
                life = await life_of(connection)
                meta = await open_meta(connection, link.place, app, shards, stripe, life)
                lacking = await unlimited(connection)
        except BaseException:
            await link.close()
            raise
        if lacking:
            log.warning(
                "%s sets no %s for this role: a host that is cut off could keep locks for minutes; "
                "see deploy/postgresql/roles.sql",
                link.place,
                ", ".join(lacking),
            )
        self._app, self._shards, self._stripe, self._synchronous = app, shards, meta.stripe, meta.synchronous
        self._life, self._link = life, link

    async def exists(self) -> bool:
        link = Link(self.url, lambda _life: None)
        try:
            async with link.lent(Lane.READ) as connection:
                check_version(await version_of(connection), link.place)
                return await read_meta(connection) is not None
        finally:
            await link.close()

    async def close(self) -> None:
        link, self._link = self._link, None
        self._reads.clear()
        if link is not None:
            await link.close()
        self._life = None

    def _met(self, life: Life) -> None:
        """A new connection leads to the server in this life."""
        if self._life is not None and life != self._life:
            check_promotion(self._life, life, self._opened.place, synchronous=self._synchronous)
            log.warning("%s was promoted: it is on timeline %d now", self._opened.place, life.timeline)
            self._life = life

    @property
    def _opened(self) -> Link | Still:
        if self._link is None:
            raise RuntimeError("this store is not open: await store.open(app, shards) first")
        return self._link

    # ---- hosts and leases ------------------------------------------------------------------------------------
    async def register_host(
        self, address: str, node: str, process: ProcessIdentity | None, *, version: str = "", weight: float = 1.0
    ) -> int:
        weight = ownership.checked_weight(weight)
        async with self._opened.transaction(Lane.LEASE) as connection:
            incarnation = await postgres_leases.next_incarnation(connection)
            await postgres_log.create(connection, self._app, incarnation)
            row = HostRow(incarnation, address, HostState.LIVE, 0, node, process, version=version, weight=weight)
            await postgres_leases.add_host(connection, row)
        self._registered.add(incarnation)
        self._acknowledged[incarnation] = 0
        return incarnation

    async def renew(self, incarnation: int) -> bool:
        async with self._opened.lent(Lane.LEASE) as connection:
            return await postgres_leases.renew(connection, incarnation)

    async def hosts(self) -> list[HostRow]:
        async with self._opened.lent(Lane.READ) as connection:
            # In this order: a host that is sealed after the first look was in it, one sealed before it is looked up by
            # name.
            found = {row.incarnation: row for row in await postgres_leases.hosts_not_sealed(connection)}
            named = await postgres_tables.named_owners(connection)
            if not named <= found.keys():
                others = await postgres_leases.hosts_named(connection, named - found.keys())
                found.update((row.incarnation, row) for row in others)
        return [row for _incarnation, row in sorted(found.items())]

    async def finished_logs(self) -> list[int]:
        async with self._opened.lent(Lane.READ) as connection:
            # In this order: who is not live any more can claim nothing later.
            ended = await postgres_leases.hosts_ended(connection)
            named = await postgres_tables.named_owners(connection)
        return [incarnation for incarnation in ended if incarnation not in named]

    async def condemn(self, incarnation: int, renewals: int) -> bool:
        async with self._opened.transaction(Lane.LEASE) as connection:
            return await postgres_leases.condemn(connection, incarnation, renewals)

    async def set_draining(self, incarnation: int, draining: bool) -> bool:
        async with self._opened.transaction(Lane.LEASE) as connection:
            return await postgres_leases.set_draining(connection, incarnation, draining)

    # ---- ownership -------------------------------------------------------------------------------------------
    async def shards(self) -> list[ShardRow]:
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_tables.read_shards(connection)

    async def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        self._check_shards(assignment.shard for assignment in assignments)
        async with self._opened.transaction(Lane.WRITE) as connection:
            return await postgres_tables.decide(connection, ownership.assigned, assignments)

    async def move(self, moves: Sequence[Assignment]) -> frozenset[int]:
        self._check_shards(move.shard for move in moves)
        async with self._opened.transaction(Lane.WRITE) as connection:
            return await postgres_tables.decide(connection, ownership.moved, moves)

    async def pin(self, shard: int, node: str | None) -> bool:
        self._check_shards((shard,))
        async with self._opened.transaction(Lane.WRITE) as connection:
            return await postgres_tables.pin(connection, shard, node)

    async def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        self._check_shards(shard for shard, _epoch in claims)
        async with self._opened.transaction(Lane.WRITE) as connection:
            return await postgres_tables.claim(connection, incarnation, claims)

    def _check_shards(self, shards: Iterable[int]) -> None:
        for shard in shards:
            ownership.checked_shard(shard, self._shards, self._stripe)

    # ---- the log ---------------------------------------------------------------------------------------------
    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        try:
            async with self._opened.lent(Lane.APPEND) as connection:
                await postgres_log.append(connection, incarnation, n, content)
        except ValueError as error:
            if n <= self._acknowledged.get(incarnation, -1) + 1:
                raise CorruptRecord(
                    f"{error}, though row {n - 1} was durable: this database went back in time (a promoted standby, a "
                    "restored backup); end the app, and see deploy/README.md on promotions"
                ) from None
            raise
        self._acknowledged[incarnation] = max(n, self._acknowledged.get(incarnation, 0))

    async def seal(self, incarnation: int) -> int:
        async with self._opened.lent(Lane.LOG) as connection:
            n = await postgres_log.seal(connection, incarnation)
            await postgres_leases.mark_sealed(connection, incarnation)
        return n

    async def read_log(self, incarnation: int, after_n: int = 0) -> list[LogRow]:
        await self._check_registered(incarnation)
        async with self._opened.snapshot(Lane.LOG) as connection:
            return await postgres_log.read(connection, incarnation, after_n)

    async def delete_log_rows(self, incarnation: int, through_n: int) -> None:
        await self._check_registered(incarnation)
        more = True
        while more:
            async with self._opened.lent(Lane.LOG) as connection:
                more = await postgres_log.delete_slice(connection, incarnation, through_n)

    async def _check_registered(self, incarnation: int) -> None:
        if incarnation not in self._registered:
            async with self._opened.lent(Lane.READ) as connection:
                if not await postgres_leases.is_registered(connection, incarnation):
                    raise never_registered(incarnation)
            self._registered.add(incarnation)

    # ---- tables ----------------------------------------------------------------------------------------------
    async def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        self._check_shards(write.shard for write in writes)
        async with self._opened.transaction(Lane.WRITE) as connection:
            return await postgres_tables.checkpoint(connection, incarnation, writes)

    async def read_entity(self, shard: int, kind: str, id: str) -> EntityRow | None:
        self._check_shards((shard,))
        loop, link = asyncio.get_running_loop(), self._opened
        reads = self._reads.get(loop)
        if reads is None:
            reads = self._reads[loop] = EntityReads(link)
        return await reads.read((shard, kind, id))

    async def read_commits(
        self, shard: int, kind: str, id: str, after_seq: int = 0, to_seq: int | None = None, limit: int | None = None
    ) -> list[Commit]:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            few = await postgres_history.read_few_commits(connection, shard, kind, id, after_seq, to_seq, limit)
        if few is not None:  # nearly always: a snapshot keeps the others short
            return few
        async with self._opened.snapshot(Lane.READ) as connection:
            return await postgres_history.read_commits(connection, shard, kind, id, after_seq, to_seq, limit)

    async def read_history(self, shard: int, after_position: int = 0, limit: int | None = None) -> list[Commit]:
        self._check_shards((shard,))
        async with self._opened.snapshot(Lane.READ) as connection:
            return await postgres_history.read_history(connection, shard, after_position, limit)

    async def delete_history(self, shard: int, kind: str, id: str, through_seq: int) -> None:
        self._check_shards((shard,))
        more = True
        while more:
            async with self._opened.transaction(Lane.WRITE) as connection:
                more = await postgres_tables.delete_history_slice(connection, shard, kind, id, through_seq)

    async def read_clients(self, shard: int) -> list[ClientRow]:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_tables.read_clients(connection, shard)

    async def read_named(self, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_tables.read_named(connection, shard, kind, id, command_id)

    # ---- work that goes on without being called --------------------------------------------------------------
    async def read_pending(self, shards: Sequence[int]) -> list[PendingWork]:
        self._check_shards(shards)
        async with self._opened.snapshot(Lane.READ) as connection:
            return await postgres_pending.read_pending(connection, shards)

    async def read_mailbox(
        self, shard: int, kind: str, id: str, after_entry: int = 0, limit: int | None = None
    ) -> list[MailboxRow]:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_pending.read_mailbox(connection, shard, kind, id, after_entry, limit)

    async def read_timers(
        self, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
    ) -> list[TimerRow]:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_pending.read_timers(connection, shard, after, through_ms, limit)

    async def read_dead_letters(
        self, shard: int, after_number: int = 0, limit: int | None = None
    ) -> list[DeadLetterRow]:
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_pending.read_dead_letters(connection, shard, after_number, limit)

    # ---- client sessions -------------------------------------------------------------------------------------
    async def open_session(self) -> int:
        async with self._opened.lent(Lane.LEASE) as connection:
            return await postgres_leases.open_session(connection)

    async def touch_sessions(self, clients: Iterable[int]) -> frozenset[int]:
        missing: set[int] = set()
        for some in in_slices(clients):
            async with self._opened.lent(Lane.LEASE) as connection:
                missing |= await postgres_leases.touch_sessions(connection, some)
        return frozenset(missing)

    async def sessions(self) -> dict[int, int]:
        async with self._opened.lent(Lane.LEASE) as connection:
            return await postgres_leases.sessions(connection)

    async def expire_sessions(self, observed: Sequence[tuple[int, int]]) -> frozenset[int]:
        gone: set[int] = set()
        for some in in_slices(observed):
            async with self._opened.transaction(Lane.LEASE) as connection:
                gone |= await postgres_leases.expire_sessions(connection, some)
        return frozenset(gone)

    # ---- upkeep: a store as a whole --------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Store]:
        """See `Snapshots.snapshot`."""
        link = self._opened
        assert isinstance(link, Link), "a snapshot of a snapshot"
        async with link.still() as still:
            shown = PostgresStore(self.url)
            shown._app, shown._shards, shown._stripe, shown._link = self._app, self._shards, self._stripe, still
            yield shown

    async def scan(self, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
        self._check_shards((shard,))
        async with self._opened.snapshot(Lane.READ) as connection:
            return await postgres_scan.scan(connection, table, shard, after, limit)

    async def check(self, shard: int | None) -> list[str]:
        if shard is None:
            return await self._check_hosts()
        self._check_shards((shard,))
        async with self._opened.lent(Lane.READ) as connection:
            return await postgres_scan.check_shard(connection, shard)

    async def _check_hosts(self) -> list[str]:
        async with self._opened.lent(Lane.READ) as connection:
            found = await postgres_leases.check(connection)
            incarnations = await postgres_leases.all_incarnations(connection)
        for incarnation in incarnations:
            try:
                await self.read_log(incarnation)
            except CorruptRecord as error:
                found.append(str(error))
        return found

    async def numbers(self) -> Numbers:
        async with self._opened.lent(Lane.LEASE) as connection:
            return await postgres_leases.numbers(connection)

    async def load(self, writes: Sequence[TableWrite]) -> None:
        self._check_shards(write.shard for write in writes)
        async with self._opened.transaction(Lane.WRITE) as connection:
            await loads(connection)
            await postgres_tables.load(connection, writes)

    async def finish_load(self, app: str, numbers: Numbers, sessions: Mapping[int, int]) -> None:
        async with self._opened.transaction(Lane.LEASE) as connection:
            if await loads(connection, app):
                await postgres_leases.load(connection, numbers, sessions)
                await finish_load(connection, app)
