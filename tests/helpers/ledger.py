"""Entities whose history tells everything: each append is unique, and its reply is the index where it stands.

The same twice, as a plain entity and from events. `History` writes down what clients did and were told, and decides
whether that can be: nothing lost, doubled or reordered, nothing stale (Kingsbury's approach, with appends so that a sort
decides it). A module of its own, so that host processes can import the app by name.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

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


class History:
    """What clients did and were told, and whether that can be."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.without_effect: set[str] = set()
        self.unknown: set[str] = set()
        self.issued: dict[str, list[str]] = defaultdict(list)
        """(client, entity) -> tokens in the order sent"""
        self.reads: list[tuple[str, dict[str, int], list[str]]] = []

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
        place = {}
        for entity, items in final.items():
            for index, token in enumerate(items):
                assert token not in place, f"doubled: {token} in {entity} at {place[token]} and {index}"
                place[token] = (entity, index)
        for token, where in self.acknowledged.items():
            assert place.get(token) == where, f"lost: {token} acknowledged at {where}, found at {place.get(token)}"
        for token in self.without_effect:
            assert token not in place, f"{token} was refused but stands at {place[token]}"
        strangers = set(place) - set(self.acknowledged) - self.unknown
        assert not strangers, f"nobody appended {strangers}"
        for key, tokens in self.issued.items():
            order = [place[token][1] for token in tokens if token in place]
            assert order == sorted(order), f"reordered: {key} {[(t, place.get(t)) for t in tokens]}"
        for entity, before, items in self.reads:
            assert items == final[entity][: len(items)], f"read of {entity} saw what is not there: {items}"
            for token, index in before.items():
                assert len(items) > index, f"stale read of {entity}: {token} at {index} was acknowledged before it"
