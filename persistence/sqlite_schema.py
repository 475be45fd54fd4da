"""The tables of tables.db. Keys stand in the order in which a checkpoint writes and recovery reads.

Every `row` is a MessagePack struct of records.py or spi.py behind a checksum bound to its place. The columns beside it
are those that SQL compares; a row whose columns and content disagree is reported as corrupt.
"""

from __future__ import annotations

VERSIONS = {
    1: """
CREATE TABLE meta (                 -- what the store is, fixed at its creation
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    app    TEXT NOT NULL,
    shards INTEGER NOT NULL
) STRICT;

CREATE TABLE shards (               -- who owns what; ownership.py says how a row changes
    shard INTEGER PRIMARY KEY,
    row   BLOB NOT NULL             -- ShardRow
) STRICT;

CREATE TABLE entities (
    shard INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    id    TEXT NOT NULL,
    seq   INTEGER NOT NULL,         -- an older one never overwrites a newer one
    row   BLOB NOT NULL,            -- EntityRow
    PRIMARY KEY (shard, kind, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE clients (
    shard  INTEGER NOT NULL,
    client INTEGER NOT NULL,
    floor  INTEGER NOT NULL,        -- never lowered
    row    BLOB NOT NULL,           -- ClientRow
    PRIMARY KEY (shard, client)
) STRICT, WITHOUT ROWID;

CREATE TABLE named_replies (
    shard      INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    id         TEXT NOT NULL,
    command_id TEXT NOT NULL,
    time_ms    INTEGER NOT NULL,
    row        BLOB NOT NULL,       -- NamedReply
    PRIMARY KEY (shard, kind, id, command_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX named_replies_by_age ON named_replies (shard, time_ms);

CREATE TABLE history (              -- the commits of one checkpoint, packed, in pieces of bounded size
    shard          INTEGER NOT NULL,
    first_position INTEGER NOT NULL, -- names the piece, also when its first commits were deleted
    last_position  INTEGER NOT NULL,
    row            BLOB NOT NULL,   -- list[Commit]
    PRIMARY KEY (shard, first_position)
) STRICT, WITHOUT ROWID;

CREATE TABLE history_by_entity (    -- which pieces hold commits of an entity
    shard          INTEGER NOT NULL,
    kind           TEXT NOT NULL,
    id             TEXT NOT NULL,
    last_seq       INTEGER NOT NULL,
    first_seq      INTEGER NOT NULL,
    first_position INTEGER NOT NULL, -- the piece
    PRIMARY KEY (shard, kind, id, last_seq)
) STRICT, WITHOUT ROWID;
""",
    2: """
CREATE TABLE mailbox (              -- accepted commands that have not run
    shard INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    id    TEXT NOT NULL,
    entry INTEGER NOT NULL,
    bytes INTEGER NOT NULL,         -- of the arguments
    row   BLOB NOT NULL,            -- MailboxRow
    PRIMARY KEY (shard, kind, id, entry)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (               -- messages that their receivers have not taken over
    shard  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    row    BLOB NOT NULL,           -- OutboxRow
    PRIMARY KEY (shard, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE timers (
    shard  INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    id     TEXT NOT NULL,
    name   TEXT NOT NULL,
    due_ms INTEGER NOT NULL,
    row    BLOB NOT NULL,           -- TimerRow
    PRIMARY KEY (shard, kind, id, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX timers_by_due ON timers (shard, due_ms, kind, id, name);

CREATE TABLE dead_letters (
    shard  INTEGER NOT NULL,
    number INTEGER NOT NULL,
    row    BLOB NOT NULL,           -- DeadLetterRow
    PRIMARY KEY (shard, number)
) STRICT, WITHOUT ROWID;
""",
    3: """
-- No new table: rows of `shards` may hold a pin, which older code would drop when it writes the row.
""",
    4: """
-- Its place among the databases of its app (stripes.py). One from before there were several is alone.
ALTER TABLE meta ADD COLUMN stripe INTEGER NOT NULL DEFAULT 0;
ALTER TABLE meta ADD COLUMN stripes INTEGER NOT NULL DEFAULT 1;
ALTER TABLE meta ADD COLUMN family TEXT NOT NULL DEFAULT '';
""",
}
"""What each schema version added. A new store is made by all of them, an older one by those that it lacks."""
