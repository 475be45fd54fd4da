"""Which databases an app has, and opening all of them as what they are.

One is the rule. Several share the app's shards among them (persistence/stripes.py), and are named in the same order for
ever: the first start makes each one with its place and with a family that none but they have.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..actors.app import App
from ..persistence.open import open_store
from ..persistence.spi import Store
from ..persistence.sqlite import SQLiteStore
from ..persistence.stripes import ONLY, Stripe
from ..persistence.urls import database, is_postgres, shown
from ..sharding.messages import STRIPES_MAX

VARIABLE = "ATOLL_STORE"
SEPARATOR = ";"
"""Between several URLs in the variable: commas and blanks may stand in one."""
FAMILY_BYTES = 8


def store_urls(app: App, asked: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """`--store` over `ATOLL_STORE` over `App(store=...)` over SQLite in ./atoll-data/<app>. Raises `ValueError` for a
    database that is named twice, and for more than there can be."""
    urls = tuple(asked or named_in(environment) or app.stores) or (f"sqlite:{Path('atoll-data', app.name).absolute()}",)
    if len(urls) > STRIPES_MAX:
        raise ValueError(f"{len(urls)} databases are named, an app has at most {STRIPES_MAX}")
    places: dict[str, str] = {}
    for url in urls:
        place = _place(url)
        if place in places and len(urls) > 1 and url != "memory:":
            raise ValueError(f"{shown(url)} and {shown(places[place])} are one database: name each of them once")
        places[place] = url
    return urls


def named_in(environment: Mapping[str, str]) -> list[str]:
    """What the variable names."""
    return [url for part in environment.get(VARIABLE, "").split(SEPARATOR) if (url := part.strip())]


def _place(url: str) -> str:
    """What the URL leads to, whoever comes by it. Two names of one server are told apart by the store itself."""
    if is_postgres(url):
        return database(url)
    store = open_store(url)
    return str(store.folder.resolve()) if isinstance(store, SQLiteStore) else url


def stripes(count: int, family: str = "") -> list[Stripe]:
    """Those of an app with that many databases, in order."""
    return [ONLY] if count == 1 else [Stripe(index, count, family) for index in range(count)]


async def open_all(stores: Sequence[Store], app: str, shards: int, *, create: bool = True) -> list[Stripe]:
    """Open an app's databases, given in order, and return what they are. Those that are not there are made, in the
    family of the others; without `create` they are left alone and stay closed. After an error all are closed.

    Raises `IncompatibleStore` when one of them is another's or in another place, or not all belong together.
    """
    try:
        asked = stripes(len(stores))
        missing = []
        family = ""
        for store, stripe in zip(stores, asked, strict=True):
            if not await store.exists():
                missing.append((store, stripe))
                continue
            await store.open(app, shards, Stripe(stripe.index, stripe.count, family))
            family = store.stripe.family
        family = family or (secrets.token_hex(FAMILY_BYTES) if len(stores) > 1 else "")
        for store, stripe in missing if create else ():
            await store.open(app, shards, Stripe(stripe.index, stripe.count, family))
    except BaseException:
        for store in stores:
            await store.close()
        raise
    return stripes(len(stores), family)
