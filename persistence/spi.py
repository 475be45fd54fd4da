"""The store SPI: every promise that Atoll's safety rests on, in words. The memory store is its executable meaning.

A store holds six things:

    meta       app, shard count, stripe, schema version              fixed at creation
    hosts      one row per incarnation, for ever                     leases: a renewal counter and a state
    shards     one row per shard of this stripe                      ownership: who, at which epoch, after whom
    logs       one append-only log per incarnation                   the commits, before they reach the tables
    tables     entities, clients, named replies, history,            derived, brought up to date by checkpoints
               mailbox, outbox, timers, dead letters
    sessions   one row per known client                              who may number commands

Life of a shard's row (`epoch` grows by one with each *):

    FREE --assign*--> ASSIGNED --claim--> OWNED --release*--> FREE, or ASSIGNED to its target
                        |   ^             |  | ^
                        +---+ assign*     |  +-+ move               (sets or clears its target: where it is wanted)
                                          +--assign*--> ASSIGNED    (its owner was condemned)

Life of a host's row:   LIVE --condemn--> GONE --seal--> SEALED     (a seal alone also ends it: LIVE -> SEALED)

A host is *eligible* for shards while it is LIVE and not draining. A draining one works on with what it has.

All methods may be called from any task of the loop that opened the store, concurrently. A method that raises
`StoreUnavailable` may or may not have taken effect; all of them may be repeated with the same arguments. Nothing here
compares wall clocks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

import msgspec

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
from .stripes import ONLY, Stripe
from .tables import Key, Table, TableRow


class HostState(enum.StrEnum):
    LIVE = "live"
    GONE = "gone"
    """Condemned: it may not renew its lease, and its shards may be assigned to others."""
    SEALED = "sealed"
    """Its log is sealed. Outlives everything."""


class ShardState(enum.StrEnum):
    FREE = "free"
    ASSIGNED = "assigned"
    OWNED = "owned"


class ProcessIdentity(msgspec.Struct, frozen=True, array_like=True):
    """What tells one process from every other one, also after its pid is used again."""

    boot_id: str
    """The kernel's boot ID: the machine, in this life."""
    pid: int
    started: float
    """Seconds from boot to its start, as the kernel counts them (`process.this_process`): no clock step changes it."""


class HostRow(msgspec.Struct, frozen=True):
    incarnation: int
    address: str
    """`host:port` of its listener."""
    state: HostState
    renewals: int
    """Counts the renewals of its lease. A watcher compares it with itself over its own clock."""
    node: str
    """The node as the cluster names it."""
    process: ProcessIdentity | None
    draining: bool = False
    """It is to be given nothing more; what it has is moved away while it works on."""
    version: str = ""
    """The version of the app that it runs."""
    weight: float = 1.0
    """Its share of the shards, as a ratio to the others' weights. Above 0."""


class ShardRow(msgspec.Struct, frozen=True):
    shard: int
    state: ShardState
    epoch: int
    assigned: int | None
    """The incarnation that the coordinator decided on (ASSIGNED and OWNED)."""
    owner: int | None
    """The incarnation that claimed it (OWNED)."""
    owners: tuple[int, ...]
    """Incarnations that owned it and have not released it, the newest last: what a successor seals."""
    position: int
    """p: the tables are complete up to this position."""
    target: int | None = None
    """The incarnation that it is to be moved to (OWNED, never the owner itself)."""
    pin: str | None = None
    """It is to have a host for itself: on this node (as the cluster names it), with "" on any. None: like all others.
    Outlives every owner."""

    @property
    def holder(self) -> int | None:
        """The incarnation that has it, or is to claim it."""
        return self.assigned if self.owner is None else self.owner


class Assignment(msgspec.Struct, frozen=True):
    """A decision on one shard: whose it becomes (`Store.assign`), or where it is wanted (`Store.move`)."""

    shard: int
    expected_epoch: int
    """The epoch that the decision was made on; another one there makes it void."""
    incarnation: int


class CheckpointEnd(msgspec.Struct, frozen=True):
    """The last part of a shard's checkpoint."""

    position: int
    """p: the committed position when the checkpoint began."""
    commits: tuple[Commit, ...] = ()
    """Events of event-sourced entities above the former p, in order of position: one packed history row."""
    release: bool = False
    """True: also give the shard up, to its target if it has one. See `checkpoint`."""


