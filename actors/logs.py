"""What a log line is about, as fields of its record: to be searched by, whatever the text says.

    log.warning("%s failed", method, extra=about(shard=7, incarnation=3, kind="Account", id="alice", command="order-1"))

A line names those that apply, and never carries a payload: no arguments, no state, no result.
"""

from __future__ import annotations

FIELDS = ("shard", "incarnation", "kind", "id", "command")
"""In the order in which they are printed (cluster/log_format.py)."""


def about(
    *,
    shard: int | None = None,
    incarnation: int | None = None,
    kind: str | None = None,
    id: str | None = None,
    command: str | None = None,
) -> dict[str, object]:
    """The `extra` of a log call. `command`: the ID that its caller gave it, else client.shard.number."""
    named = {"shard": shard, "incarnation": incarnation, "kind": kind, "id": id, "command": command}
    return {name: value for name, value in named.items() if value is not None}
