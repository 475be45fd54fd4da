"""Entities whose history tells everything: each append is unique, and its reply is the index where it stands.

The same twice, as a plain entity and from events. `History` writes down what clients did and were told, and decides
whether that can be: nothing lost, doubled or reordered, nothing stale (Kingsbury's approach, with appends so that a sort
decides it). A module of its own, so that host processes can import the app by name.
"""

from __future__ import annotations

import asyncio
import enum
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

import atoll


class List(atoll.Entity):
    """Appends unique tokens; the reply is the index at which the token stands."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, token: str) -> int:
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    async def append_slowly(self, token: str, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    def append_if_even(self, token: str) -> int:
        if len(self.items) % 2:
            raise atoll.Rejected(f"odd {len(self.items)}")
        self.items.append(token)
        return len(self.items) - 1

    @atoll.command
    def append_and_fail(self, token: str) -> int:
        self.items.append(token)
        raise RuntimeError("on purpose")

    @atoll.query
    def read(self) -> list[str]:
        return self.items


@dataclass(frozen=True)
class Noted:
    token: str


class Journal(atoll.EventSourced):
    """The same as `List`, from events."""

    items: list[str] = atoll.field(default_factory=list)

    @atoll.command
    def append(self, token: str) -> int:
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    async def append_slowly(self, token: str, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    def append_if_even(self, token: str) -> int:
        if len(self.items) % 2:
            raise atoll.Rejected(f"odd {len(self.items)}")
        self.emit(Noted(token))
        return len(self.items) - 1

    @atoll.command
    def append_and_fail(self, token: str) -> int:
        self.emit(Noted(token))
        raise RuntimeError("on purpose")

    @atoll.query
    def read(self) -> list[str]:
        return self.items

    @atoll.apply
    def _noted(self, event: Noted) -> None:
        self.items = [*self.items, event.token]


app = atoll.App("ledger", entities=[List, Journal])


class Verb(enum.StrEnum):
    ASK = "ask"
    TELL = "tell"
    READ = "read"


class Outcome(enum.StrEnum):
    DONE = "done"
    """Answered; a tell: accepted."""
    REFUSED = "refused"
    """It surely had no effect."""
    UNKNOWN = "unknown"


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a client did, and what it was told, as it writes it down for others."""

    client: str
    caller: int
    """Which of its callers; each does one thing at a time."""
    shard: int
    entity: str
    verb: Verb
    token: str
    began: float
    """Seconds of the machine's monotonic clock, as `ended`."""
    ended: float
    outcome: Outcome
    index: int = -1
    items: list[str] = []
    """What a read saw."""
    error: str = ""


@dataclass
class Findings:
    """What cannot be, each in words. All empty: the history is one that a cluster without faults could have made."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged or accepted, and not there (or not where it was said to be)."""
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    """Against the order in which one caller sent, or before what had been answered when it was sent."""
    stale_reads: list[str] = field(default_factory=list)
    """A read that lacks what was acknowledged before it began, or saw before, or that saw what never was."""
    invented: list[str] = field(default_factory=list)
    """There, though nobody sent it, or though it was refused."""

    def all(self) -> list[str]:
        return [*self.doubled, *self.lost, *self.invented, *self.reordered, *self.stale_reads]


