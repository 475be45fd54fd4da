"""What a node must have to get a host of an app: resources and labels, as Ray says.

    {"GPU": 1, "disk": 0.5, "zone": "eu-1"}     a number: at least so much of that resource in all, in use or not
                                                a string: exactly that value of the label

Only whole nodes are chosen by it, nothing is reserved: hosts take no resources of Ray's. All kinds of an app share its
hosts and shards, so what one kind requires is required for all of them.

The label `atoll-weight` of a node says how much of the load its host takes, as a ratio to the others: 2 is twice the
shards of 1, which every node has that says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .errors import AtollError

WEIGHT_LABEL = "atoll-weight"

Requirements = Mapping[str, float | str]


class WrongWeight(AtollError):
    """A node's label cannot be a weight; the message says what to do."""


def weight_of(labels: Mapping[str, str]) -> float:
    """The weight of a node with these labels. Raises `WrongWeight`."""
    said = labels.get(WEIGHT_LABEL, "1")
    try:
        weight = float(said)
    except ValueError:
        weight = 0.0
    if not (weight > 0 and math.isfinite(weight)):
        raise WrongWeight(
            f"its label {WEIGHT_LABEL}={said!r} is no weight: start that node with `--labels {WEIGHT_LABEL}=2`, say"
        )
    return weight


def checked(asked: object, where: str) -> dict[str, float | str]:
    """Return what was asked for as a plain dict. Raises `TypeError` or `ValueError` that begins with `where`."""
    if not isinstance(asked, Mapping):
        raise TypeError(f'{where}: requires is a mapping such as {{"GPU": 1, "zone": "eu-1"}}, not {asked!r}')
    found: dict[str, float | str] = {}
    for name, value in asked.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{where}: requires {name!r}: the name of a resource or label is a string")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise TypeError(f"{where}: requires {name}={value!r}: give a number (resource) or a string (label)")
        if not value or (not isinstance(value, str) and not (value > 0 and math.isfinite(value))):
            raise ValueError(f"{where}: requires {name}={value!r}: a resource is above 0, a label has a value")
        found[name] = value
    return found


def merged(parts: Iterable[Requirements], where: str) -> dict[str, float | str]:
    """What meets all of them: the largest number of each resource. Raises `ValueError` when nothing can."""
    found: dict[str, float | str] = {}
    for part in parts:
        for name, value in part.items():
            before = found.get(name, value)
            if isinstance(before, str) or isinstance(value, str):
                if before != value:
                    raise ValueError(f"{where}: no node can have both {name}={before!r} and {name}={value!r}")
                found[name] = value
            else:
                found[name] = max(before, value)
    return found


def unmet(required: Requirements, resources: Mapping[str, float], labels: Mapping[str, str]) -> list[str]:
    """What of it a node with these resources and labels lacks, for people; empty when it has all."""
    return [
        f"{name}={value!r}" if isinstance(value, str) else f"{name} >= {value:g}"
        for name, value in required.items()
        if (labels.get(name) != value if isinstance(value, str) else resources.get(name, 0.0) < value)
    ]
