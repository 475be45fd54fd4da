"""Money that moves between accounts by messages: a saga. No transaction spans two accounts, and no money gets lost.

python examples/transfer.py                     in this process, without Ray
atoll start transfer:app --app-dir examples     on a running Ray cluster; then
python examples/transfer.py --cluster           the same calls, to that cluster

A transfer is an entity of its own, which asks the payer, then the payee, and remembers how far it is:

    NEW --begin--> RESERVING --reserved--> OFFERED --credited---> SETTLING --> DONE
                      |                    ^    |  `---declined--> SETTLING --> RETURNED
                      `--refused--> REFUSED `----' its time is over: the payee is asked to decide now

Three things make it right whoever dies in between, and none of them is code here:

- What a command changes, what it sends and what it schedules is committed together. There is no moment in which money
  is reserved and nobody knows for whom.
- A message arrives exactly once, and those of one sender to one receiver in the order sent. So no command that a
  message brings asks whether it has run before.
- A timer outlives its host, and one that was cancelled never fires, even if its tick is queued already.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import sys
from collections import Counter
from datetime import timedelta

import atoll


class Account(atoll.Entity):
    """Money is in the balance or in a reservation, and in both cases in this account."""

    is_open: bool = False
    balance: int = 0
    balance_max: int = 0
    asks_above: int = 0
    """Larger sums wait until the account's owner accepts them."""
    reserved: dict[str, int] = atoll.field(default_factory=dict)
    """By transfer: what left the balance and is not spent yet."""
    offered: dict[str, int] = atoll.field(default_factory=dict)
    """By transfer: what waits for the owner's word. Not this account's money."""

    # ---- for its owner

    @atoll.command
    def open(self, deposit: int, balance_max: int = 1_000_000, asks_above: int = 1_000_000) -> None:
        if not self.is_open:
            self.is_open, self.balance = True, deposit
        self.balance_max, self.asks_above = balance_max, asks_above

    @atoll.command
    def close(self) -> None:
        if self.balance or self.reserved:
            raise atoll.Rejected("there is money left")
        self.is_open = False

    @atoll.command
    def accept(self, transfer: str) -> None:
        if transfer not in self.offered:
            raise atoll.Rejected(f"nothing is offered by {transfer}, or no longer")
        self._take(transfer, self.offered.pop(transfer))

    @atoll.query
    def current(self) -> int:
        return self.balance

    @atoll.query
    def offers(self) -> list[str]:
        return list(self.offered)

    # ---- for transfers. A refusal is a message too: an exception would reach nobody, and be kept as a dead letter

    @atoll.command
    def reserve(self, transfer: str, amount: int) -> None:
        if amount > self.balance:
            self.context.send(self._transfer(transfer).refused, f"{amount - self.balance} are missing")
            return
        self.balance -= amount
        self.reserved[transfer] = amount
        self.context.send(self._transfer(transfer).reserved)

    @atoll.command
    def settle(self, transfer: str, *, spent: bool) -> None:
        amount = self.reserved.pop(transfer)
        if not spent:
            self.balance += amount  # also above balance_max: it was here before
        self.context.send(self._transfer(transfer).settled)

    @atoll.command
    def offer(self, transfer: str, amount: int) -> None:
        if amount > self.asks_above and self.is_open:
            self.offered[transfer] = amount
        else:
            self._take(transfer, amount)

    @atoll.command
    def withdraw(self, transfer: str) -> None:
        # Offer and withdrawal come from one sender, so in this order. If nothing is offered any more, the owner was
        # faster, and word of what became of it is on its way.
        if self.offered.pop(transfer, None) is not None:
            self.context.send(self._transfer(transfer).declined, "nobody accepted it in time")

    def _take(self, transfer: str, amount: int) -> None:
        if not self.is_open:  # or nobody ever opened it: an entity that was never called is there all the same
            self.context.send(self._transfer(transfer).declined, "there is no such account")
        elif self.balance + amount > self.balance_max:
            self.context.send(self._transfer(transfer).declined, f"it may not hold more than {self.balance_max}")
        else:
            self.balance += amount
            self.context.send(self._transfer(transfer).credited)

    def _transfer(self, id: str) -> Transfer:
        return self.context.entity(Transfer, id)


class State(enum.StrEnum):
    NEW = "new"
    RESERVING = "reserving"
    OFFERED = "offered"
    SETTLING = "settling"
    DONE = "done"
    REFUSED = "refused by the payer"
    RETURNED = "returned to the payer"


ENDS = (State.DONE, State.REFUSED, State.RETURNED)


