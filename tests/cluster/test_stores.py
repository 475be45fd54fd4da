"""Which databases an app has: named in one order for ever, each once, opened as what they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import atoll
from atoll.actors.errors import IncompatibleStore
from atoll.cluster.stores import open_all, store_urls
from atoll.persistence.memory import MemoryStore
from atoll.persistence.sqlite import SQLiteStore
from atoll.persistence.stripes import Stripe


class Cart(atoll.Entity):
    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def add(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)

    @atoll.command
    async def add_to_both(self, other: str, item: str) -> int:
        there = await self.context.entity(Cart, other).add(item)
        self.context.send(self.context.entity(Cart, other).add, f"{item}, sent")
        return there + self.add_here(item)

    def add_here(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)

    @atoll.query
    def content(self) -> list[str]:
        return self.items


SHARDS = 8


def app(store: str | Sequence[str] | None = None, shards: int = SHARDS) -> atoll.App:
    return atoll.App("carts", entities=[Cart], store=store, settings={"shards": shards})


def folders(path: Path, count: int) -> list[str]:
    return [f"sqlite:{path / str(number)}" for number in range(count)]


async def opened(urls: Sequence[str]) -> list[Stripe]:
    stores = [SQLiteStore(url.removeprefix("sqlite:")) for url in urls]
    try:
        return await open_all(stores, "carts", SHARDS)
    finally:
        for store in stores:
            await store.close()


def test_several_urls_come_from_the_command_line_the_environment_or_the_app() -> None:
    """The first of these that names any; their order is kept."""
    own = app(["sqlite:/own/b", "sqlite:/own/a"])
    environment = {"ATOLL_STORE": "sqlite:/env/b; sqlite:/env/a"}
    assert store_urls(own, ["sqlite:/x", "sqlite:/y"], environment) == ("sqlite:/x", "sqlite:/y")
    assert store_urls(own, [], environment) == ("sqlite:/env/b", "sqlite:/env/a")
    assert store_urls(own, [], {}) == ("sqlite:/own/b", "sqlite:/own/a")
    (default,) = store_urls(app(), [], {})
    assert default.endswith("/atoll-data/carts")


@pytest.mark.parametrize(
    "urls",
    [
        ["sqlite:/data/x", "/data/../data/x"],
        ["postgresql://a@db:5432/bank", "postgresql://b:secret@DB:5432/bank?sslmode=require"],
    ],
)
def test_one_database_named_twice_is_refused(urls: list[str]) -> None:
    """By whatever name or role; no password is shown."""
    with pytest.raises(ValueError, match="are one database: name each of them once") as refused:
        store_urls(app(urls), [], {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("store", [[], [""], 7, ["sqlite:a", None]])
def test_what_is_no_list_of_urls_is_refused_by_the_app(store: object) -> None:
    with pytest.raises(TypeError, match="store is a URL, or a list of them"):
        app(store)  # type: ignore[arg-type]  # that is what is tried


async def test_databases_that_were_made_together_are_opened_in_their_order_only(tmp_path: Path) -> None:
    """J13: another order, one left out, one too many, or one of another family: refused, and nothing is made."""
    first, second, third = folders(tmp_path, 3)
    made = await opened([first, second])
    assert [(stripe.index, stripe.count) for stripe in made] == [(0, 2), (1, 2)]
    assert made[0].family == made[1].family != ""
    assert await opened([first, second]) == made
    for wrong, told in (
        ([second, first], "as number 1"),
        ([first], "name all 2"),
        ([first, second, third], "name all 2"),
    ):
        with pytest.raises(IncompatibleStore, match=told):
            await opened(wrong)
    assert not (tmp_path / "2").exists()
    other, others_second = f"sqlite:{tmp_path / 'other'}", f"sqlite:{tmp_path / 'others-second'}"
    await opened([other, others_second])
    with pytest.raises(IncompatibleStore, match="together with others"):
        await opened([first, others_second])


async def test_a_creation_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """J13: those that are there say to which family the others belong."""
    first, second = folders(tmp_path, 2)
    begun = SQLiteStore(tmp_path / "1")
    await begun.open("carts", SHARDS, Stripe(1, 2, "f1"))
    await begun.close()
    assert await opened([first, second]) == [Stripe(0, 2, "f1"), Stripe(1, 2, "f1")]


async def test_what_is_opened_for_reading_is_not_made() -> None:
    """Without `create` a database that is not there stays so."""
    there, missing = MemoryStore(), MemoryStore()
    await there.open("carts", SHARDS, Stripe(0, 2, "f1"))
    await open_all([there, missing], "carts", SHARDS, create=False)
    assert not await missing.exists()


async def test_an_app_in_this_process_over_several_folders(tmp_path: Path) -> None:
    """S15: `atoll.local` with a host for each; asks and messages reach entities in the other ones; all is there the next
    time."""
    urls = folders(tmp_path, 3)
    ids = [f"cart-{number}" for number in range(12)]
    async with atoll.local(app(), store=urls) as cluster:
        for number, id in enumerate(ids):
            await cluster.entity(Cart, id).add("a")
            other = ids[(number + 5) % len(ids)]
            await cluster.entity(Cart, id).add_to_both(other, f"from {id}")
    async with atoll.local(app(), store=urls) as cluster:
        for id in ids:
            content: list[str] = []
            while len(content) < 4:
                content = await cluster.entity(Cart, id).content()
            source = ids[(ids.index(id) - 5) % len(ids)]
            assert sorted(content) == sorted(["a", f"from {id}", f"from {source}", f"from {source}, sent"])
    with pytest.raises(IncompatibleStore, match="name all 3"):
        async with atoll.local(app(), store=urls[0]):
            pass


async def test_more_databases_than_shards_are_refused_before_any_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 shards cannot lie in 3 databases"):
        async with atoll.local(app(shards=2), store=folders(tmp_path, 3)):
            pass
    assert not any((tmp_path / str(number) / "tables.db").exists() for number in range(3))
