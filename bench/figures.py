"""A figure: what was measured, beside what it has to be. Pure."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence

import msgspec


class Bound(enum.StrEnum):
    AT_LEAST = "at least"
    """A must."""
    BELOW = "below"
    """A must."""
    AIM_BELOW = "aim below"
    """Wished for: a miss is shown, and is no failure."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    value: float
    unit: str
    kind: Bound | None = None
    limit: float = 0.0
    ratio: float | None = None
    """`value` divided by that of its reference: below 1 is slower or smaller than that."""
    reference: str = ""
    """The name of the figure that `ratio` is against."""

    @property
    def bound(self) -> str:
        return "" if self.kind is None else f"{self.kind} {self.limit:g}"

    @property
    def kept(self) -> bool:
        """It is within its bound, or has none."""
        if self.kind is None:
            return True
        return self.value >= self.limit if self.kind is Bound.AT_LEAST else self.value < self.limit

    @property
    def failed(self) -> bool:
        """A must was missed."""
        return not self.kept and self.kind is not Bound.AIM_BELOW

    def record(self) -> dict[str, object]:
        """As it is written to a file."""
        return {"name": self.name, "value": self.value, "unit": self.unit, "bound": self.bound, "ratio": self.ratio}


def in_seconds(name: str, seconds: float, aim_s: float | None = None) -> Figure:
    """`aim_s`: below that."""
    value = round(seconds, 4)
    if aim_s is None:
        return Figure(name=name, value=value, unit="s")
    return Figure(name=name, value=value, unit="s", kind=Bound.AIM_BELOW, limit=aim_s)


def against(figure: Figure, reference: Figure) -> Figure:
    """The same figure, with its ratio to `reference`."""
    ratio = round(figure.value / reference.value, 3) if reference.value else None
    return msgspec.structs.replace(figure, ratio=ratio, reference=reference.name)


def percentile(samples: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the samples lie."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
