"""The memory store: every promise of spi.py in its shortest form. The other stores are compared with it.

Plain data, no threads, no clock: a method runs without a pause, so each is one transaction. What it keeps are frozen
structs, so nobody can change them from outside. Hosts of one process share the object, and it outlives every one of
them: in tests and in the simulator that is how a store survives the death of its hosts. All its callers live on one
loop.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from ..actors.errors import Fenced, IncompatibleStore
from . import ownership
from .records import (
    ClientRow,
    Commit,
    DeadLetterRow,
    EntityRow,
    MailboxRow,
    NamedReply,
    OutboxRow,
    TimerRow,
)
from .rows import client_after, covered_seq, entity_after
from .spi import (
    Assignment,
    CheckpointEnd,
    HostRow,
    HostState,
    LogRow,
    Numbers,
    PendingMailbox,
    PendingWork,
    ProcessIdentity,
    ShardRow,
    TableWrite,
    check_loading,
)
from .stripes import ONLY, Stripe, check_stripe
from .tables import Key, Table, TableRow, key_of, position_after

Row = TypeVar("Row")
Name = TypeVar("Name")


class _Log:
    """One incarnation's log."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}  # insertion order is the order of n
        self.newest = 0
        self.seal: int | None = None


class _Tables:
    """The tables of one shard."""

    def __init__(self) -> None:
        self.entities: dict[tuple[str, str], EntityRow] = {}
        self.clients: dict[int, ClientRow] = {}
        self.named: dict[tuple[str, str, str], NamedReply] = {}
        self.history: list[Commit] = []
        self.history_by_entity: dict[tuple[str, str], list[Commit]] = {}
        self.mailbox: dict[tuple[str, str], dict[int, MailboxRow]] = {}
        self.outbox: dict[int, OutboxRow] = {}
        self.timers: dict[tuple[str, str], dict[str, TimerRow]] = {}
        self.dead_letters: dict[int, DeadLetterRow] = {}


