"""What type checkers know of the public API. Never run: checked by mypy --strict and by pyright in strict mode.

Each ignore below is an error that users must see; it fails this file when the error goes away.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, assert_type

import atoll

E = TypeVar("E", bound=atoll.Entity)


@dataclass(frozen=True)
class Deposited:
    amount: int


class InsufficientFunds(atoll.Rejected):
    balance: int
    needed: int = 0


class Account(atoll.EventSourced, kind="account"):
    balance: int = 0
    owners: list[str] = atoll.field(default_factory=list[str])
    limit: int = atoll.field(default=5)

    async def on_activate(self) -> None: ...

    @atoll.command
    def deposit(self, amount: int, *, note: str = "") -> int:
        self.emit(Deposited(amount))
        assert_type(self.context.now, datetime)
        assert_type(self.context.id, str)
        assert_type(self.context.due, datetime | None)
        assert_type(self.context.entity(Account, "bob"), Account)
        self.context.delete()
        return self.balance

    @atoll.command
    async def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            raise InsufficientFunds(balance=self.balance, needed=amount)
        return self.balance

    @atoll.batched
    def tally(self, amounts: list[int]) -> list[str]:
        return [f"{amount}" for amount in amounts]

    @atoll.command
    def pay(self, other: str) -> None:
        bob = self.context.entity(Account, other)
        self.context.send(bob.deposit, 10, note="rent")
        self.context.send(bob.withdraw, amount=10)
        self.context.schedule("fee", timedelta(days=30), self.withdraw, 3)
        self.context.schedule("fee", self.context.now + timedelta(days=30), self.deposit, 3, note="x")
        self.context.schedule("fee", timedelta(days=30), self.withdraw, 3, every=timedelta(days=30))
        self.context.schedule("fee", timedelta(), self.withdraw, amount=3, every=timedelta(1), missed="catch_up")
        self.context.cancel("fee")

        # arguments are checked
        self.context.send(bob.deposit, "ten")  # type: ignore[arg-type]
        self.context.send(bob.deposit, 10, "rent")  # type: ignore[call-arg]
        self.context.send(bob.deposit)  # type: ignore[call-arg]
        self.context.schedule("fee", timedelta(1), self.withdraw, "3")  # type: ignore[call-overload]
        self.context.schedule("fee", timedelta(1), self.withdraw)  # type: ignore[call-overload]
        self.context.schedule("fee", timedelta(1), self.withdraw, 3, colour=1)  # type: ignore[call-arg]

        # queries are neither sent nor scheduled
        self.context.send(bob.current)  # type: ignore[arg-type]
        self.context.schedule("fee", timedelta(1), self.current)  # type: ignore[call-overload]

        # times are neither numbers nor words
        self.context.schedule("fee", 5, self.withdraw, 3)  # type: ignore[call-overload]
        self.context.schedule("fee", timedelta(1), self.withdraw, 3, every=5)  # type: ignore[call-arg]
        self.context.schedule("fee", timedelta(1), self.withdraw, 3, missed="catch_up")  # type: ignore[call-arg]
        self.context.schedule("x", timedelta(1), self.withdraw, 3, every=timedelta(1), missed="all")  # type: ignore[call-arg]

    @atoll.query
    def current(self) -> int:
        return self.balance

    @atoll.query
    async def owned_by(self, name: str) -> bool:
        return name in self.owners

    @atoll.apply
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount


class Presence(atoll.Entity, durable=False):
    seen: int = 0

    @atoll.command
    def see(self) -> None:
        self.seen += 1


@atoll.upcast(Deposited, version=1)
def more(old: dict[str, Any]) -> dict[str, Any]:
    return old


@asynccontextmanager
async def pools() -> AsyncGenerator[dict[str, int]]:
    yield {}


app = atoll.App("bank", entities=[Account, Presence], settings={"shards": 16}, resources=pools)
configured = atoll.App("bank", entities=[Account], settings=atoll.Settings(shards=16), store="sqlite:./data")


class Cluster(Protocol):
    """How every cluster hands out references."""

    def entity(self, entity_class: type[E], id: str) -> E: ...


async def calls(cluster: Cluster) -> None:
    alice = cluster.entity(Account, "alice")
    assert_type(alice, Account)

    # def and async def handlers look the same from outside
    asked = assert_type(alice.deposit(10), Coroutine[Any, Any, int])
    assert_type(await asked, int)
    assert_type(await alice.deposit(10, note="x"), int)
    asked = assert_type(alice.withdraw(10), Coroutine[Any, Any, int])
    assert_type(await asked, int)
    assert_type(await alice.withdraw(amount=10), int)
    assert_type(await alice.current(), int)
    assert_type(await alice.owned_by("bob"), bool)
    assert_type(await cluster.entity(Presence, "x").see(), None)

    # tell and options keep the parameters
    assert_type(await alice.deposit.tell(10, note="x"), None)
    assert_type(await alice.deposit.using(command_id=atoll.new_command_id(), timeout=2.0)(10), int)
    assert_type(await alice.deposit.using(fail_fast=True).tell(10), None)
    assert_type(await alice.owned_by.using(timeout=1)("bob"), bool)
    assert_type(await alice.deposit.using(priority="background")(10), int)
    assert_type(await alice.tally(10), str)
    await alice.tally.tell(10)
    await alice.tally("ten")  # type: ignore[arg-type]

    # arguments are checked
    await alice.deposit("ten")  # type: ignore[arg-type]
    await alice.deposit(10, "x")  # type: ignore[call-arg]
    await alice.deposit(10, colour=1)  # type: ignore[call-arg]
    await alice.deposit()  # type: ignore[call-arg]
    await alice.deposit.tell("ten")  # type: ignore[arg-type]
    await alice.deposit.using(command_id="x")("ten")  # type: ignore[arg-type]
    await alice.deposit.using(retries=3)(10)  # type: ignore[call-arg]
    await alice.deposit.using(priority="urgent")(10)  # type: ignore[arg-type]

    # a query cannot be told, and needs no command ID
    await alice.current.tell()  # type: ignore[attr-defined]
    await alice.current.using(command_id="x")()  # type: ignore[call-arg]

    # what is no entity has no reference
    cluster.entity(int, "x")  # type: ignore[type-var]
    cluster.entity(Account, 5)  # type: ignore[arg-type]


async def tests() -> None:
    kit = atoll.testing.EntityKit(Account, "alice", settings={"snapshot_every": 3})
    assert_type(kit, atoll.testing.EntityKit[Account])
    assert_type(await kit.ref.deposit(10), int)
    assert_type(kit.state, dict[str, Any])
    assert_type(kit.now, datetime)
    assert_type(kit.sent, list[atoll.testing.Sent])
    assert_type(kit.timers, dict[str, atoll.testing.Timer])
    assert_type(await kit.run_timers(), None)
    atoll.testing.EntityKit(int)  # type: ignore[type-var]


def definitions() -> type[atoll.Entity]:
    class Wrong(atoll.Entity):
        items: list[int] = atoll.field(default_factory=dict)  # type: ignore[arg-type]
        count: int = atoll.field(default="x")  # type: ignore[assignment]

    assert_type(Account.deposit.__name__, str)
    atoll.command(5)  # type: ignore[call-overload]
    atoll.App("bank", [Account])  # type: ignore[call-arg]
    return Wrong
