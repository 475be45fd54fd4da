"""Every bound of Atoll in one place, each with what it bounds and why that number.

A frozen object; make another with `msgspec.structs.replace`. `Settings.load` lays the environment (`ATOLL_<NAME>`) over
what the app asked for and remembers where each value came from, which `atoll config` prints.
Units come last in a name: `_s` seconds, `_ms` milliseconds, `_bytes` bytes; `_max` is a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    # ---- what the store fixes at its creation
    shards: int = 256
    """Buckets of entity IDs, the unit of ownership. Fixed by the store: 256 split evenly over some 25 hosts."""

    # ---- sizes of what users bring
    arguments_bytes_max: int = 1 << 20
    """Encoded arguments of one command."""
    reply_bytes_max: int = 1 << 20
    """Encoded result of one command; it is kept as the recorded reply."""
    event_bytes_max: int = 1 << 20
    """One encoded event."""
    state_bytes_max: int = 1 << 20
    """Encoded state of one entity. It is written whole after each change: split what grows past this."""
    messages_per_turn_max: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1000
    """Messages that one command sends: they stand in one record. Who has more to tell sends itself the rest. The upper
    limit is that of their numbers, which have 16 bits for the place in the record."""
    timers_per_turn_max: int = 1000
    """Timers that one command sets or cancels: in one record, too."""
    outgoing_bytes_max: int = 4 << 20
    """Arguments of all messages and timers of one command: its record is written whole, so no larger than a batch."""
    timer_every_ms_min: Annotated[int, msgspec.Meta(ge=1)] = 10
    """The shortest interval of a repeating timer. Each tick is a turn and a commit: a hundred a second are plenty."""

    # ---- the wire
    frame_bytes_max: int = 16 << 20
    """One frame. Checked on the length prefix, before anything is allocated."""
    window_commands: int = 4096
    """Unanswered commands of one connection."""
    window_bytes: int = 16 << 20
    """Unanswered argument bytes of one connection."""
    shard_window: int = 1024
    """How far a client's numbers may run ahead of its oldest unanswered one, per shard: bounds the recorded
    replies that a shard keeps for a client."""
    stream_window: int = 512
    """The same for messages from one shard to another: unanswered ones, and answered ones above the oldest of these.
    Less than a client's, since there is a stream for each pair of shards."""
    handshake_timeout_s: float = 5.0
    """A peer that has not proved the token by then is dropped."""
    heartbeat_s: float = 1.0
    """Silence after which a ping is sent; three unanswered ones close the connection (a half-open peer)."""
    command_timeout_s: float = 10.0
    """A command's deadline unless the caller names one."""
    verdict_s: float = 0.5
    """How long after the deadline of a command that was sent its caller waits for the host to say whether it ran; never
    longer than the time-out once more. A host looks for what expired every 0.1 s, and the answer takes its way: a
    busy host or client has some turns of its loop left for it."""

    # ---- the host
    mailbox_commands_max: int = 1000
    """Queued commands of one entity: a second of work at 1 ms each."""
    mailbox_bytes_max: int = 8 << 20
    """Arguments of the queued commands of one entity; one command is let in whatever its size. A few entities that are
    stuck behind large commands then leave most of the next to the others."""
    queued_bytes_max: int = 128 << 20
    """Of one host: commands that wait for their turn, and what is staged and not durable. Above half of it a peer with
    more than its share is not read from, above it nobody is, until there is room. Eight full connection windows."""
    replies_bytes_max: int = 256 << 20
    """Of one host: recorded replies that its clients have not confirmed, in memory for a repeat. Above it a client may
    run only the lowest number of each shard that it lacks an answer for, until it confirms the others: one reply more
    for each of them at most. Seen every 0.1 s."""
    unsent_bytes_max: int = 256 << 20
    """Of one host: answers that its peers do not take. Above it, the connection with the most is closed."""
    uncommitted_commands_max: int = 20_000
    """Records that are staged and not durable: at this bound no turn begins. Half a second of work: the store is stuck,
    and what runs now could only wait for it."""
    uncommitted_bytes_max: int = 64 << 20
    """The same in bytes."""
    batched_max: int = 500
    """Commands that one turn of an `@atoll.batched` handler takes; their records go into one append."""
    batch_commands_max: int = 1000
    """Records in one append. Larger batches no longer gain throughput, and delay everybody in them."""
    batch_bytes_max: int = 4 << 20
    """Bytes in one append."""
    runners_max: int = 4096
    """Turns that wait at the same time on one host (async handlers, loads); further ones queue behind them. A waiting
    one costs a task of some 5 KB; too few, and handlers that ask each other would use up what they wait for."""
    turns_in_a_row_max: int = 64
    """Turns one entity may run before the others get the loop again."""
    turns_in_a_row_s: float = 0.005
    """The same in time: handlers that take a millisecond each give way after a few."""
    snapshot_every: int = 100
    """Events after which an event-sourced entity's record carries its whole state: bounds activation."""
    rest_idle_s: float = 2.0
    """An entity without commands is kept as its encoded state after this, unless it has hooks or attributes besides its
    fields. That takes a fifth of the memory, and 5 us of its next command."""
    passivate_idle_s: float = 600.0
    """An entity without commands leaves memory after this, one at rest up to an eighth later."""
    active_entities_max: int = 200_000
    """Above this the least recently used leave memory: 400 bytes each at rest, about 2 KB else. Who is at work, or not
    durable yet, stays until it no longer is."""

    memory_bytes_max: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What a host's process may take. From 80 % on entities leave memory and less may wait, from 90 % on much less.
    0: the tightest limit of its control groups (a container's), else the machine's memory; a part of either where an
    app has several databases, and so a host for each. Set it where other hosts share them. In a container of less than
    a GiB lower `uncheckpointed_bytes_max` as well: it is part of this."""

    # ---- checkpoint, recovery, retention
    checkpoint_s: float = 5.0
    """Age, commands and bytes that are committed but not in the tables: what a failover has to read."""
    checkpoint_commands: int = 50_000
    checkpoint_bytes: int = 64 << 20
    uncheckpointed_commands_max: int = 200_000
    """At this bound commits wait for the checkpoint: backpressure instead of an endless recovery."""
    uncheckpointed_bytes_max: int = 256 << 20
    table_write_rows: int = 500
    """Rows in one table transaction: a lock on the tables is short, other hosts wait behind it."""
    table_write_bytes: int = 1 << 20
    command_id_retention_s: float = 86_400.0
    """How long the reply under a caller-supplied command ID is kept."""
    session_s: float = 3600.0
    """A client that no host has seen for this long is forgotten, with its recorded replies."""
    session_touch_s: float = 60.0
    """How often a host renews the sessions of its connected clients."""

    # ---- delivery: work that outlives its host
    accept_after_s: float = 0.25
    """A tell that still waits for its turn after this is accepted by the next batch, however busy the host is. Sooner,
    whenever the host has nothing else to run. An acceptance costs a record of its own, which a busy host can do
    without: most tells run first."""
    tell_attempts_max: int = 10
    """Runs of an accepted command, of a message or of a timer's tick that may fail before it is a dead letter."""
    tell_retry_first_s: float = 0.1
    tell_retry_max_s: float = 5.0
    """Exponential with full jitter: ten attempts take some 8 s, a short outage of what a handler calls outside."""
    accepted_in_memory_max: int = 100_000
    """Accepted commands in a host's memory; above this they are only stored, and come back as the others end."""
    accepted_in_memory_bytes_max: int = 64 << 20
    """The same in bytes of arguments."""
    mailbox_stored_max: int = 100_000
    """Accepted commands of one entity that are only stored; above this senders get `Overloaded`, as above the next."""
    stored_commands_max: int = 1_000_000
    stored_bytes_max: int = 4 << 30
    """Those of one host: what a successor may have to work off."""
    mailbox_page: int = 500
    """Stored commands of one entity that are read at a time."""
    resuming_max: int = 64
    """Entities with stored work that are loaded at the same time after a takeover: callers' loads come in between."""
    outbox_messages_max: int = 100_000
    """Messages of one host that their receivers have not taken over; above this, turns that send are refused with
    `Overloaded` until there is room. They stay in memory, about 1 KB each. Soft: turns that run side by side each see
    the room that was left when they began. An entity whose mailbox is full goes on up to twice as many: what fills the
    outbox may be waiting for it."""
    outbox_bytes_max: int = 64 << 20
    delivered_flush_s: float = 0.05
    """Acknowledgements of messages ride in the next record of their shard, or after this in one of their own."""
    timers_loaded_max: int = 100_000
    """Timers in a host's memory; the others stay in the store until they are nearly due."""
    timers_in_flight_max: int = 1_000
    """Ticks that wait for their turn at the same time: a backlog of due timers is worked off in step with the host."""
    dead_letters_max: int = 10_000
    """Of one shard. Above this nothing is buried: what fails is tried on at the longest pause, until letters are
    replayed or dropped."""

    # ---- ownership
    lease_s: float = 3.0
    """A host answers reads only within this time of a renewal; a silent host is condemned after it."""
    lease_renew_s: float = 1.0
    """Three tries per lease."""
    store_poll_s: float = 0.25
    """How often hosts and coordinator look at the ownership rows without having been poked."""
    load_report_s: float = 2.0
    """How often hosts tell the coordinator how busy their shards are."""
    moves_max: int = 32
    """Shards that are on their way from one host to another at the same time: more would be felt by everybody."""
    release_deadline_s: float = 10.0
    """A handoff whose running turns take longer is rolled back."""

    # ---- retries: exponential with full jitter, within the command's deadline
    retry_first_s: float = 0.01
    retry_max_s: float = 0.5
    hosts_lost_max: int = 3
    """Owners that an ask may lose while it is under way; then its caller is told `OutcomeUnknown`, since it may be what
    ends them. (Runs of a tell are counted in the store.) Who stands beside such a one fares like it."""

    @classmethod
    def load(cls, asked: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
        """Return the settings and, per name, where its value came from: `default`, `app` or `environment`.

        Raises `ValueError` naming the setting when a value does not fit or a name is unknown.
        """
        values: dict[str, Any] = dict(asked)
        sources = {field: "app" if field in asked else "default" for field in cls.__struct_fields__}
        for field in cls.__struct_fields__:
            variable = f"ATOLL_{field.upper()}"
            if variable in environment:
                values[field] = environment[variable]
                sources[field] = "environment"
        try:
            return msgspec.convert(values, cls, strict=False), sources
        except msgspec.ValidationError as error:
            raise ValueError(f"settings: {error}") from None
