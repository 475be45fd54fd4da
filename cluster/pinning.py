"""Pinning a shard by hand: it gets a host for itself, and unpinning takes that back.

The coordinator writes it into the shard's row, and so it outlives the coordinator and the whole cluster. Who stops
waiting stops nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..actors.errors import AtollError
from ..actors.ids import checked_entity_id
from ..sharding.hashing import shard_of
from . import ray_adapter, ray_status
from .discovery import HOST_ANSWER_S
from .ray_adapter import RayProblem
from .signals import going_on

LOOK_S = 0.1
GOES_ON = "the pin stays, and `atoll unpin` takes it back"

Tell = Callable[[str], None]


class PinFailed(AtollError):
    """The shard is not pinned, or not alone; the message says why, and what to do."""


def pin(app_name: str, shard: int, node: str | None, timeout_s: float, tell: Tell) -> dict[str, Any]:
    """Pin a shard to a node (None: any) and return its pin, as in the status, once it is alone there. `tell` is told
    what is missing. Raises `PinFailed` when that did not happen in time (it goes on), or cannot."""
    wanted = "" if node is None else ray_adapter.find_node(ray_adapter.nodes(), node).id
    deadline = time.monotonic() + timeout_s
    with going_on(GOES_ON):
        _ask(app_name, shard, wanted, deadline, tell)
        while (found := _state(app_name, shard)) is None or not found["alone"]:
            lacks = _lacks(found)
            if time.monotonic() > deadline:
                raise PinFailed(f"{lacks} after {timeout_s:g} s; {GOES_ON}")
            tell(lacks)
            time.sleep(LOOK_S)
    return found


def unpin(app_name: str, shard: int, timeout_s: float, tell: Tell) -> None:
    """Take a pin back; return when that is written. Raises `PinFailed`."""
    with going_on("`atoll status` shows whether it is still pinned"):
        _ask(app_name, shard, None, time.monotonic() + timeout_s, tell)


def shard_of_entity(app_name: str, kind: str, id: str) -> int:
    """Where an entity is, of an app that runs. Raises `PinFailed` for a kind that the app has not."""
    id = checked_entity_id(id)
    answers = ray_adapter.ask_all(_hosts(app_name), "info", timeout_s=HOST_ANSWER_S)
    kinds = {name for answer in answers if not isinstance(answer, RayProblem) for name in answer["kinds"]}
    if kinds and kind not in kinds:
        raise PinFailed(f"{app_name!r} has no kind {kind!r}; it has {', '.join(sorted(kinds))}")
    answer = _coordinators_answer(app_name, "ownership")
    if not kinds or answer is None:
        raise PinFailed(f"{app_name!r} does not say what it has: try again, or name the shard with --shard")
    return shard_of(id, answer["shards"])


def _hosts(app_name: str) -> list[Any]:
    handles = ray_status.host_actors(app_name)
    if not handles and ray_status.coordinator(app_name) is None:
        raise ray_status.not_running(app_name)
    return handles


def _ask(app_name: str, shard: int, node: str | None, deadline: float, tell: Tell) -> None:
    """Have the pin written. It is asked for until there is an answer: one that is refused because an earlier try, whose
    answer was lost, has done it, is done."""
    tries = 0
    while (answer := _coordinators_answer(app_name, "pin", shard, node)) is None:
        if time.monotonic() > deadline:
            raise PinFailed(f"the coordinator of {app_name!r} does not answer: look with `atoll status`, and try again")
        tell("the coordinator does not answer")
        tries += 1
        time.sleep(LOOK_S)
    if answer["refused"] and not (tries and answer["pin"] == node):
        raise PinFailed(f"{app_name!r}: {answer['refused']}")


def _coordinators_answer(app_name: str, method: str, *args: Any) -> dict[str, Any] | None:
    """None while there is none. Raises `Unavailable` when the app does not run."""
    handle = ray_status.coordinator(app_name)
    if handle is None:
        _hosts(app_name)
        return None
    try:
        found: dict[str, Any] | None = ray_adapter.ask(handle, method, *args)
    except RayProblem:
        return None
    return found


def _state(app_name: str, shard: int) -> dict[str, Any] | None:
    """Its pin as it is now; None when nobody says. Raises `PinFailed` when it has none any more."""
    answer = _coordinators_answer(app_name, "ownership")
    if answer is None:
        return None
    for found in answer["pins"]:
        if found["shard"] == shard:
            state: dict[str, Any] = found
            return state
    raise PinFailed(f"shard {shard} of {app_name!r} was unpinned meanwhile")


def _lacks(found: dict[str, Any] | None) -> str:
    """Why it is not known to be alone."""
    if found is None:
        return "the coordinator does not answer"
    if found["host"] is None:
        return f"shard {found['shard']} is served by nobody right now"
    if not found["beside"]:
        return f"shard {found['shard']} is on another node"
    return f"shard {found['shard']} is not alone on host {found['host']} yet ({found['beside']} beside it)"
