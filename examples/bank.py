"""A bank in forty lines: accounts whose state is what happened to them.

python examples/bank.py             in this process, without Ray
atoll start bank:app --app-dir examples        on a running Ray cluster; then
python examples/bank.py --cluster   the same calls, to that cluster
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

import atoll


@dataclass(frozen=True)
class Deposited:
    amount: int


@dataclass(frozen=True)
class Withdrawn:
    amount: int


class InsufficientFunds(atoll.Rejected):
    """Arrives at the caller as itself, with its fields."""

    missing: int


class Account(atoll.EventSourced):
    balance: int = 0

    @atoll.command
    def deposit(self, amount: int) -> int:
        if amount <= 0:
            raise atoll.Rejected("amount must be positive")  # nothing is written
        self.emit(Deposited(amount))  # applied at once, committed together with the reply
        return self.balance

    @atoll.command
    def withdraw(self, amount: int) -> int:
        if amount <= 0:
            raise atoll.Rejected("amount must be positive")
        if amount > self.balance:
            raise InsufficientFunds(missing=amount - self.balance)
        self.emit(Withdrawn(amount))
        return self.balance

    @atoll.query
    def current(self) -> int:
        return self.balance

    @atoll.apply
    def _deposited(self, event: Deposited) -> None:
        self.balance += event.amount

    @atoll.apply
    def _withdrawn(self, event: Withdrawn) -> None:
        self.balance -= event.amount


app = atoll.App("bank", entities=[Account])


async def main(*, on_cluster: bool) -> None:
    async with atoll.connect("bank") if on_cluster else atoll.local(app) as cluster:
        alice = cluster.entity(Account, "alice")  # an address; nothing happens yet
        print("after a deposit of 10:", await alice.deposit(10))
        # The same command ID twice is one deposit: what to do when an answer got lost.
        order = atoll.new_command_id()
        for _ in range(2):
            print("after order 17:", await alice.deposit.using(command_id=order)(5))
        try:
            await alice.withdraw(1_000_000)
        except InsufficientFunds as error:
            print("refused, missing", error.missing)
        print("balance:", await alice.current())


if __name__ == "__main__":
    asyncio.run(main(on_cluster="--cluster" in sys.argv[1:]))
