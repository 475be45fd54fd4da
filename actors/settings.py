"""Every bound of Atoll in one place, each with what it bounds and why that number.

A frozen object; make another with `msgspec.structs.replace`. `Settings.load` lays the environment (`ATOLL_<NAME>`) over
what the app asked for and remembers where each value came from, which `atoll config` prints.
Units come last in a name: `_s` seconds, `_ms` milliseconds, `_bytes` bytes; `_max` is a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    handshake_timeout_s: float = 5.0
    """A peer that has not proved the token by then is dropped."""
    heartbeat_s: float = 1.0
    """Silence after which a ping is sent; three unanswered ones close the connection (a half-open peer)."""
    command_timeout_s: float = 10.0
    """A command's deadline unless the caller names one."""

    # ---- the host
    mailbox_commands_max: int = 1000
    """Queued commands of one entity: a second of work at 1 ms each."""
    batch_commands_max: int = 1000
    """Records in one append. Larger batches no longer gain throughput, and delay everybody in them."""
    batch_bytes_max: int = 4 << 20
    """Bytes in one append."""
    runners_max: int = 4096
    """Turns that wait at the same time on one host (async handlers, loads); further ones queue behind them. A waiting
    one costs a task of some 5 KB; too few, and handlers that ask each other would use up what they wait for."""
    turns_in_a_row_max: int = 64
    """Turns one entity may run before the others get the loop again."""
    snapshot_every: int = 100
    """Events after which an event-sourced entity's record carries its whole state: bounds activation."""
    passivate_idle_s: float = 600.0
    """An entity without commands leaves memory after this."""
    active_entities_max: int = 200_000
    """Above this the least recently used leave memory (about 1-2 KB each)."""

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

    # ---- ownership
    lease_s: float = 3.0
    """A host answers reads only within this time of a renewal; a silent host is condemned after it."""
    lease_renew_s: float = 1.0
    """Three tries per lease."""
    store_poll_s: float = 0.25
    """How often hosts and coordinator look at the ownership rows without having been poked."""
    release_deadline_s: float = 10.0
    """A handoff whose running turns take longer is rolled back."""

    # ---- retries: exponential with full jitter, within the command's deadline
    retry_first_s: float = 0.01
    retry_max_s: float = 0.5

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
