"""The entities of the flights replay: every aircraft and every airport keeps its own totals.

They are plain entities, not event-sourced ones: only the totals are ever asked for, so keeping a million events would
cost disk and tell nothing. The state stays near 150 bytes however many flights there are; it is written whole with
each command, and of a busy airport's hundred thousand commands a checkpoint writes the newest state once.
"""

from __future__ import annotations

from dataclasses import dataclass

import atoll


@dataclass(frozen=True)
class Totals:
    """What one aircraft or airport has seen."""

    flights: int
    """That left the ground."""
    cancelled: int
    miles: int
    minutes: int
    """In the air, where the table knows them."""
    position: str
    """An aircraft: the airport of its last flight's destination. An airport: the last aircraft that used it."""
    rows: int
    """Commands seen. With the next three no lost, doubled or swapped one can hide behind another."""
    row_sum: int
    row_square_sum: int
    row_order: int
    """Sum of (how manieth command) x (its row): differs when two change places."""


class Traffic(atoll.Entity):
    """What aircraft and airports have in common, which is all of it."""

    flights: int = 0
    cancelled: int = 0
    miles: int = 0
    minutes: int = 0
    position: str = ""
    rows: int = 0
    row_sum: int = 0
    row_square_sum: int = 0
    row_order: int = 0

    @atoll.command
    def record_flight(self, row: int, miles: int, minutes: int, position: str) -> None:
        self._see(row)
        self.flights += 1
        self.miles += miles
        self.minutes += minutes
        self.position = position

    @atoll.command
    def record_cancellation(self, row: int) -> None:
        self._see(row)
        self.cancelled += 1

    @atoll.query
    def totals(self) -> Totals:
        return Totals(
            self.flights,
            self.cancelled,
            self.miles,
            self.minutes,
            self.position,
            self.rows,
            self.row_sum,
            self.row_square_sum,
            self.row_order,
        )

    def _see(self, row: int) -> None:
        self.rows += 1
        self.row_sum += row
        self.row_square_sum += row * row
        self.row_order += self.rows * row


class Aircraft(Traffic):
    """One tail number, and `UNKNOWN` for the flights without one."""


class Airport(Traffic):
    """Of the flights that leave it and of those that reach it."""


app = atoll.App("flights", entities=[Aircraft, Airport])