class TableWrite(msgspec.Struct, frozen=True):
    """What one transaction writes for one shard: at most one row per entity, client and so on."""

    shard: int
    epoch: int
    entities: tuple[EntityRow, ...] = ()
    clients: tuple[ClientRow, ...] = ()
    forgotten_clients: tuple[int, ...] = ()
    named: tuple[NamedReply, ...] = ()
    forget_named_before_ms: int = 0
    """Named replies older than this are dropped (retention); 0 keeps all."""
    named_gone: tuple[tuple[str, str, str], ...] = ()
    """(kind, ID, command ID) of further ones that are dropped; those that no row has are no error."""
    mailbox: tuple[MailboxRow, ...] = ()
    mailbox_done: tuple[tuple[str, str, int], ...] = ()
    """(kind, ID, entry) of entries that are pending no more; those that no row has are no error. Done first."""
    mailbox_attempts: tuple[tuple[str, str, int, int], ...] = ()
    """(kind, ID, entry, attempts) of entries that have a row from before; those that have none are left out."""
    outbox: tuple[OutboxRow, ...] = ()
    outbox_done: tuple[int, ...] = ()
    """Numbers. As with the mailbox, and with dead letters: those that no row has are no error."""
    timers: tuple[TimerRow, ...] = ()
    timers_gone: tuple[tuple[str, str, str], ...] = ()
    """(kind, ID, name). Before `timers`, after `timers_cleared`."""
    timers_cleared: tuple[tuple[str, str], ...] = ()
    """(kind, ID) of entities that lose all their timers but those that this same write sets."""
    dead_letters: tuple[DeadLetterRow, ...] = ()
    letters_gone: tuple[int, ...] = ()
    end: CheckpointEnd | None = None


class PendingMailbox(msgspec.Struct, frozen=True, gc=False):
    """How much one entity has waiting in the mailbox table."""

    kind: str
    id: str
    entries: int
    bytes: int
    """Of their arguments."""


class PendingWork(msgspec.Struct, frozen=True):
    """What the tables hold of one shard that goes on without being called."""

    shard: int
    mailboxes: tuple[PendingMailbox, ...]
    outbox: tuple[OutboxRow, ...]
    """In order of number."""
    dead_letters: int


class LogRow(msgspec.Struct, frozen=True):
    n: int
    content: bytes


class Numbers(msgspec.Struct, frozen=True):
    """The last numbers that a store gave out: none of them is ever given out again."""

    incarnation: int
    client: int


_LOADING = " (import "


def loading_name(app: str, source: str) -> str:
    """Under which `app` a store is opened to be loaded from `source`. No app can have such a name, so nobody runs on it
    before `Store.finish_load`, and whoever tries reads why."""
    return f"{app}{_LOADING}{source} has not ended)"


def check_loading(name: str) -> None:
    """Raise `ValueError` unless a store with this name of its app is being loaded."""
    if _LOADING not in name:
        raise ValueError(f"the store of {name!r} is not being loaded: only a new one can be, under `loading_name`")


