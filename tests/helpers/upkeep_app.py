"""The bank of messages on a store that is exported, imported, backed up and checked: hosts that leave much in the logs
and look often."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from plain_cluster import PlainCluster, plain_cluster

APP = "messages"
SETTINGS: dict[str, Any] = {
    "shards": 8,
    "lease_s": 0.6,
    "lease_renew_s": 0.1,
    "store_poll_s": 0.05,
    "checkpoint_s": 0.2,  # so that tables and logs both hold some of it
    "tell_retry_first_s": 0.005,
    "tell_retry_max_s": 0.05,
    "tell_attempts_max": 30,
    "mailbox_commands_max": 12,
}


def two_hosts(folder: Path, store: str | None = None) -> AbstractAsyncContextManager[PlainCluster]:
    """Two host processes, which are killed in the end."""
    app_dir = Path(__file__).resolve().parent
    return plain_cluster("bank_of_messages:app", APP, folder, app_dir=app_dir, hosts=2, store=store, settings=SETTINGS)


def silent(done: int, total: int) -> None:
    """Hears of progress."""
    assert 0 <= done <= total
