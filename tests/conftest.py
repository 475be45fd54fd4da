"""What all tests share: where their helpers lie, the conformance table, and a PostgreSQL server of their own."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from postgres_databases import PostgresDatabases
    from promotion import Pair

_ROOT = Path(__file__).resolve().parents[1]
# Tests are no package (pytest imports them by path), so what they share is found by folder.
for _folder in ("tests/helpers", "deploy", "examples", "bench"):
    sys.path.insert(0, str(_ROOT / _folder))

# A shell that starts this process in the background has it ignore Ctrl-C, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["conformance", "flat_root", "pytester"]


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[PostgresDatabases]:
    """A PostgreSQL server for all tests, started by the first one that needs it."""
    from postgres_databases import PostgresDatabases

    with PostgresDatabases.start() as databases:
        yield databases


@pytest.fixture
def postgres_url(postgres_databases: PostgresDatabases) -> Iterator[str]:
    """The URL of a migrated database of one's own, as its runtime role."""
    with postgres_databases.fresh() as name:
        yield postgres_databases.server.url(name)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary and its standby, with an empty store."""
    from promotion import server_pair

    with server_pair() as pair:
        yield pair


@pytest.fixture(params=["sqlite", "postgresql"])
def second_store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty durable store, of each sort."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'second' / 'store'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