class History:
    """What clients did and were told, and whether that can be."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.accepted: dict[str, str] = {}
        """Told token -> entity. It runs some time after it was accepted."""
        self.without_effect: set[str] = set()
        self.unknown: set[str] = set()
        self.issued: dict[str, list[str]] = defaultdict(list)
        """(client, entity) -> tokens in the order sent"""
        self.reads: list[tuple[str, dict[str, int], list[str]]] = []
        """Entity, what had been acknowledged when it began, what it saw."""
        self.behind: dict[str, tuple[str, int]] = {}
        """Token -> (entity, index) of the last one that had been acknowledged when it was sent. Where times are known."""

    @classmethod
    def of(cls, operations: Iterable[Operation]) -> History:
        """Of what several processes of one machine wrote down, each by the same monotonic clock."""
        history = cls()
        by_entity: dict[str, list[Operation]] = defaultdict(list)
        for operation in operations:
            by_entity[operation.entity].append(operation)
        for entity, done in by_entity.items():
            history._take(entity, done)
        return history

    def _take(self, entity: str, operations: list[Operation]) -> None:
        """All operations on one entity."""
        acknowledged: dict[str, int] = {}
        last = -1
        seen: list[str] = []
        answers = sorted((o for o in operations if o.outcome is Outcome.DONE), key=lambda o: o.ended)
        answers.reverse()
        for operation in sorted(operations, key=lambda o: o.began):
            while answers and answers[-1].ended < operation.began:
                earlier = answers.pop()
                if earlier.verb is Verb.ASK:
                    acknowledged[earlier.token] = earlier.index
                    last = max(last, earlier.index)
                elif earlier.verb is Verb.READ:
                    seen = max(seen, earlier.items, key=len)
            if operation.verb is Verb.READ:
                if operation.outcome is Outcome.DONE:
                    before = acknowledged | {token: index for index, token in enumerate(seen)}
                    self.reads.append((entity, before, operation.items))
                continue
            token = operation.token
            self.issued[f"{operation.client} {entity}"].append(token)
            last = max(last, len(seen) - 1)
            self.behind[token] = (entity, last)
            if operation.outcome is Outcome.REFUSED:
                self.without_effect.add(token)
            elif operation.outcome is Outcome.UNKNOWN:
                self.unknown.add(token)
            elif operation.verb is Verb.ASK:
                self.acknowledged[token] = (entity, operation.index)
            else:
                self.accepted[token] = entity

    async def append(self, entity: str, ref: Any, token: str, who: str, method: str, *args: Any) -> None:
        self.issued[f"{who} {entity}"].append(token)
        try:
            index = await getattr(ref, method)(token, *args)
        except (atoll.Rejected, atoll.HandlerFailed, atoll.NotExecuted):
            self.without_effect.add(token)
        except atoll.OutcomeUnknown:
            self.unknown.add(token)
        else:
            self.acknowledged[token] = (entity, index)

    async def append_until_known(self, entity: str, ref: Any, token: str) -> None:
        """Under a command ID, repeated as an unknown outcome asks for; two copies at once to begin with."""
        append = ref.append.using(command_id=f"id of {token}", timeout=3.0)
        while True:
            answers = await asyncio.gather(append(token), append(token), return_exceptions=True)
            known = {answer for answer in answers if isinstance(answer, int)}
            assert len(known) <= 1, f"one command ID, two answers: {answers}"
            for answer in answers:
                assert isinstance(answer, int | atoll.OutcomeUnknown | atoll.NotExecuted), answer
            if known:
                self.acknowledged[token] = (entity, known.pop())
                return

    async def read(self, entity: str, ref: Any) -> None:
        before = {t: i for t, (e, i) in self.acknowledged.items() if e == entity}
        try:
            items = await ref.read()
        except atoll.NotExecuted:
            return
        self.reads.append((entity, before, items))

    def check(self, final: dict[str, list[str]]) -> None:
        """Raise with the first finding, given what the entities hold in the end."""
        found = self.findings(final).all()
        assert not found, f"{found[0]}{f' (and {len(found) - 1} more findings)' if len(found) > 1 else ''}"

    def findings(self, final: dict[str, list[str]]) -> Findings:
        """All that cannot be, given what the entities hold in the end, every accepted tell having run."""
        found = Findings()
        place: dict[str, tuple[str, int]] = {}
        for entity, items in final.items():
            for index, token in enumerate(items):
                if token in place:
                    found.doubled.append(f"doubled: {token} in {entity} at {place[token]} and {index}")
                else:
                    place[token] = (entity, index)
        for token, where in self.acknowledged.items():
            if place.get(token) != where:
                found.lost.append(f"lost: {token} acknowledged at {where}, found at {place.get(token)}")
        for token, entity in self.accepted.items():
            if place.get(token, ("", 0))[0] != entity:
                found.lost.append(f"lost: {token} accepted by {entity}, found at {place.get(token)}")
        for token in self.without_effect & place.keys():
            found.invented.append(f"{token} was refused but stands at {place[token]}")
        known = self.acknowledged.keys() | self.accepted.keys() | self.unknown | self.without_effect
        found.invented += [f"nobody appended {token}, which stands at {place[token]}" for token in place.keys() - known]
        self._find_reordered(place, found)
        self._find_stale(final, found)
        return found

    def _find_reordered(self, place: dict[str, tuple[str, int]], found: Findings) -> None:
        for key, tokens in self.issued.items():
            order = [place[token][1] for token in tokens if token in place]
            if order != sorted(order):
                found.reordered.append(f"reordered: {key} {[(t, place.get(t)) for t in tokens]}")
        for token, (entity, index) in self.behind.items():
            if token in place and place[token][1] <= index:
                found.reordered.append(
                    f"reordered: {token} of {entity} is at {place[token][1]}, {index} was there before"
                )

    def _find_stale(self, final: dict[str, list[str]], found: Findings) -> None:
        for entity, before, items in self.reads:
            if items != final[entity][: len(items)]:
                found.stale_reads.append(f"read of {entity} saw what is not there: {items}")
            found.stale_reads += [
                f"stale read of {entity}: {token} at {index} was acknowledged before it"
                for token, index in before.items()
                if len(items) <= index
            ]
