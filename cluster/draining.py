"""Draining a node by hand, for every app that has a host there, and undoing it.

The coordinators write it into the rows of the hosts (and so remember it through a restart), and move the shards away
while they are served. The drained hosts stay, empty, until the node leaves or the drain is undone. Who stops waiting
stops nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..actors.errors import AtollError
from . import ray_adapter, ray_status
from .ray_adapter import Node, RayProblem, find_node
from .signals import going_on

LOOK_S = 0.1
GOES_ON = "the drain goes on, `--undo` takes it back"


class DrainFailed(AtollError):
    """The node is not empty; the message says what to do."""


def drain(named: str, timeout_s: float, tell: Callable[[str], None]) -> Node:
    """Drain a node, and return when none of its hosts serves anything. `tell` is told what is left.

    Raises `DrainFailed` when that did not happen in time (it goes on), or cannot.
    """
    node = find_node(ray_adapter.nodes(), named)
    deadline = time.monotonic() + timeout_s
    with going_on(GOES_ON):
        while (left := _left(node)) is None or left:
            said = "no coordinator answers" if left is None else f"{left} shards are left on {node.id[:12]}"
            if time.monotonic() > deadline:
                raise DrainFailed(f"{said} after {timeout_s:g} s; {GOES_ON}")
            tell(said)
            time.sleep(LOOK_S)
    return node


def undo(named: str, timeout_s: float, tell: Callable[[str], None]) -> Node:
    """Let a drained node have shards again; it gets a host where it has none. Raises `DrainFailed`."""
    node = find_node(ray_adapter.nodes(), named)
    deadline = time.monotonic() + timeout_s
    while _ask(node, draining=False) is None:
        if time.monotonic() > deadline:
            raise DrainFailed(f"no coordinator answers after {timeout_s:g} s: try again")
        tell("no coordinator answers")
        time.sleep(LOOK_S)
    return node


def _left(node: Node) -> int | None:
    """How many shards are on the node, hosts that are being started there counted as one; None: not known now. It is
    asked for anew each time, so a coordinator that was restarted before it wrote anything learns of it again."""
    answers = _ask(node, draining=True)
    return None if answers is None else sum(answer["shards"] + answer["starting"] for answer in answers)


def _ask(node: Node, *, draining: bool) -> list[dict[str, Any]] | None:
    """What each app's coordinator says; None while one does not answer."""
    apps = ray_status.apps()
    if not apps:
        raise DrainFailed("no app runs in this Ray cluster: there is nothing to drain")
    handles = [handle for app_name in apps if (handle := ray_status.coordinator(app_name)) is not None]
    answers = ray_adapter.ask_all(handles, "drain", node.id, draining)
    if len(handles) < len(apps) or any(isinstance(answer, RayProblem) for answer in answers):
        return None
    for app_name, answer in zip(apps, answers, strict=True):
        if answer["refused"]:
            raise DrainFailed(f"{app_name!r}: {answer['refused']}")
    return answers
