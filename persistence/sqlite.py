"""The SQLite store: the embedded default. One machine, one folder, nothing to install.

    thread      connection to            does
    log         logs/N.db of our own     appends: the hot path, alone with its file
    logs        logs/N.db of others      seals, reads tails, drops rows
    writer      tables.db                assign, move, claim, checkpoint
    reader      tables.db                activations, ownership polls
    leases      leases.db                renewals, condemnations, draining, sessions

Hosts never meet on a commit: each incarnation has a log file of its own. They meet in tables.db (background work in
small transactions) and in leases.db (a few rows). SQL never runs on an event loop, and every method may be called from
any event loop of the process, so the lease can be renewed from one of its own.

A process that was stopped while it held a lock would keep everybody out: before a log is sealed its process is killed,
and a stopped process that holds a lock of a shared file is killed by the first who meets it (process.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..actors.errors import CorruptRecord
from . import ownership
from .host_rows import never_registered
from .records import (
    ClientRow,
    Commit,
    DeadLetterRow,
    EntityRow,
    MailboxRow,
    NamedReply,
    TimerRow,
)
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
    TableWrite,
)
from .sqlite_backup import Backup
from .sqlite_file import Database, check_file
from .sqlite_folder import is_made, open_folder
from .sqlite_history import read_commits, read_history
from .sqlite_leases import Leases
from .sqlite_log import OtherLogs, OwnLogs
from .sqlite_pending import read_dead_letters, read_mailbox, read_pending, read_timers
from .sqlite_scan import check_shard, scan
from .sqlite_tables import (
    TablesWriter,
    named_owners,
    read_clients,
    read_entity,
    read_named,
    read_shards,
    tables_path,
)
from .sqlite_worker import Worker
from .stripes import ONLY, Stripe
from .tables import Key, Table, TableRow

_WALL_CLOCK_S = 1e9
"""A start time above this (31 years after boot) was read from the wall clock."""


class _Threads:
    """The five threads of an open store."""

    def __init__(self, folder: Path, app: str, shards: int, stripe: Stripe) -> None:
        def open_writer() -> TablesWriter:
            open_folder(folder, app, shards, stripe)
            return TablesWriter(folder)

        self.writer = Worker("atoll-writer", open_writer)
        self.reader = Worker("atoll-reader", lambda: Database(tables_path(folder)))
        self.leases = Worker("atoll-leases", lambda: Leases(folder))
        self.own_logs = Worker("atoll-log", lambda: OwnLogs(folder, app))
        self.other_logs = Worker("atoll-logs", lambda: OtherLogs(folder, app))

    async def close(self) -> None:
        for worker in (self.own_logs, self.other_logs, self.writer, self.reader, self.leases):
            await worker.close()


class SQLiteStore:
    """`Store` in a folder of this machine. Make one per process and `open` it there: it does not survive a fork."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self._shards = 0
        self._stripe = ONLY
        self._open: _Threads | None = None
        self._registered: set[int] = set()
        """Incarnations that are known to have a row and a log; both stay for ever."""

    # ---- life ------------------------------------------------------------------------------------------------
    @property
    def stripe(self) -> Stripe:
        return self._stripe

    async def open(self, app: str, shards: int, stripe: Stripe = ONLY) -> None:
        if self._open is not None:
            raise RuntimeError("this store is open already: close it first, or make another one")
        threads = _Threads(self.folder, app, shards, stripe)
        try:
            found = await threads.writer.run(TablesWriter.stripe)
            await threads.reader.run(read_shards)
            await threads.leases.run(Leases.hosts_not_sealed)
        except BaseException:
            await threads.close()
            raise
        self._shards, self._stripe, self._open = shards, found, threads

    async def exists(self) -> bool:
        return is_made(self.folder)

    async def close(self) -> None:
        threads, self._open = self._open, None
        if threads is not None:
            await threads.close()

    @property
    def _threads(self) -> _Threads:
        if self._open is None:
            raise RuntimeError("this store is not open: await store.open(app, shards) first")
        return self._open

    async def backup(self, to: Path, tell: Callable[[int, int], None]) -> None:
        """Copy the open store to the new folder `to` as of one instant, whatever runs on it (sqlite_backup.py). `tell`
        is called on another thread: (pages done, of how many)."""
        worker = Worker("atoll-backup", lambda: Backup(self.folder))
        try:
            await worker.run(Backup.copy, to, tell)
        finally:
            await worker.close()

    # ---- hosts and leases ------------------------------------------------------------------------------------
    async def register_host(
        self, address: str, node: str, process: ProcessIdentity | None, *, version: str = "", weight: float = 1.0
    ) -> int:
        weight = ownership.checked_weight(weight)
        if process is not None and process.started > _WALL_CLOCK_S:
            raise ValueError(
                "ProcessIdentity.started counts from boot: make it with persistence.process.this_process()"
            )
        threads = self._threads
        incarnation = await threads.leases.run(Leases.reserve_incarnation)
        await threads.own_logs.run(OwnLogs.create, incarnation)
        row = HostRow(incarnation, address, HostState.LIVE, 0, node, process, version=version, weight=weight)
        await threads.leases.run(Leases.add_host, row)
        self._registered.add(incarnation)
        return incarnation

    async def renew(self, incarnation: int) -> bool:
        return await self._threads.leases.run(Leases.renew, incarnation)

    async def hosts(self) -> list[HostRow]:
        threads = self._threads
        # In this order: a host that is sealed after the first look was in it, one sealed before it is looked up by
        # name.
        found = {row.incarnation: row for row in await threads.leases.run(Leases.hosts_not_sealed)}
        named = await threads.reader.run(named_owners)
        if not named <= found.keys():
            others = await threads.leases.run(Leases.hosts_named, sorted(named - found.keys()))
            found.update((row.incarnation, row) for row in others)
        return [row for _incarnation, row in sorted(found.items())]

    async def finished_logs(self) -> list[int]:
        # In this order: who is not live any more can claim nothing later.
        ended = await self._threads.leases.run(Leases.hosts_ended)
        named = await self._threads.reader.run(named_owners)
        return [incarnation for incarnation in ended if incarnation not in named]

    async def condemn(self, incarnation: int, renewals: int) -> bool:
        return await self._threads.leases.run(Leases.condemn, incarnation, renewals)

    async def set_draining(self, incarnation: int, draining: bool) -> bool:
        return await self._threads.leases.run(Leases.set_draining, incarnation, draining)

    # ---- ownership -------------------------------------------------------------------------------------------
    async def shards(self) -> list[ShardRow]:
        return await self._threads.reader.run(read_shards)

    async def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        self._check_shards(assignment.shard for assignment in assignments)
        return await self._threads.writer.run(TablesWriter.assign, assignments)

    async def move(self, moves: Sequence[Assignment]) -> frozenset[int]:
        self._check_shards(move.shard for move in moves)
        return await self._threads.writer.run(TablesWriter.move, moves)

    async def pin(self, shard: int, node: str | None) -> bool:
        self._check_shards((shard,))
        return await self._threads.writer.run(TablesWriter.pin, shard, node)

    async def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        self._check_shards(shard for shard, _epoch in claims)
        return await self._threads.writer.run(TablesWriter.claim, incarnation, claims)

    def _check_shards(self, shards: Iterable[int]) -> None:
        for shard in shards:
            ownership.checked_shard(shard, self._shards, self._stripe)

    # ---- the log ---------------------------------------------------------------------------------------------
    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        if incarnation not in self._registered:
            await self._check_registered(incarnation)
        await self._threads.own_logs.run(OwnLogs.append, incarnation, n, content)

    async def seal(self, incarnation: int) -> int:
        threads = self._threads
        host = await threads.leases.run(Leases.host, incarnation)
        if host is None:
            raise never_registered(incarnation)
        n = await threads.other_logs.run(OtherLogs.seal, incarnation, host.process)
        await threads.leases.run(Leases.mark_sealed, incarnation)
        return n

    async def read_log(self, incarnation: int, after_n: int = 0) -> list[LogRow]:
        await self._check_registered(incarnation)
        return await self._threads.other_logs.run(OtherLogs.read, incarnation, after_n)

    async def delete_log_rows(self, incarnation: int, through_n: int) -> None:
        await self._check_registered(incarnation)
        threads = self._threads
        # Slice by slice: between two of them the log's thread takes an append.
        if await threads.own_logs.run(OwnLogs.has, incarnation):
            while await threads.own_logs.run(OwnLogs.delete_slice, incarnation, through_n):
                pass
        else:
            while await threads.other_logs.run(OtherLogs.delete_slice, incarnation, through_n):
                pass

    async def _check_registered(self, incarnation: int) -> None:
        if incarnation not in self._registered:
            if not await self._threads.leases.run(Leases.is_registered, incarnation):
                raise never_registered(incarnation)
            self._registered.add(incarnation)

    # ---- tables ----------------------------------------------------------------------------------------------
    async def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        self._check_shards(write.shard for write in writes)
        return await self._threads.writer.run(TablesWriter.checkpoint, incarnation, writes)

    async def read_entity(self, shard: int, kind: str, id: str) -> EntityRow | None:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_entity, shard, kind, id)

    async def read_commits(
        self, shard: int, kind: str, id: str, after_seq: int = 0, to_seq: int | None = None, limit: int | None = None
    ) -> list[Commit]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_commits, shard, kind, id, after_seq, to_seq, limit)

    async def read_history(self, shard: int, after_position: int = 0, limit: int | None = None) -> list[Commit]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_history, shard, after_position, limit)

    async def delete_history(self, shard: int, kind: str, id: str, through_seq: int) -> None:
        self._check_shards((shard,))
        writer = self._threads.writer
        while await writer.run(TablesWriter.delete_history_slice, shard, kind, id, through_seq):
            pass  # slice by slice: between two of them a checkpoint of ours or another host's goes on

    async def read_clients(self, shard: int) -> list[ClientRow]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_clients, shard)

    async def read_named(self, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_named, shard, kind, id, command_id)

    # ---- work that goes on without being called --------------------------------------------------------------
    async def read_pending(self, shards: Sequence[int]) -> list[PendingWork]:
        self._check_shards(shards)
        return await self._threads.reader.run(read_pending, shards)

    async def read_mailbox(
        self, shard: int, kind: str, id: str, after_entry: int = 0, limit: int | None = None
    ) -> list[MailboxRow]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_mailbox, shard, kind, id, after_entry, limit)

    async def read_timers(
        self, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
    ) -> list[TimerRow]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_timers, shard, after, through_ms, limit)

    async def read_dead_letters(
        self, shard: int, after_number: int = 0, limit: int | None = None
    ) -> list[DeadLetterRow]:
        self._check_shards((shard,))
        return await self._threads.reader.run(read_dead_letters, shard, after_number, limit)

    # ---- client sessions -------------------------------------------------------------------------------------
    async def open_session(self) -> int:
        return await self._threads.leases.run(Leases.open_session)

    async def touch_sessions(self, clients: Iterable[int]) -> frozenset[int]:
        missing: set[int] = set()
        for some in in_slices(clients):
            missing |= await self._threads.leases.run(Leases.touch_sessions, some)
        return frozenset(missing)

    async def sessions(self) -> dict[int, int]:
        return await self._threads.leases.run(Leases.sessions)

    async def expire_sessions(self, observed: Sequence[tuple[int, int]]) -> frozenset[int]:
        gone: set[int] = set()
        for some in in_slices(observed):
            gone |= await self._threads.leases.run(Leases.expire_sessions, some)
        return frozenset(gone)

    # ---- upkeep: a store as a whole --------------------------------------------------------------------------
    async def scan(self, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
        self._check_shards((shard,))
        return await self._threads.reader.run(scan, table, shard, after, limit)

    async def check(self, shard: int | None) -> list[str]:
        threads = self._threads
        if shard is not None:
            self._check_shards((shard,))
            return await threads.reader.run(check_shard, shard)
        found = await threads.reader.run(check_file) + await threads.leases.run(Leases.check)
        for incarnation in await threads.leases.run(Leases.all_incarnations):
            try:
                found += await threads.other_logs.run(OtherLogs.check, incarnation)
            except CorruptRecord as error:
                found.append(str(error))
        return found

    async def numbers(self) -> Numbers:
        return await self._threads.leases.run(Leases.numbers)

    async def load(self, writes: Sequence[TableWrite]) -> None:
        self._check_shards(write.shard for write in writes)
        await self._threads.writer.run(TablesWriter.load, writes)

    async def finish_load(self, app: str, numbers: Numbers, sessions: Mapping[int, int]) -> None:
        threads = self._threads
        if await threads.writer.run(TablesWriter.loads, app):
            # In this order: with its name the store is there to be used.
            await threads.leases.run(Leases.load, numbers, sessions)
            await threads.writer.run(TablesWriter.finish_load, app)
