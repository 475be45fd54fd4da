"""What all topics share: the cluster that is measured, its entities, and how long things take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from counters import Counter, Tally, app
from plain_cluster import plain_cluster

from atoll.cluster.api import Cluster

ENTITIES = 1000
IDS = [f"e{number}" for number in range(ENTITIES)]
IN_FLIGHT = 512
HERE = Path(__file__).resolve().parent
WARM_UP_S = 1.0

Say = Callable[[str], None]
Ask = Callable[[], Awaitable[object]]


class Pace:
    """How long things are measured, and how often."""

    def __init__(self, *, quick: bool, long: bool) -> None:
        self.quick = quick
        self.seconds = 2.0 if quick else 5.0
        self.throughput_s = 300.0 if long else self.seconds
        self.runs = 3 if quick else 10
        """Of what a cluster is measured by once: kills, moves, joins."""


def one_host(folder: Path) -> Any:
    return plain_cluster("counters:app", app.name, folder, app_dir=HERE)


def additions(cluster: Cluster, kind: type[Counter | Tally], count: int) -> list[Ask]:
    """One ask per entity."""
    return [partial(cluster.entity(kind, id).add, 1) for id in IDS[:count]]
