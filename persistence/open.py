"""From a URL to a store: what `--store`, `ATOLL_STORE` and `App(store=...)` may say.

memory:              in this process, gone with it
sqlite:PATH          a folder of this machine, made when it is not there
PATH                 the same, when it begins with `/`, `./`, `../` or `~`
postgresql://...     a database whose tables `atoll store migrate` has made, as libpq writes it
"""

from __future__ import annotations

from pathlib import Path

from .memory import MemoryStore
from .spi import Store
from .sqlite import SQLiteStore
from .urls import is_postgres, shown


def open_store(url: str) -> Store:
    """The store that `url` names, not opened yet (`await store.open(app, shards)`). Each call makes a new one, so a
    memory store is shared by handing the object on. Raises `ValueError` that says what is possible."""
    scheme, colon, rest = url.partition(":")
    if url.startswith(("/", "./", "../", "~")):
        return SQLiteStore(Path(url).expanduser())
    if colon and scheme == "memory" and not rest:
        return MemoryStore()
    if colon and scheme == "sqlite" and rest.strip("/"):
        # sqlite:///absolute, as others write it, is the same as sqlite:/absolute
        return SQLiteStore(Path("/" + rest.lstrip("/") if rest.startswith("//") else rest).expanduser())
    if is_postgres(url):
        return _postgres(url)
    raise ValueError(
        f"{shown(url)!r} names no store: use postgresql://USER@HOST/DATABASE, memory: or sqlite:PATH, "
        "for example sqlite:./atoll-data/bank"
    )


def _postgres(url: str) -> Store:
    try:
        from .postgres import PostgresStore  # noqa: PLC0415 - asyncpg is an extra: who has another store needs it not
    except ModuleNotFoundError as error:
        raise ValueError(f"PostgreSQL needs the driver {error.name}: pip install 'atoll[postgres]'") from None
    return PostgresStore(url)
