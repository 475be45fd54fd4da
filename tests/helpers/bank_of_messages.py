"""Entities whose states tell whether messages, tells and timers took effect exactly once and in order.

    Account, Transfer    money moves by messages; a timer ends a transfer that the payee sits on
    Talker               sends 1, 2, 3 ... to others, and keeps what it hears from each of them
    Notebook             keeps what it is told and asked to keep, in the order in which it came
    Clock                sets, replaces and cancels timers, and keeps what fired

`Load` lets one client work on them through any cluster, waits until all that follows from it has come to its end, and
says what is not as it should be. A module of its own, so that host processes can import the app by name.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import atoll

MS = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# ---- money


@dataclass(frozen=True)
class Balance:
    balance: int
    waiting: int
    """Reservations and offers."""
    lines: list[tuple[str, str]]
    """(transfer, what happened), in order."""


class Account(atoll.Entity):
    balance: int = 0
    is_closed: bool = False
    reserved: dict[str, int] = atoll.field(default_factory=dict)
    offered: dict[str, int] = atoll.field(default_factory=dict)
    lines: list[tuple[str, str]] = atoll.field(default_factory=list)

    @atoll.command
    def open(self, balance: int, *, is_closed: bool) -> None:
        self.balance, self.is_closed = balance, is_closed

    @atoll.command
    def reserve(self, transfer: str, amount: int) -> None:
        if amount > self.balance:
            self.context.send(self._transfer(transfer).refused)
            return
        self.balance -= amount
        self.reserved[transfer] = amount
        self.lines.append((transfer, "reserved"))
        self.context.send(self._transfer(transfer).reserved)

    @atoll.command
    def offer(self, transfer: str, amount: int) -> None:
        if self.is_closed:
            self.context.send(self._transfer(transfer).declined)
        elif amount % 3 == 0:
            self.offered[transfer] = amount  # until the transfer's time is over
        else:
            self.balance += amount
            self.lines.append((transfer, "credited"))
            self.context.send(self._transfer(transfer).credited)

    @atoll.command
    def withdraw(self, transfer: str) -> None:
        if self.offered.pop(transfer, None) is not None:
            self.context.send(self._transfer(transfer).declined)

    @atoll.command
    def settle(self, transfer: str, *, spent: bool) -> None:
        amount = self.reserved.pop(transfer, 0)
        if not spent:
            self.balance += amount
        self.lines.append((transfer, "spent" if spent else "released"))
        self.context.send(self._transfer(transfer).settled)

    @atoll.query
    def audit(self) -> Balance:
        return Balance(self.balance, len(self.reserved) + len(self.offered), self.lines)

    def _transfer(self, id: str) -> Transfer:
        return self.context.entity(Transfer, id)


class Transfer(atoll.Entity):
    """new -> reserving -> offered -> settling -> done or returned; reserving -> refused"""

    state: str = "new"
    payer: str = ""
    payee: str = ""
    amount: int = 0
    patience_ms: int = 0
    spent: bool = False
    steps: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def begin(self, payer: str, payee: str, amount: int, patience_ms: int) -> None:
        self._step("begin", "new", "reserving")
        self.payer, self.payee, self.amount, self.patience_ms = payer, payee, amount, patience_ms
        self.context.send(self.context.entity(Account, payer).reserve, self.context.id, amount)

    @atoll.command
    def reserved(self) -> None:
        self._step("reserved", "reserving", "offered")
        self.context.send(self.context.entity(Account, self.payee).offer, self.context.id, self.amount)
        self.context.schedule("patience", self.patience_ms * MS, self.out_of_patience)

    @atoll.command
    def refused(self) -> None:
        self._step("refused", "reserving", "refused")

    @atoll.command
    def credited(self) -> None:
        self._settle("credited", spent=True)

    @atoll.command
    def declined(self) -> None:
        self._settle("declined", spent=False)

    def _settle(self, step: str, *, spent: bool) -> None:
        self._step(step, "offered", "settling")
        self.spent = spent
        self.context.cancel("patience")
        self.context.send(self.context.entity(Account, self.payer).settle, self.context.id, spent=spent)

    @atoll.command
    def settled(self) -> None:
        self._step("settled", "settling", "done" if self.spent else "returned")

    @atoll.command
    def out_of_patience(self) -> None:
        self._step("out_of_patience", "offered", "offered")
        self.context.send(self.context.entity(Account, self.payee).withdraw, self.context.id)

    @atoll.query
    def audit(self) -> tuple[str, list[str]]:
        return self.state, self.steps

    def _step(self, step: str, before: str, after: str) -> None:
        self.steps.append(step if self.state == before else f"{step} while {self.state}")
        self.state = after


STEPS = {
    "new": ([],),
    "refused": (["begin", "refused"],),
    "done": (
        ["begin", "reserved", "credited", "settled"],
        ["begin", "reserved", "out_of_patience", "credited", "settled"],
    ),
    "returned": (
        ["begin", "reserved", "declined", "settled"],
        ["begin", "reserved", "out_of_patience", "declined", "settled"],
    ),
}
"""How a transfer may come to each of its ends. (`new`: it never began.)"""
LINES = {
    "new": ([], []),
    "refused": ([], []),
    "done": (["reserved", "spent"], ["credited"]),
    "returned": (["reserved", "released"], []),
}
"""What is then found at the payer, and at the payee."""


# ---- sequences


@dataclass(frozen=True)
class Talk:
    said: dict[str, int]
    heard: dict[str, list[int]]


class Talker(atoll.Entity):
    said: dict[str, int] = atoll.field(default_factory=dict)
    heard: dict[str, list[int]] = atoll.field(default_factory=dict)

    @atoll.command
    def say(self, listeners: list[str], times: int) -> None:
        for _ in range(times):
            for listener in listeners:
                number = self.said[listener] = self.said.get(listener, 0) + 1
                target = self.context.entity(Talker, listener)
                self.context.send(target.hear if number % 7 else target.hear_slowly, self.context.id, number)

    @atoll.command
    def hear(self, who: str, number: int) -> None:
        self.heard.setdefault(who, []).append(number)

    @atoll.command
    async def hear_slowly(self, who: str, number: int) -> None:
        await asyncio.sleep(0.002)
        self.heard.setdefault(who, []).append(number)

    @atoll.query
    def audit(self) -> Talk:
        return Talk(self.said, self.heard)


# ---- tells


_first_tried: dict[str, datetime] = {}
"""Token -> when this host first ran it. Counted from there it fails at least once on a machine of any speed."""


class Notebook(atoll.Entity):
    tokens: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def note(self, token: str) -> None:
        self.tokens.append(token)

    @atoll.command
    async def note_slowly(self, token: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.tokens.append(token)

    @atoll.command
    def note_later(self, token: str, seconds: float) -> None:
        now = self.context.now
        if now < _first_tried.setdefault(token, now) + timedelta(seconds=seconds):
            raise RuntimeError("on purpose")
        self.tokens.append(token)

    @atoll.query
    def audit(self) -> list[str]:
        return self.tokens


# ---- timers


@dataclass(frozen=True)
class Times:
    current: dict[str, str]
    armed: list[str]
    dropped: list[str]
    fired: list[str]
    wrong: list[str]
    repeats: dict[str, tuple[int, int]]
    """name -> (interval in ms, how many ticks)"""
    ticks: dict[str, list[int]]
    """name -> for when they were due, in ms"""


class Clock(atoll.Entity):
    current: dict[str, str] = atoll.field(default_factory=dict)
    """Timer -> the token that it was armed with last and that has not fired."""
    armed: list[str] = atoll.field(default_factory=list)
    dropped: list[str] = atoll.field(default_factory=list)
    """Cancelled, or armed anew before they fired."""
    fired: list[str] = atoll.field(default_factory=list)
    wrong: list[str] = atoll.field(default_factory=list)
    repeats: dict[str, tuple[int, int]] = atoll.field(default_factory=dict)
    ticks: dict[str, list[int]] = atoll.field(default_factory=dict)

    @atoll.command
    def arm(self, name: str, token: str, delay_ms: int) -> None:
        self._drop(name)
        self.current[name] = token
        self.armed.append(token)
        self.context.schedule(name, delay_ms * MS, self.ring, name, token)

    @atoll.command
    def disarm(self, name: str) -> None:
        self._drop(name)
        self.context.cancel(name)

    @atoll.command
    def ring(self, name: str, token: str) -> None:
        self.fired.append(token)
        if self.current.pop(name, None) != token:
            self.wrong.append(f"{token} fired though it was cancelled or replaced")

    @atoll.command
    def repeat(self, name: str, every_ms: int, times: int) -> None:
        self.repeats[name] = (every_ms, times)
        self.context.schedule(name, every_ms * MS, self.tick, name, every=every_ms * MS, missed="catch_up")

    @atoll.command
    def tick(self, name: str) -> None:
        assert self.context.due is not None
        ticks = self.ticks.setdefault(name, [])
        ticks.append((self.context.due - EPOCH) // MS)
        if len(ticks) == self.repeats[name][1]:
            self.context.cancel(name)

    @atoll.query
    def audit(self) -> Times:
        return Times(self.current, self.armed, self.dropped, self.fired, self.wrong, self.repeats, self.ticks)

    def _drop(self, name: str) -> None:
        token = self.current.pop(name, None)
        if token is not None:
            self.dropped.append(token)


app = atoll.App("messages", entities=[Account, Transfer, Talker, Notebook, Clock])


# ---- the client's side


class Violation(AssertionError):
    """What stands in the entities cannot be."""


@dataclass(frozen=True)
class Found:
    """All entities of a load, as they are now."""

    accounts: dict[str, Balance]
    transfers: dict[str, tuple[str, list[str]]]
    talkers: dict[str, Talk]
    notebooks: dict[str, list[str]]
    clocks: dict[str, Times]


class Load:
    """One client's work on entities of its own, all named after it."""

    def __init__(
        self,
        cluster: atoll.Cluster,
        name: str,
        luck: random.Random,
        *,
        pause_s: float = 0.006,
    ) -> None:
        """`pause_s`: of a worker between two of its commands, at most."""
        self._cluster = cluster
        self._name = name
        self._luck = luck
        self._pause_s = pause_s
        self._number = 0
        self._accounts = [f"{name}.account{i}" for i in range(6)]
        self._talkers = [f"{name}.talker{i}" for i in range(4)]
        self._notebooks = [f"{name}.notebook{i}" for i in range(3)]
        self._clocks = [f"{name}.clock{i}" for i in range(3)]
        self._money = 0
        self._transfers: dict[str, tuple[str, str]] = {}
        """ID -> payer and payee, of all that were tried."""
        self._issued: dict[str, list[str]] = defaultdict(list)
        """By notebook, in the order sent."""
        self.acknowledged: set[str] = set()
        """Transfers that began, and tokens of notebooks and clocks."""
        self._refused: set[str] = set()
        """Those that surely did not take effect: so we were told."""

    async def open(self) -> None:
        for number, id in enumerate(self._accounts):
            self._money += 60 * number
            await self._cluster.entity(Account, id).open(60 * number, is_closed=number == 0)

    async def work(self, over: asyncio.Event) -> None:
        """Until it is over."""
        async with asyncio.TaskGroup() as tasks:
            for work, workers in ((self._transfer, 3), (self._talk, 2), (self._note, 4), (self._time, 2)):
                for _ in range(workers):
                    tasks.create_task(self._repeat(work, over))

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Work meanwhile; in the end what was begun has its answers."""
        over = asyncio.Event()
        work = asyncio.create_task(self.work(over))
        try:
            yield
        finally:
            over.set()
        await work

    async def more(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more commands are acknowledged."""
        enough = len(self.acknowledged) + count
        async with asyncio.timeout(timeout_s):
            while len(self.acknowledged) < enough:  # noqa: ASYNC110 - other processes' doing
                await asyncio.sleep(0.01)

    async def _repeat(self, work: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
        while not over.is_set():
            await work()
            await asyncio.sleep(self._luck.uniform(0, self._pause_s))

    def _next(self) -> str:
        self._number += 1
        return f"{self._name}.{self._number}"

    async def _outcome(self, token: str, command: Awaitable[Any]) -> None:
        try:
            await command
        except atoll.NotExecuted:
            self._refused.add(token)
        except atoll.OutcomeUnknown:
            pass
        else:
            self.acknowledged.add(token)

    async def _transfer(self) -> None:
        id, luck = self._next(), self._luck
        payer, payee = luck.sample(self._accounts, 2)
        self._transfers[id] = (payer, payee)
        begin = self._cluster.entity(Transfer, id).begin
        await self._outcome(id, begin(payer, payee, luck.randint(1, 60), luck.randint(1, 60)))

    async def _talk(self) -> None:
        listeners = self._luck.sample(self._talkers, self._luck.randint(1, 4))
        say = self._cluster.entity(Talker, self._luck.choice(self._talkers)).say
        await self._outcome(self._next(), say(listeners, self._luck.randint(1, 3)))

    async def _note(self) -> None:
        id, token, luck = self._luck.choice(self._notebooks), self._next(), self._luck.random()
        notebook = self._cluster.entity(Notebook, id)
        self._issued[id].append(token)
        if luck < 0.2:
            command = notebook.note(token)
        elif luck < 0.5:
            command = notebook.note.tell(token)
        elif luck < 0.9:
            command = notebook.note_slowly.tell(token, self._luck.uniform(0, 0.01))
        else:
            command = notebook.note_later.tell(token, self._luck.uniform(0, 0.02))
        await self._outcome(token, command)

    async def _time(self) -> None:
        clock, luck = self._cluster.entity(Clock, self._luck.choice(self._clocks)), self._luck.random()
        token, name = self._next(), f"timer{self._luck.randrange(4)}"
        if luck < 0.7:
            command = clock.arm(name, token, self._luck.randint(0, 60))
        elif luck < 0.9:
            command = clock.disarm(name)
        else:
            command = clock.repeat(token, self._luck.randint(10, 30), self._luck.randint(1, 4))
        await self._outcome(token, command)

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def settle(self, timeout_s: float = 20.0) -> None:
        """Wait until all that follows from the work has happened. Raises `Violation` when it does not."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if not any(self._unfinished(await self._look())):
                        return
                    await asyncio.sleep(0.01)
        except TimeoutError:
            problems = self._problems(await self._look())
            raise Violation(f"lost, or not over after {timeout_s:g} s: {problems}") from None

    async def check(self) -> None:
        """Raise `Violation` when anything was lost, doubled or reordered."""
        problems = self._problems(await self._look())
        if problems:
            raise Violation(problems)

    async def _look(self) -> Found:
        async def audits(kind: type[Any], ids: Iterable[str]) -> dict[str, Any]:
            found = await asyncio.gather(*(self._cluster.entity(kind, id).audit() for id in ids))
            return dict(zip(ids, found, strict=True))

        return Found(
            await audits(Account, self._accounts),
            await audits(Transfer, list(self._transfers)),
            await audits(Talker, self._talkers),
            await audits(Notebook, self._notebooks),
            await audits(Clock, self._clocks),
        )

    def _unfinished(self, found: Found) -> Iterator[str]:
        for id, (state, _) in found.transfers.items():
            if state not in STEPS or (state == "new" and id in self.acknowledged):
                yield f"transfer {id} is {state}"
        for id, talk in found.talkers.items():
            for listener, said in talk.said.items():
                heard = found.talkers[listener].heard.get(id, [])
                if len(heard) < said:
                    yield f"{listener} heard {len(heard)} of {said} from {id}"
        for id, tokens in found.notebooks.items():
            for token in (self.acknowledged & set(self._issued[id])) - set(tokens):
                yield f"{token} was acknowledged and is not in {id}"
        for id, times in found.clocks.items():
            for name, token in times.current.items():
                yield f"{token} of {id} has not fired as {name}"
            for name, (_, count) in times.repeats.items():
                ticks = times.ticks.get(name, [])
                if len(ticks) < count:
                    yield f"{id} has had {len(ticks)} of {count} ticks of {name}"

    def _problems(self, found: Found) -> str:
        """The first of each sort; empty when all is well."""
        sorts = (
            self._unfinished(found),
            self._problems_of_money(found),
            _problems_of_talk(found),
            self._problems_of_notes(found),
            _problems_of_time(found),
        )
        return "; ".join(problem for problems in sorts for problem in itertools.islice(problems, 3))

    def _problems_of_money(self, found: Found) -> Iterator[str]:
        together = sum(account.balance for account in found.accounts.values())
        if together != self._money:
            yield f"there are {together} in the accounts, and were {self._money}"
        lines: dict[tuple[str, str], list[str]] = defaultdict(list)
        for id, account in found.accounts.items():
            if account.waiting:
                yield f"{id} has {account.waiting} reservations and offers left"
            for transfer, what in account.lines:
                lines[id, transfer].append(what)
        for id, (state, steps) in found.transfers.items():
            at_both = tuple(lines.pop((account, id), []) for account in self._transfers[id])
            if steps not in STEPS.get(state, ()):
                yield f"transfer {id} is {state} after {steps}"
            elif at_both != LINES[state]:
                yield f"transfer {id} is {state}, and at payer and payee there is {at_both}"
        if lines:
            yield f"nobody began {lines}"

    def _problems_of_notes(self, found: Found) -> Iterator[str]:
        for id, tokens in found.notebooks.items():
            issued = self._issued[id]
            doubled = {token for token in tokens if tokens.count(token) > 1}
            if doubled:
                yield f"doubled in {id}: {doubled}"
            if not set(tokens) <= set(issued) - self._refused:
                yield f"nobody told, or was told that it is not kept: {set(tokens) - (set(issued) - self._refused)}"
            order = [token for token in issued if token in set(tokens)]
            if not doubled and order != tokens:
                yield f"reordered in {id}: {_where_different(tokens, order)}"


def _problems_of_talk(found: Found) -> Iterator[str]:
    for id, talk in found.talkers.items():
        for who, heard in talk.heard.items():
            expected = list(range(1, found.talkers[who].said.get(id, 0) + 1))
            if heard != expected:
                yield f"{id} heard from {who}: {_where_different(heard, expected)}"


def _problems_of_time(found: Found) -> Iterator[str]:
    for id, times in found.clocks.items():
        yield from times.wrong
        if sorted(times.fired + times.dropped) != sorted(set(times.armed) - set(times.current.values())):
            yield f"{id} armed {sorted(times.armed)}, dropped {times.dropped}, and fired {sorted(times.fired)}"
        for name, (every_ms, count) in times.repeats.items():
            ticks = times.ticks.get(name, [])
            if ticks and ticks != [ticks[0] + k * every_ms for k in range(count)]:
                yield f"{name} of {id} was to tick {count} times every {every_ms} ms, and did at {ticks}"


def _where_different(found: Sequence[object], expected: Sequence[object]) -> str:
    at = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        at = min(len(found), len(expected))
    return f"{len(found)} instead of {len(expected)}; at {at} {found[at : at + 5]} instead of {expected[at : at + 5]}"
