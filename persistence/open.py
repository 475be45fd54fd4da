"""From a URL to a store: what `--store`, `ATOLL_STORE` and `App(store=...)` may say.

memory:              in this process, gone with it
sqlite:PATH          a folder of this machine, made when it is not there
PATH                 the same, when it begins with `/`, `./`, `../` or `~`
"""

from __future__ import annotations

from pathlib import Path

from .memory import MemoryStore
from .spi import Store
from .sqlite import SQLiteStore


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
    if scheme in {"postgres", "postgresql"}:
        raise ValueError(f"{scheme}: stores are not there yet: use sqlite:PATH (one machine) or memory:")
    raise ValueError(f"{url!r} names no store: use memory: or sqlite:PATH, for example sqlite:./atoll-data/bank")