class Transfer(atoll.Entity):
    state: State = State.NEW
    payer: str = ""
    payee: str = ""
    amount: int = 0
    patience_s: float = 0.0
    why: str = ""
    """Why the payee did not get it, empty when it did."""

    @atoll.command
    def begin(self, payer: str, payee: str, amount: int, patience_s: float = 3600.0) -> None:
        """Returns at once; the transfer comes to one of its `ENDS`. Who is not sure that this arrived repeats it."""
        if amount <= 0 or payer == payee:
            raise atoll.Rejected("a transfer moves something, to somebody else")
        if self.state is not State.NEW:
            if (self.payer, self.payee, self.amount) != (payer, payee, amount):
                raise atoll.Rejected("this is the ID of another transfer")
            return
        self.state = State.RESERVING
        self.payer, self.payee, self.amount, self.patience_s = payer, payee, amount, patience_s
        self.context.send(self.context.entity(Account, payer).reserve, self.context.id, amount)

    @atoll.query
    def outcome(self) -> tuple[State, str]:
        return self.state, self.why

    # ---- for the payer

    @atoll.command
    def reserved(self) -> None:
        self.state = State.OFFERED
        self.context.send(self.context.entity(Account, self.payee).offer, self.context.id, self.amount)
        self.context.schedule("patience", timedelta(seconds=self.patience_s), self.out_of_patience)

    @atoll.command
    def refused(self, why: str) -> None:
        self.state, self.why = State.REFUSED, why

    @atoll.command
    def settled(self) -> None:
        self.state = State.RETURNED if self.why else State.DONE

    # ---- for the payee

    @atoll.command
    def credited(self) -> None:
        self._settle()

    @atoll.command
    def declined(self, why: str) -> None:
        self.why = why
        self._settle()

    def _settle(self) -> None:
        self.state = State.SETTLING
        self.context.cancel("patience")
        self.context.send(self.context.entity(Account, self.payer).settle, self.context.id, spent=not self.why)

    # ---- for the timer

    @atoll.command
    def out_of_patience(self) -> None:
        # Not "give the money back": the payee may have taken it a moment ago. A time-out knows nothing about the other
        # side, it can only make it decide. Whatever it says, it says once, and that counts.
        self.context.send(self.context.entity(Account, self.payee).withdraw, self.context.id)


app = atoll.App("transfers", entities=[Account, Transfer])


async def open_accounts(cluster: atoll.Cluster) -> dict[str, Account]:
    accounts = {name: cluster.entity(Account, name) for name in ("alice", "bob", "dora", "emil", "zoe")}
    await accounts["alice"].open(500)
    await accounts["bob"].open(200)
    await accounts["dora"].open(0, asks_above=100)
    await accounts["emil"].open(40, balance_max=60)
    return accounts  # and nobody opened one for zoe


async def end_of(transfer: Transfer) -> str:
    """Wait for it. Nobody has to: it ends by itself."""
    while True:
        state, why = await transfer.outcome()
        if state in ENDS:
            return f"{state}, {why}" if why else state
        await asyncio.sleep(0.01)


async def accept_next(account: Account) -> None:
    """Be an account's owner: wait for an offer, and accept it."""
    while True:
        for transfer in await account.offers():
            await account.accept(transfer)
            return
        await asyncio.sleep(0.01)


async def balances(accounts: dict[str, Account]) -> dict[str, int]:
    return {name: await account.current() for name, account in accounts.items()}


async def main(*, on_cluster: bool) -> None:
    async with atoll.connect("transfers") if on_cluster else atoll.local(app) as cluster:
        accounts = await open_accounts(cluster)
        before = sum((await balances(accounts)).values())
        run, numbers = atoll.new_command_id(), itertools.count(1)

        async def move(payer: str, payee: str, amount: int, patience_s: float = 3600.0) -> Transfer:
            transfer = cluster.entity(Transfer, f"{run}/{next(numbers)}")
            await transfer.begin(payer, payee, amount, patience_s)
            return transfer

        async def show(payer: str, payee: str, amount: int, patience_s: float = 3600.0) -> None:
            print(f"{payer} to {payee}, {amount}:", await end_of(await move(payer, payee, amount, patience_s)))

        await show("alice", "bob", 30)
        await show("bob", "zoe", 10)
        await show("emil", "bob", 1_000_000)
        await show("alice", "emil", 50)
        await show("alice", "dora", 150, patience_s=0.1)  # more than she takes unasked, and nobody asks her

        transfer = await move("alice", "dora", 120)
        await accept_next(accounts["dora"])
        print("alice to dora, 120, accepted by her:", await end_of(transfer))

        pairs = itertools.cycle(itertools.permutations(accounts, 2))
        many = [await move(*next(pairs), amount=amount) for _ in range(10) for amount in range(1, 51)]
        ends = Counter(end.partition(",")[0] for end in await asyncio.gather(*map(end_of, many)))
        print(f"{len(many)} at once:", ", ".join(f"{count} {end}" for end, count in ends.items()))

        after = await balances(accounts)
        print("balances:", ", ".join(f"{name} {balance}" for name, balance in after.items()))
        print(f"together {sum(after.values())}, and before {before}")


if __name__ == "__main__":
    asyncio.run(main(on_cluster="--cluster" in sys.argv[1:]))