class MemoryStore:
    """`Store` in this process's memory. Durable as long as the object."""

    def __init__(self) -> None:
        self._app: str | None = None
        self._hosts: dict[int, HostRow] = {}
        self._last_incarnation = 0
        self._logs: dict[int, _Log] = {}
        self._shards_of_app = 0
        self._stripe = ONLY
        self._shards: dict[int, ShardRow] = {}
        self._tables: dict[int, _Tables] = {}
        self._sessions: dict[int, int] = {}
        self._last_session = 0

    # ---- life ------------------------------------------------------------------------------------------------
    @property
    def stripe(self) -> Stripe:
        return self._stripe

    async def open(self, app: str, shards: int, stripe: Stripe = ONLY) -> None:
        if self._app is None:
            self._shards = {shard: ownership.unowned(shard) for shard in stripe.shards(shards)}
            self._tables = {shard: _Tables() for shard in self._shards}
            self._app, self._shards_of_app, self._stripe = app, shards, stripe
        elif (self._app, self._shards_of_app) != (app, shards):
            raise IncompatibleStore(
                f"this memory store holds app {self._app!r} with {self._shards_of_app} shards, "
                f"not {app!r} with {shards}: use another store, or open it as what it is"
            )
        else:
            check_stripe(self._stripe, stripe, "this memory store")

    async def exists(self) -> bool:
        return self._app is not None

    async def close(self) -> None:
        pass

    # ---- hosts and leases ------------------------------------------------------------------------------------
    async def register_host(
        self, address: str, node: str, process: ProcessIdentity | None, *, version: str = "", weight: float = 1.0
    ) -> int:
        weight = ownership.checked_weight(weight)
        incarnation = self._last_incarnation = self._last_incarnation + 1
        self._logs[incarnation] = _Log()
        self._hosts[incarnation] = HostRow(
            incarnation, address, HostState.LIVE, 0, node, process, version=version, weight=weight
        )
        return incarnation

    async def renew(self, incarnation: int) -> bool:
        if not self._is_live(incarnation):
            return False
        row = self._hosts[incarnation]
        self._hosts[incarnation] = replace(row, renewals=row.renewals + 1)
        return True

    async def hosts(self) -> list[HostRow]:
        named = {owner for row in self._shards.values() for owner in row.owners}
        return [row for row in self._hosts.values() if row.state is not HostState.SEALED or row.incarnation in named]

    async def finished_logs(self) -> list[int]:
        named = {owner for row in self._shards.values() for owner in row.owners}
        return [i for i, row in self._hosts.items() if row.state is not HostState.LIVE and i not in named]

    async def condemn(self, incarnation: int, renewals: int) -> bool:
        row = self._hosts.get(incarnation)
        if row is None:
            return False
        state = ownership.condemned(row.state, row.renewals, renewals)
        self._hosts[incarnation] = replace(row, state=state)
        return state is not HostState.LIVE

    async def set_draining(self, incarnation: int, draining: bool) -> bool:
        if not self._is_live(incarnation):
            return False
        self._hosts[incarnation] = replace(self._hosts[incarnation], draining=draining)
        return True

    def _is_live(self, incarnation: int) -> bool:
        return incarnation in self._hosts and self._hosts[incarnation].state is HostState.LIVE

    def _is_eligible(self, incarnation: int | None) -> bool:
        return incarnation is not None and ownership.eligible(self._hosts.get(incarnation))

    # ---- ownership -------------------------------------------------------------------------------------------
    async def shards(self) -> list[ShardRow]:
        return list(self._shards.values())

    async def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        return self._decide(ownership.assigned, assignments)

    async def move(self, moves: Sequence[Assignment]) -> frozenset[int]:
        return self._decide(ownership.moved, moves)

    def _decide(self, step: ownership.Step, decisions: Sequence[Assignment]) -> frozenset[int]:
        eligible = {d.incarnation for d in decisions if self._is_eligible(d.incarnation)}
        changed = ownership.decided(step, self._row, decisions, eligible)
        for shard, row in changed.items():
            self._shards[shard] = row
        return frozenset(changed)

    async def pin(self, shard: int, node: str | None) -> bool:
        row = ownership.pinned(self._row(shard), node)
        if row is None:
            return False
        self._shards[shard] = row
        return True

    async def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        taken = []
        for shard, epoch in claims if self._is_live(incarnation) else ():
            row = ownership.claimed(self._row(shard), incarnation, epoch)
            if row is not None:
                self._shards[shard] = row
                taken.append(row)
        return taken

    def _row(self, shard: int) -> ShardRow:
        return self._shards[ownership.checked_shard(shard, self._shards_of_app, self._stripe)]

    # ---- the log ---------------------------------------------------------------------------------------------
    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        log = self._log(incarnation)
        if log.seal is not None:
            raise Fenced(f"log {incarnation} is sealed at {log.seal}: another owner took over")
        if n > log.newest + 1:
            raise ValueError(f"log {incarnation} ends at {log.newest}: row {n} would leave a gap")
        if n == log.newest + 1:
            log.rows[n] = bytes(content)
            log.newest = n
        elif log.rows.get(n) != content:
            raise Fenced(f"log {incarnation} holds something else at or above row {n}: this writer is not its owner")

    async def seal(self, incarnation: int) -> int:
        log = self._log(incarnation)
        if log.seal is None:
            log.seal = log.newest + 1
        self._hosts[incarnation] = replace(self._hosts[incarnation], state=HostState.SEALED)
        return log.seal

    async def read_log(self, incarnation: int, after_n: int = 0) -> list[LogRow]:
        return [LogRow(n, content) for n, content in self._log(incarnation).rows.items() if n > after_n]

    async def delete_log_rows(self, incarnation: int, through_n: int) -> None:
        log = self._log(incarnation)
        for n in [n for n in log.rows if n <= through_n and n != log.newest]:
            del log.rows[n]

    def _log(self, incarnation: int) -> _Log:
        if incarnation not in self._logs:
            raise ValueError(f"no host was ever registered as incarnation {incarnation}")
        return self._logs[incarnation]

    # ---- tables ----------------------------------------------------------------------------------------------
    async def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        refused = set()
        for write in writes:
            if write.end is not None:  # before anything is written: a transaction that raises leaves no trace
                ownership.fresh_commits(self._row(write.shard), write.end)
        for write in writes:
            if ownership.may_write(self._row(write.shard), incarnation, write.epoch):
                self._write(incarnation, write)
            else:
                refused.add(write.shard)
        return frozenset(refused)

    def _write(self, incarnation: int, write: TableWrite) -> None:
        self._write_rows(write)
        if write.end is not None:
            row = self._row(write.shard)
            self._add_history(row, write.end)
            self._shards[write.shard] = ownership.ended(
                row, incarnation, write.end, target_eligible=self._is_eligible(row.target)
            )

    def _write_rows(self, write: TableWrite) -> None:
        tables = self._tables_of(write.shard)
        for entity in write.entities:
            key = (entity.kind, entity.id)
            tables.entities[key] = entity_after(tables.entities.get(key), entity)
        for client in write.clients:
            tables.clients[client.client] = client_after(tables.clients.get(client.client), client)
        for forgotten in write.forgotten_clients:
            tables.clients.pop(forgotten, None)
        for named in write.named:
            tables.named.setdefault((named.kind, named.id, named.command_id), named)
        old = [name for name, named in tables.named.items() if named.time_ms < write.forget_named_before_ms]
        for name in (*old, *write.named_gone):
            tables.named.pop(name, None)
        _write_pending(tables, write)

    def _add_history(self, row: ShardRow, end: CheckpointEnd) -> None:
        tables = self._tables_of(row.shard)
        for commit in ownership.fresh_commits(row, end):
            tables.history.append(commit)
            tables.history_by_entity.setdefault((commit.kind, commit.id), []).append(commit)

    def _tables_of(self, shard: int) -> _Tables:
        return self._tables[ownership.checked_shard(shard, self._shards_of_app, self._stripe)]

    async def read_entity(self, shard: int, kind: str, id: str) -> EntityRow | None:
        return self._tables_of(shard).entities.get((kind, id))

    async def read_commits(
        self, shard: int, kind: str, id: str, after_seq: int = 0, to_seq: int | None = None, limit: int | None = None
    ) -> list[Commit]:
        commits = self._tables_of(shard).history_by_entity.get((kind, id), [])
        first = bisect_right(commits, after_seq, key=lambda commit: commit.seq)
        last = len(commits) if to_seq is None else bisect_right(commits, to_seq, key=lambda commit: commit.seq)
        return _at_most(limit, commits[first:last])

    async def read_history(self, shard: int, after_position: int = 0, limit: int | None = None) -> list[Commit]:
        history = self._tables_of(shard).history
        return _at_most(limit, history[bisect_right(history, after_position, key=lambda commit: commit.position) :])

    async def delete_history(self, shard: int, kind: str, id: str, through_seq: int) -> None:
        tables, key = self._tables_of(shard), (kind, id)
        through_seq = min(through_seq, covered_seq(tables.entities.get(key)))
        gone = {c.position for c in tables.history_by_entity.get(key, ()) if c.seq <= through_seq}
        if gone:
            tables.history = [c for c in tables.history if c.position not in gone]
            tables.history_by_entity[key] = [c for c in tables.history_by_entity[key] if c.position not in gone]

    async def read_clients(self, shard: int) -> list[ClientRow]:
        return [row for _client, row in sorted(self._tables_of(shard).clients.items())]

    async def read_named(self, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None:
        return self._tables_of(shard).named.get((kind, id, command_id))

    # ---- work that goes on without being called --------------------------------------------------------------
    async def read_pending(self, shards: Sequence[int]) -> list[PendingWork]:
        return [_pending(shard, self._tables_of(shard)) for shard in shards]

    async def read_mailbox(
        self, shard: int, kind: str, id: str, after_entry: int = 0, limit: int | None = None
    ) -> list[MailboxRow]:
        entries = self._tables_of(shard).mailbox.get((kind, id), {})
        return _at_most(limit, [row for entry, row in sorted(entries.items()) if entry > after_entry])

    async def read_timers(
        self, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
    ) -> list[TimerRow]:
        places = {
            (row.timer.due_ms, row.kind, row.id, row.timer.name): row
            for timers in self._tables_of(shard).timers.values()
            for row in timers.values()
            if row.timer.due_ms <= through_ms
        }
        return [places[place] for place in heapq.nsmallest(limit, (place for place in places if place > after))]

    async def read_dead_letters(
        self, shard: int, after_number: int = 0, limit: int | None = None
    ) -> list[DeadLetterRow]:
        letters = self._tables_of(shard).dead_letters
        return _at_most(limit, [row for number, row in sorted(letters.items()) if number > after_number])

    # ---- client sessions -------------------------------------------------------------------------------------
    async def open_session(self) -> int:
        self._last_session += 1
        self._sessions[self._last_session] = 0
        return self._last_session

    async def touch_sessions(self, clients: Iterable[int]) -> frozenset[int]:
        missing = set()
        for client in clients:
            if client in self._sessions:
                self._sessions[client] += 1
            else:
                missing.add(client)
        return frozenset(missing)

    async def sessions(self) -> dict[int, int]:
        return dict(self._sessions)

    async def expire_sessions(self, observed: Sequence[tuple[int, int]]) -> frozenset[int]:
        for client, renewals in observed:
            if self._sessions.get(client) == renewals:
                del self._sessions[client]
        return frozenset(client for client, _renewals in observed if client not in self._sessions)

    # ---- upkeep: a store as a whole --------------------------------------------------------------------------
    async def scan(self, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
        if table is Table.HISTORY:
            return list(await self.read_history(shard, position_after(after), limit))
        rows = {key_of(row): row for row in _rows_of(self._tables_of(shard), table)}
        keys = sorted(rows) if after is None else sorted(key for key in rows if key > after)
        return [rows[key] for key in _at_most(limit, keys)]

    async def check(self, shard: int | None) -> list[str]:
        if shard is not None:
            self._row(shard)
        return []

    async def numbers(self) -> Numbers:
        return Numbers(self._last_incarnation, self._last_session)

    async def load(self, writes: Sequence[TableWrite]) -> None:
        check_loading(self._app or "")
        for write in writes:
            self._write_rows(write)
            if write.end is not None:
                row = self._row(write.shard)
                self._add_history(row, write.end)
                self._shards[write.shard] = ownership.loaded(row, write.epoch, write.end)

    async def finish_load(self, app: str, numbers: Numbers, sessions: Mapping[int, int]) -> None:
        if self._app == app:
            return
        check_loading(self._app or "")
        self._sessions.update(sessions)
        self._last_incarnation = max(self._last_incarnation, numbers.incarnation)
        self._last_session = max(self._last_session, numbers.client)
        self._app = app


def _write_pending(tables: _Tables, write: TableWrite) -> None:
    for kind, id, entry in write.mailbox_done:
        _drop(tables.mailbox, (kind, id), entry)
    for mail in write.mailbox:
        tables.mailbox.setdefault((mail.kind, mail.id), {})[mail.entry] = mail
    for kind, id, entry, attempts in write.mailbox_attempts:
        entries = tables.mailbox.get((kind, id), {})
        if entry in entries:
            entries[entry] = replace(entries[entry], attempts=attempts)
    for number in write.outbox_done:
        tables.outbox.pop(number, None)
    for message in write.outbox:
        tables.outbox[message.number] = message
    for key in write.timers_cleared:
        tables.timers.pop(key, None)
    for kind, id, name in write.timers_gone:
        _drop(tables.timers, (kind, id), name)
    for timer in write.timers:
        tables.timers.setdefault((timer.kind, timer.id), {})[timer.timer.name] = timer
    for number in write.letters_gone:
        tables.dead_letters.pop(number, None)
    for letter in write.dead_letters:
        tables.dead_letters[letter.number] = letter


def _rows_of(tables: _Tables, table: Table) -> Iterable[TableRow]:
    match table:
        case Table.ENTITIES:
            return tables.entities.values()
        case Table.HISTORY:
            return tables.history
        case Table.CLIENTS:
            return tables.clients.values()
        case Table.NAMED:
            return tables.named.values()
        case Table.MAILBOX:
            return (row for entries in tables.mailbox.values() for row in entries.values())
        case Table.OUTBOX:
            return tables.outbox.values()
        case Table.TIMERS:
            return (row for timers in tables.timers.values() for row in timers.values())
        case Table.DEAD_LETTERS:
            return tables.dead_letters.values()


def _drop(items: dict[tuple[str, str], dict[Name, Row]], entity: tuple[str, str], name: Name) -> None:
    own = items.get(entity, {})
    if own.pop(name, None) is not None and not own:
        del items[entity]


def _pending(shard: int, tables: _Tables) -> PendingWork:
    mailboxes = tuple(
        PendingMailbox(*key, len(entries), sum(len(row.accepted.arguments) for row in entries.values()))
        for key, entries in sorted(tables.mailbox.items())
    )
    outbox = tuple(row for _number, row in sorted(tables.outbox.items()))
    return PendingWork(shard, mailboxes, outbox, len(tables.dead_letters))


def _at_most(limit: int | None, rows: list[Row]) -> list[Row]:
    return rows if limit is None else rows[: max(limit, 0)]
