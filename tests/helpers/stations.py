"""Entities whose history tells what became of each piece of work, and a judge of it.

A `Station` writes down all that it ran, in order: commands of callers under tokens, messages with the sender's count for
this pair, ticks with their timer's set number and due time, and what it set and cancelled. What fails, how often, what
waits and what sends or schedules is drawn from the seed and the name of the work (`Plan`), so that every attempt on every
host draws the same; how often it was tried is counted outside of the entities, where no failed turn takes it back.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import msgspec

import atoll
from atoll.actors.stored import StoredTimer
from atoll.actors.timers import EPOCH, next_tick
from atoll.persistence.records import DeadLetterRow
from atoll.sharding.letters import REPLAY

NAMES = ("x", "y", "z")
FOR_EVER = 10**6
TIMERS = ("s/", "c/", "t/")
"""Entries of a log that tell of timers: set, cancelled, ticked."""


class Plan:
    """What happens to whom, and what happened so far. One per simulation."""

    def __init__(self, seed: Any, stations: list[str], *, kill: Any = None) -> None:
        """`kill()`: ends the process that calls it."""
        self.seed = seed
        self.stations = stations
        self.kill = kill
        self.busy = True
        """False: nothing more is sent and scheduled."""
        self.tries: Counter[str] = Counter()
        """Runs that began, by key."""
        self.nested: dict[str, str] = {}
        """Token of a tell that a handler made -> what the handler was told: "" for nothing yet, accepted, unknown."""

    def luck(self, key: str, what: str = "") -> random.Random:
        return random.Random(f"{self.seed}/{key}/{what}")

    def failures(self, key: str) -> int:
        """How many runs fail before one succeeds."""
        return self.luck(key, "fails").choices((0, 1, 2, 4, FOR_EVER), (83, 7, 4, 2, 4))[0]

    def refuses(self, key: str) -> bool:
        return self.luck(key, "refuses").random() < 0.04

    def kills(self, key: str) -> int:
        """How many runs end their process."""
        return self.luck(key, "kills").choices((0, 1, 2), (990, 7, 3))[0]


class Station(atoll.Entity):
    """Its hosts have the plan as their resources."""

    log: list[str] = atoll.field(default_factory=list)
    sent: dict[str, int] = atoll.field(default_factory=dict)
    """To whom how many."""
    sets: dict[str, int] = atoll.field(default_factory=dict)
    """Timer -> the number of its newest schedule."""

    # ---- commands of callers

    @atoll.command
    def work(self, token: str) -> int:
        return self._run(token, token, 2)

    @atoll.command
    async def work_slowly(self, token: str) -> int:
        plan: Plan = self.context.resources
        luck = plan.luck(token, "slow")
        if plan.busy and luck.random() < 0.3:
            inner = f"{token}>t"
            plan.nested.setdefault(inner, "")
            target = self.context.entity(Station, luck.choice(plan.stations))
            try:
                await target.work.tell(inner)
            except atoll.OutcomeUnknown:
                plan.nested[inner] = "unknown"
                raise
            plan.nested[inner] = "accepted"
        await asyncio.sleep(luck.choice((0.0, 0.05, 0.3, 1.5)))
        return self._run(token, token, 2)

    @atoll.command
    def finish(self) -> None:
        """Stop what repeats."""
        for name in NAMES:
            if self.sets.get(name):
                self._cancel(name)

    # ---- messages

    @atoll.command
    def hear(self, sender: str, number: int, hops: int) -> None:
        self._run(f"{self.context.id}<{sender}/{number}", f"m/{sender}/{number}", hops)

    @atoll.command
    async def hear_slowly(self, sender: str, number: int, hops: int) -> None:
        key = f"{self.context.id}<{sender}/{number}"
        await asyncio.sleep(self.context.resources.luck(key, "slow").choice((0.0, 0.05, 0.5)))
        self._run(key, f"m/{sender}/{number}", hops)

    # ---- ticks

    @atoll.command
    def tick(self, name: str, set: int) -> None:
        self._tick(name, set)

    @atoll.command
    async def tick_slowly(self, name: str, set: int) -> None:
        key = f"{self.context.id}/{name}/{set}"
        await asyncio.sleep(self.context.resources.luck(key, "slow").choice((0.0, 0.05, 0.5)))
        self._tick(name, set)

    def _tick(self, name: str, set: int) -> None:
        due = self.context.due
        when = "-" if due is None else str(_ms(due))
        self._run(f"{self.context.id}/t/{name}/{set}/{when}", f"t/{name}/{set}/{when}/{_ms(self.context.now)}", 1)

    # ---- what each of them does

    def _run(self, key: str, entry: str, hops: int) -> int:
        """Write it down, send and schedule a little, and then fail, if it is to: nothing of it may stay."""
        plan: Plan = self.context.resources
        plan.tries[key] += 1
        tries = plan.tries[key]
        self.log.append(entry)
        if plan.busy:
            luck = plan.luck(key, "acts")
            if hops:
                for _ in range(luck.choices((0, 1, 2, 4), (64, 22, 10, 4))[0]):
                    self._send(luck, hops - 1)
            if luck.random() < 0.2:
                self._schedule(luck)
        if tries <= plan.kills(key):
            plan.kill()
        elif tries <= plan.kills(key) + plan.failures(key):
            raise RuntimeError(f"on purpose: {key}")
        if plan.refuses(key):
            raise atoll.Rejected(f"refused: {key}")
        return len(self.log) - 1

    def _send(self, luck: random.Random, hops: int) -> None:
        to = luck.choice([*self.context.resources.stations, self.context.id])
        number = self.sent[to] = self.sent.get(to, 0) + 1
        target = self.context.entity(Station, to)
        command = target.hear_slowly if luck.random() < 0.15 else target.hear
        self.context.send(command, self.context.id, number, hops)

    def _schedule(self, luck: random.Random) -> None:
        name = luck.choice(NAMES)
        what = luck.random()
        if what < 0.25:
            self._cancel(name)
            return
        number = self.sets[name] = self.sets.get(name, 0) + 1
        now = _ms(self.context.now)
        first = self.context.now + dt.timedelta(milliseconds=luck.choice((0, 1, 50, luck.randrange(3000))))
        command = self.tick_slowly if luck.random() < 0.2 else self.tick
        if what < 0.7:
            self.log.append(f"s/{name}/{number}/{now}/{_ms(first)}/0/0")
            self.context.schedule(name, first, command, name, number)
        else:
            every_ms, catch_up = luck.randrange(300, 1500), luck.random() < 0.5
            self.log.append(f"s/{name}/{number}/{now}/{_ms(first)}/{every_ms}/{int(catch_up)}")
            self.context.schedule(
                name,
                first,
                command,
                name,
                number,
                every=dt.timedelta(milliseconds=every_ms),
                missed="catch_up" if catch_up else "coalesce",
            )

    def _cancel(self, name: str) -> None:
        self.log.append(f"c/{name}/{_ms(self.context.now)}")
        self.context.cancel(name)

    @atoll.query
    def read(self) -> list[str]:
        return self.log

    @atoll.query
    def counts(self) -> dict[str, int]:
        return self.sent


def _ms(time: dt.datetime) -> int:
    return (time - EPOCH) // dt.timedelta(milliseconds=1)


# ---- the judge


class Letter:
    """A dead letter that was seen, and what became of it."""

    def __init__(self, row: DeadLetterRow) -> None:
        self.id = row.id
        self.number = row.number
        self.letter = row.letter
        self.act = ""
        """What an operator tried with it: `REPLAY`, `DROP`."""
        self.done = False
        """The operator was told so."""
        self.gone = False
        """It is no dead letter any more."""
        arguments: dict[str, Any] = msgspec.msgpack.decode(row.letter.arguments)
        if "token" in arguments:
            self.token = str(arguments["token"])
        elif "sender" in arguments:
            self.token = f"m/{arguments['sender']}/{arguments['number']}"
        else:
            self.token = f"t/{arguments['name']}/{arguments['set']}"
        """What it was, as `Station` writes it down (a tick without its times)."""


class Verdicts:
    """What clients did and were told."""

    def __init__(self) -> None:
        self.issued: dict[tuple[str, str], list[str]] = defaultdict(list)
        """(client, station) -> tokens of asks and tells in the order sent"""
        self.station: dict[str, str] = {}
        """token -> where it was sent"""
        self.asked: dict[str, str] = {}
        """token -> acknowledged, without effect, unknown"""
        self.told: dict[str, str] = {}
        """token -> accepted, refused, unknown"""

    async def ask(self, who: str, id: str, ref: Any, token: str, method: str) -> None:
        self._issue(who, id, token)
        try:
            await getattr(ref, method)(token)
        except (atoll.Rejected, atoll.HandlerFailed, atoll.NotExecuted):
            self.asked[token] = "without effect"
        except atoll.OutcomeUnknown:
            self.asked[token] = "unknown"
        else:
            self.asked[token] = "acknowledged"

    async def tell(self, who: str, id: str, ref: Any, token: str, method: str) -> None:
        self._issue(who, id, token)
        try:
            await getattr(ref, method).tell(token)
        except atoll.NotExecuted:
            self.told[token] = "refused"
        except atoll.OutcomeUnknown:
            self.told[token] = "unknown"
        else:
            self.told[token] = "accepted"

    def _issue(self, who: str, id: str, token: str) -> None:
        self.issued[who, id].append(token)
        self.station[token] = id

    async def tell_until_known(self, id: str, ref: Any, token: str) -> None:
        """Under a command ID, two copies at once, until one was accepted."""
        self.station[token] = id
        tell = ref.work.using(command_id=f"id of {token}", timeout=3.0).tell
        while True:
            answers = await asyncio.gather(tell(token), tell(token), return_exceptions=True)
            for answer in answers:
                assert answer is None or isinstance(answer, atoll.OutcomeUnknown | atoll.NotExecuted), answer
            if None in answers:
                self.told[token] = "accepted"
                return


class Judge:
    """Whether logs, dead letters and what clients were told can all be true."""

    def __init__(
        self,
        plan: Plan,
        logs: dict[str, list[str]],
        sent: dict[str, dict[str, int]],
        letters: list[Letter],
        verdicts: Verdicts,
    ) -> None:
        self.plan = plan
        self.logs = logs
        self.sent = sent
        self.letters = letters
        self.verdicts = verdicts
        self.ran: dict[tuple[str, str], int] = {}
        """(station, token) -> its place in the log"""
        for id, log in logs.items():
            for place, entry in enumerate(log):
                if entry[:2] not in TIMERS:
                    assert (id, entry) not in self.ran, f"{id}: {entry} ran twice, at {self.ran[id, entry]} and {place}"
                    self.ran[id, entry] = place
        self.dead: dict[tuple[str, str], list[Letter]] = defaultdict(list)
        for letter in letters:
            self.dead[letter.id, letter.token].append(letter)

    def check(self) -> None:
        self._asks_and_tells()
        self._nested_tells()
        self._messages()
        self._order()
        for id in self.logs:
            for name in NAMES:
                self._timers(id, name)
        self._reasons()

    def _ends(self, id: str, token: str) -> list[str]:
        """How a command or a message ended."""
        ends = ["ran"] * ((id, token) in self.ran)
        for letter in self.dead.get((id, token), ()):
            if not (letter.gone and letter.act == REPLAY):
                ends.append("dropped" if letter.gone else "dead")
        return ends

    def _ended_once(self, id: str, token: str, *, surely: bool = True) -> None:
        ends = self._ends(id, token)
        story = f"{token} at {id}: {ends}, ran {self.plan.tries[token]} times"
        # of several copies under one command ID each that fails is a dead letter, until one succeeds
        assert len(ends) <= 1 or token.endswith(("+", ">t")), f"more than one end: {story}"
        assert ends or not surely, f"lost: {story}"

    def _asks_and_tells(self) -> None:
        verdicts = self.verdicts
        for token, fate in verdicts.asked.items():
            id = verdicts.station[token]
            assert not self.dead.get((id, token)), f"an ask became a dead letter: {token}"
            if fate == "acknowledged":
                assert (id, token) in self.ran, f"lost: {token} was acknowledged at {id}"
            elif fate == "without effect":
                assert (id, token) not in self.ran, f"{token} was answered without effect, and stands at {id}"
        for token, fate in verdicts.told.items():
            id = verdicts.station[token]
            self._ended_once(id, token, surely=fate == "accepted")
            assert fate != "refused" or not self._ends(id, token), f"{token} at {id} was not accepted"
        for id, token in (*self.ran, *self.dead):
            if not token.startswith(("m/", "t/")) and not token.endswith(">t"):
                assert verdicts.station.get(token) == id, f"nobody sent {token} to {id}"

    def _nested_tells(self) -> None:
        places: dict[str, set[str]] = defaultdict(set)
        for id, token in (*self.ran, *self.dead):
            if token.endswith(">t"):
                places[token].add(id)
        assert places.keys() <= self.plan.nested.keys()
        for token, fate in self.plan.nested.items():
            assert len(places[token]) <= 1, f"{token} at {places[token]}"
            assert places[token] or fate != "accepted", f"lost: {token}"
            for id in places[token]:
                self._ended_once(id, token)

    def _messages(self) -> None:
        for sender, counts in self.sent.items():
            for to, count in counts.items():
                for number in range(1, count + 1):
                    self._ended_once(to, f"m/{sender}/{number}")
        for id, token in (*self.ran, *self.dead):
            if token.startswith("m/"):
                _, sender, number = token.split("/")
                assert int(number) <= self.sent[sender].get(id, 0), f"{sender} never sent {number} to {id}"

    def _order(self) -> None:
        """Of what was not set aside meanwhile."""
        senders = dict(self.verdicts.issued)
        for sender, counts in self.sent.items():
            for to, count in counts.items():
                senders[sender, to] = [f"m/{sender}/{number}" for number in range(1, count + 1)]
        for (sender, id), tokens in senders.items():
            places = [self.ran[id, t] for t in tokens if (id, t) in self.ran and (id, t) not in self.dead]
            assert places == sorted(places), f"{sender} to {id}: {[(t, self.ran.get((id, t))) for t in tokens]}"

    # ---- timers

    def _timers(self, id: str, name: str) -> None:
        """Each schedule ticks as it says until it is over or overtaken, and never afterwards."""
        where = f"timer {name} of {id}"
        schedules: list[Schedule] = []
        current: Schedule | None = None
        again: Counter[int] = Counter()
        """Ticks of dead letters that were replayed, per set number: they follow no times."""
        for what, other, *rest in (entry.split("/") for entry in self.logs[id] if entry[:2] in TIMERS):
            if other != name:
                continue
            if what == "t" and rest[1] == "-":
                again[int(rest[0])] += 1
            elif what == "t":
                number, due_ms, now_ms = map(int, rest)
                assert current is not None, f"{where}: set {number} ticked at {now_ms} although it was cancelled"
                assert current.number == number, f"{where}: set {number} ticked after {current.number} took its place"
                current.ends.append((now_ms, due_ms))
            else:
                if current is not None:
                    current.overtaken_ms = int(rest[-1] if what == "c" else rest[1])
                    current = None
                if what == "s":
                    number, _, due_ms, every_ms, catch_up = map(int, rest)
                    timer = StoredTimer(name, due_ms, "", b"", every_ms, catch_up=bool(catch_up))
                    current = Schedule(number, timer)
                    schedules.append(current)
        for schedule in schedules:
            letters = self.dead.get((id, f"t/{name}/{schedule.number}"), [])
            schedule.ends += [(letter.letter.time_ms, None) for letter in letters if letter.letter.timer]
            schedule.check(where)
            replays = sum(letter.gone and letter.act == REPLAY for letter in letters)
            ends = again[schedule.number] + sum(not letter.letter.timer for letter in letters)
            assert replays == ends, f"{where}: set {schedule.number} replayed {replays} times, ended {ends} times"

    def _reasons(self) -> None:
        for letter in self.letters:
            dead = letter.letter
            if dead.reason == "failed":
                # on purpose, or because what it told in turn was not taken
                assert re.search("on purpose: |raised (Unavailable|OutcomeUnknown|Overloaded)", dead.error), dead
            elif dead.reason == "rejected":
                assert "refused: " in dead.error, dead
            else:
                assert (dead.reason, dead.error) == ("killed", "its host died too often while it ran"), dead


@dataclass
class Schedule:
    """One setting of a timer, and how its ticks ended."""

    number: int
    timer: StoredTimer
    ends: list[tuple[int, int | None]] = field(default_factory=list)
    """(when, the due time), or None as the due time of one that became a dead letter"""
    overtaken_ms: int | None = None

    def check(self, where: str) -> None:
        """Walk along the due times as they should be."""
        story = f"{where}, set {self.number} as {self.timer}: {self.ends}, overtaken at {self.overtaken_ms}"
        timer: StoredTimer | None = self.timer
        left = list(self.ends)
        while left:
            assert timer is not None, f"one tick too many, {left}: {story}"
            first_ms = min(now_ms for now_ms, _ in left)
            end = next((end for end in left if end == (first_ms, timer.due_ms)), (first_ms, None))
            assert end in left, f"no tick for {timer.due_ms}, before that of {first_ms}: {story}"
            left.remove(end)
            assert first_ms >= timer.due_ms, f"ticked too early: {story}"
            assert self.overtaken_ms is None or first_ms <= self.overtaken_ms, f"ticked too late: {story}"
            timer = next_tick(timer, first_ms)
        assert timer is None or self.overtaken_ms is not None, f"lost: {story}"