class Store(Protocol):
    """One async SPI, held to one contract test (tests/contract)."""

    # ---- life ------------------------------------------------------------------------------------------------
    @property
    def stripe(self) -> Stripe:
        """The stripe as which it was made; known once it is open."""
        ...

    async def open(self, app: str, shards: int, stripe: Stripe = ONLY) -> None:
        """Create the store for (app, shards, stripe), or open it. `shards` are those of the app; the store has the rows
        of those that lie in the stripe. An existing one of another app, shard count, stripe, schema version or machine
        raises `IncompatibleStore` saying what to do, and is not touched. A stripe without a family opens one of any."""
        ...

    async def exists(self) -> bool:
        """Whether it was created: `open` would find it. Asked of a store that is not open; creates nothing. May raise
        what `open` would raise."""
        ...

    async def close(self) -> None:
        """Give back connections and threads. Commits nothing, loses nothing; may be called twice."""
        ...

    # ---- hosts and leases ------------------------------------------------------------------------------------
    async def register_host(
        self, address: str, node: str, process: ProcessIdentity | None, *, version: str = "", weight: float = 1.0
    ) -> int:
        """Return a new incarnation: greater than every earlier one, its row LIVE with renewals 0 and not draining, its
        log created empty *before* the row is visible, and never created again. A weight that is not a finite number
        above 0 raises `ValueError`."""
        ...

    async def renew(self, incarnation: int) -> bool:
        """Add one to its renewals if it is LIVE; False when it is not (condemned or sealed), and nothing changes."""
        ...

    async def hosts(self) -> list[HostRow]:
        """All rows that are not SEALED, and of the sealed ones those that a shard's `owners` still names."""
        ...

    async def finished_logs(self) -> list[int]:
        """Incarnations that are not LIVE and that no shard's `owners` names: every shard in their logs is past them."""
        ...

    async def condemn(self, incarnation: int, renewals: int) -> bool:
        """LIVE -> GONE if its renewals are still `renewals`. True when it is GONE or SEALED afterwards."""
        ...

    async def set_draining(self, incarnation: int, draining: bool) -> bool:
        """Say in its row whether it drains. False when it is not LIVE (or unknown), and nothing changes; a repeat
        is True again. Moves nothing by itself: whoever decides on shards reads it."""
        ...

    # ---- ownership -------------------------------------------------------------------------------------------
    async def shards(self) -> list[ShardRow]:
        """All rows in order of shard, as of one instant."""
        ...

    async def assign(self, assignments: Sequence[Assignment]) -> frozenset[int]:
        """One transaction. Each shard whose epoch is still `expected_epoch`: state ASSIGNED, `assigned` set, `owner`
        None, `target` None, epoch + 1, `owners` and p as they were. Return the shards that changed. An assignment to an
        incarnation that is not eligible changes nothing. The caller first condemns an owner that has not released."""
        ...

    async def move(self, moves: Sequence[Assignment]) -> frozenset[int]:
        """One transaction. Each shard that is OWNED at exactly `expected_epoch`: `target` becomes the incarnation; all
        else stays, the epoch too. A target that is not eligible changes nothing. A move to the present owner takes the
        target away (the move is called off), whatever the owner's row says. Return the shards whose row changed: one
        that is wanted there already is not among them.

        A target is a wish. The owner sees it when it looks, and gives the shard up in its own time, by a checkpoint
        with `release`. Of two wishes at one epoch the later one stands."""
        ...

    async def pin(self, shard: int, node: str | None) -> bool:
        """Set or take away (None) the shard's `pin`, whatever its state; all else stays, the epoch too. False when its
        row says so already. Moves nothing by itself, and asks nothing of the node: whoever decides on shards reads it.
        """
        ...

    async def claim(self, incarnation: int, claims: Sequence[tuple[int, int]]) -> list[ShardRow]:
        """One transaction. Each (shard, epoch) that is ASSIGNED to `incarnation` at exactly that epoch becomes OWNED by
        it, and it is appended to `owners` (once). Return the new rows of those that were taken, with the `owners` in
        which every entry but the last must be sealed before anything of the shard is read. A claim by an incarnation
        that is not LIVE takes nothing; one that drains may take what it was assigned before. A repeat of a claim that
        took effect returns the row again."""
        ...

    # ---- the log ---------------------------------------------------------------------------------------------
    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        """Durably write row n = 1, 2, 3 ... of this incarnation's log, atomically: after return it survives any crash.

        The same content at a taken n is success (a repeat). Other content, or a seal, at n or anywhere above it raises
        `Fenced` and changes nothing: for ever. `StoreUnavailable` leaves the outcome open: repeat the same content at
        the same n."""
        ...

    async def seal(self, incarnation: int) -> int:
        """End a log: durably occupy its next n with a seal, verify that nothing stands above, mark the host SEALED, and
        return the n of the seal. Idempotent: a sealed log answers the same n. After return no append to it succeeds,
        whatever was under way. Only the holder of a fresh claim calls it. A store whose files a stopped process
        can keep locked first kills that process, known by its `ProcessIdentity`."""
        ...

    async def read_log(self, incarnation: int, after_n: int = 0) -> list[LogRow]:
        """The rows above `after_n` in order, the seal left out. Contents are checked by the caller (`decode_batch`)."""
        ...

    async def delete_log_rows(self, incarnation: int, through_n: int) -> None:
        """Drop rows up to and including `through_n`, but never the newest row and never the seal. Only for rows of
        which every shard's p is at or above its position there."""
        ...

    # ---- tables ----------------------------------------------------------------------------------------------
    async def checkpoint(self, incarnation: int, writes: Sequence[TableWrite]) -> frozenset[int]:
        """One transaction over all `writes`. Return the shards that were refused: locked and read first, a shard whose
        row is not OWNED by `incarnation` at the write's epoch is left out whole; the others are written.

        Upserts: an entity never by an older or equal seq over a newer one (equal changes nothing); an `EntityRow` with
        state None, state_seq 0 and not deleted says nothing of the state: the stored state and state_seq stay (events
        of an event-sourced entity without a new snapshot). A client's row as a
        whole, its floor never lowered; a named reply is written once. Mailbox entries, messages, timers and dead
        letters have nothing that tells old from new: the owner alone writes them, one checkpoint after the other, and
        a row replaces the one that stands there. With `end`: the history row and its index by
        entity are added, p becomes `end.position` (never less than before), and `owners` becomes (incarnation,).

        A `release` leaves no owner: `owner` and `target` None, `owners` (), epoch + 1, and the shard becomes ASSIGNED
        to the target that it had, if that is eligible at this moment, else FREE."""
        ...

    async def read_entity(self, shard: int, kind: str, id: str) -> EntityRow | None: ...

    async def read_commits(
        self, shard: int, kind: str, id: str, after_seq: int = 0, to_seq: int | None = None, limit: int | None = None
    ) -> list[Commit]:
        """History of one event-sourced entity with after_seq < seq <= to_seq, in order, at most `limit`.
        A limit of 0 and an empty range give nothing."""
        ...

    async def read_history(self, shard: int, after_position: int = 0, limit: int | None = None) -> list[Commit]:
        """History of a shard in order of position, at most `limit` commits. A reader never sees a position before
        an earlier one."""
        ...

    async def delete_history(self, shard: int, kind: str, id: str, through_seq: int) -> None:
        """Drop commits of one event-sourced entity with seq <= through_seq, but only such as nobody needs any more to
        know what it is: those that the snapshot in its row covers, and of a deleted entity all. Its row, and so its
        seq, stays as it is. May stop half way, with the oldest gone."""
        ...

    async def read_clients(self, shard: int) -> list[ClientRow]: ...

    async def read_named(self, shard: int, kind: str, id: str, command_id: str) -> NamedReply | None: ...

    # ---- work that goes on without being called --------------------------------------------------------------
    async def read_pending(self, shards: Sequence[int]) -> list[PendingWork]:
        """What waits in each of these shards, in the order asked for: read once when they are taken over."""
        ...

    async def read_mailbox(
        self, shard: int, kind: str, id: str, after_entry: int = 0, limit: int | None = None
    ) -> list[MailboxRow]:
        """The entries of one entity above `after_entry`, in order, at most `limit`."""
        ...

    async def read_timers(
        self, shard: int, after: tuple[int, str, str, str], through_ms: int, limit: int
    ) -> list[TimerRow]:
        """The timers behind `after` with due_ms <= through_ms in order of (due_ms, kind, ID, name), at most `limit`."""
        ...

    async def read_dead_letters(
        self, shard: int, after_number: int = 0, limit: int | None = None
    ) -> list[DeadLetterRow]:
        """In order of number, at most `limit`."""
        ...

    # ---- client sessions -------------------------------------------------------------------------------------
    async def open_session(self) -> int:
        """Register a client; return its ID, greater than every earlier one."""
        ...

    async def touch_sessions(self, clients: Iterable[int]) -> frozenset[int]:
        """Add one to the renewals of those sessions that exist; return the clients that have none (any more)."""
        ...

    async def sessions(self) -> dict[int, int]:
        """client -> renewals, for the one who expires them."""
        ...

    async def expire_sessions(self, observed: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Delete each (client, renewals) whose renewals are still that; return the clients that are gone afterwards."""
        ...

    # ---- upkeep: a store as a whole --------------------------------------------------------------------------
    async def scan(self, table: Table, shard: int, after: Key | None, limit: int) -> list[TableRow]:
        """The rows of one table behind the key `after` (None: from the first) in order of key, at most `limit`. An
        empty page is the end. Pages are read one by one: what changes meanwhile may be in one and not in another."""
        ...

    async def check(self, shard: int | None) -> list[str]:
        """What does not prove itself, one line each that names its place: of a shard's rows, or with None of what
        belongs to no shard, files and hosts. Empty when all is well. For a store that nobody writes: else a row that
        moves may be missed, or an index be ahead of what it names."""
        ...

    async def numbers(self) -> Numbers: ...

    async def load(self, writes: Sequence[TableWrite]) -> None:
        """One transaction of an import, into a store that was opened under a `loading_name` (`ValueError` else). Rows
        as in `checkpoint`, but without an owner: an `end` adds its history, and the shard is FREE at the write's epoch
        with that p. May be repeated."""
        ...

    async def finish_load(self, app: str, numbers: Numbers, sessions: Mapping[int, int]) -> None:
        """The end of an import: register the sessions (client -> renewals), go on counting where `numbers` ends, and
        make it, last, the store of `app`. To be opened anew after that. A repeat changes nothing."""
        ...


@runtime_checkable
class Snapshots(Protocol):
    """A store that can show itself as of one instant."""

    def snapshot(self) -> AbstractAsyncContextManager[Store]:
        """All that is durable at this instant, and nothing later, to be read only; whoever writes is not disturbed. For
        minutes, not for days: until its end the server keeps what is overwritten meanwhile."""
        ...
