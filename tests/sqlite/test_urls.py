"""URLs name stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.persistence.memory import MemoryStore
from atoll.persistence.open import open_store
from atoll.persistence.postgres import PostgresStore
from atoll.persistence.sqlite import SQLiteStore


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:data/bank", Path.cwd() / "data/bank"),
        ("sqlite:./data", Path.cwd() / "data"),
        ("sqlite:/var/lib/bank", Path("/var/lib/bank")),
        ("sqlite:///var/lib/bank", Path("/var/lib/bank")),
        ("sqlite:~/bank", Path.home() / "bank"),
        ("./data", Path.cwd() / "data"),
        ("/var/lib/bank", Path("/var/lib/bank")),
    ],
)
def test_a_path_names_a_folder(url: str, folder: Path) -> None:
    store = open_store(url)
    assert isinstance(store, SQLiteStore)
    assert store.folder == folder


def test_memory_is_a_new_store_each_time() -> None:
    first, second = open_store("memory:"), open_store("memory:")
    assert isinstance(first, MemoryStore)
    assert first is not second


@pytest.mark.parametrize("url", ["", "sqlite:", "sqlite:/", "memory", "memory:x", "redis://x", "data", "sqlite"])
def test_anything_else_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ValueError, match="memory: or sqlite:PATH"):
        open_store(url)


@pytest.mark.parametrize(
    "url", ["postgresql://localhost/bank", "postgres://me:secret@a:5432,b:5432/bank?sslmode=require"]
)
def test_a_database_is_named_as_libpq_does(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, PostgresStore)
    assert store.url == url
