"""What runs of an app in a Ray cluster, and ending it: asked of its Ray actors by name, over a connection to Ray that
the caller has made. Each answer may be missing: a coordinator is restarted, a host is stopped or dies, while we ask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..actors.errors import AtollError, Unavailable
from . import ray_adapter
from .discovery import HOST_ANSWER_S, coordinator_name, host_prefix
from .ray_adapter import RayProblem

LOOK_S = 0.05
GONE_TIMEOUT_S = 15.0
COUNT_TIMEOUT_S = 10.0


class Late(AtollError):
    """What was waited for is not so; the message says what is missing."""


class Stopped(msgspec.Struct, frozen=True):
    """How a stop went."""

    released: bool
    """Every host gave all its shards back."""
    pending: dict[str, int] | None
    """What waits in the store (`CoordinatorActor.pending`); None when nobody could say."""


def apps() -> list[str]:
    """Names of the apps of which anything runs."""
    return sorted({name.partition("/")[0] for name in ray_adapter.names("")})


def coordinator(app_name: str) -> Any | None:
    """The handle of its coordinator."""
    return ray_adapter.find(coordinator_name(app_name))


def host_actors(app_name: str) -> list[Any]:
    """Handles of the host actors."""
    found = [ray_adapter.find(name) for name in ray_adapter.names(host_prefix(app_name))]
    return [handle for handle in found if handle is not None]


def not_running(app_name: str) -> Unavailable:
    others = [name for name in apps() if name != app_name]
    running = f"; running are {', '.join(others)}" if others else ""
    return Unavailable(f"{app_name!r} does not run in this Ray cluster: start it with `atoll start`{running}")


def status(app_name: str) -> dict[str, Any]:
    """Hosts and shards: from each host that answers, and from the store through the coordinator.

    Returns `app`, `version` (the one that is wanted; None when the coordinator does not answer), `shards` (in all),
    `stripes` (how many databases), `silent` (which of them do not answer), `served`, `hosts` (each with `stripe`,
    `incarnation`, `address`, `node`, `version`, `state`, and if it answers `pid`, `kinds`,
    `shards`, `entities`, `lease_valid`, `connections`, `log_row`, `checkpoints`,
    `hot`: see `Host.hot`), `moves` (under way: `stripe`, `shard`, `from`, `to`, `why`,
    `since_s`), `pins` (each a `PinState`, and
    whether the shard is `alone`), `url`, `token_file`, `coordinator` (it answers) and `problem` (what it knows to be
    wrong).

    States of a host: live; draining (it loses its shards); condemned (it answers, and owns nothing any more); no
    answer; unknown (nobody could be asked). Raises `Unavailable` when nothing of the app runs, `RayProblem` when Ray
    does not answer.
    """
    handle = coordinator(app_name)
    handles = host_actors(app_name)
    if handle is None and not handles:
        raise not_running(app_name)
    problem, ownership = "", None
    if handle is not None:
        try:
            problem = ray_adapter.ask(handle, "problem", timeout_s=HOST_ANSWER_S)
            ownership = ray_adapter.ask(handle, "ownership", timeout_s=HOST_ANSWER_S)
        except RayProblem:
            handle = None
    answers = ray_adapter.ask_all(handles, "status", timeout_s=HOST_ANSWER_S)
    answered = {_key(host): host for host in answers if not isinstance(host, RayProblem)}
    rows = {_key(host): host for host in ownership["hosts"]} if ownership else {}
    stripes = ownership["stripes"] if ownership else max((host["stripes"] for host in answered.values()), default=1)
    silent = ownership["silent"] if ownership else list(range(stripes))
    hosts = [
        _host(answered.get(key), rows.get(key), known=key[0] not in silent) for key in sorted(answered.keys() | rows)
    ]
    in_all = [host["shards_in_all"] for host in answered.values()]
    return {
        "app": app_name,
        "version": ownership["version"] if ownership else None,
        "shards": ownership["shards"] if ownership else max(in_all, default=0),
        "stripes": stripes,
        "silent": silent if ownership else [],
        "served": sum(host["shards"] for host in hosts),
        "hosts": hosts,
        "moves": ownership["moves"] if ownership else [],
        "pins": ownership["pins"] if ownership else [],
        "url": "tcp://" + ",".join(host["address"] for host in hosts if _key(host) in answered),
        "token_file": next((host["token_file"] for host in answered.values()), ""),
        "coordinator": handle is not None,
        "problem": problem,
    }


def _key(host: dict[str, Any]) -> tuple[int, int]:
    """Each database counts incarnations of its own."""
    return host["stripe"], host["incarnation"]


def _host(answer: dict[str, Any] | None, row: dict[str, Any] | None, *, known: bool) -> dict[str, Any]:
    """One host, as it answers (or not) and as its row says. Not `known`: nobody could be asked for its row."""
    if answer is None:
        silent = {"shards": 0, "entities": 0, "lease_valid": False, "connections": 0}
        return {**(row or {}), **silent, "state": "no answer"}
    if not known:
        return {**answer, "state": "unknown"}
    if row is None:
        return {**answer, "state": "condemned"}
    return {**answer, "state": "draining" if row["draining"] else "live"}


def shards(app_name: str) -> list[dict[str, Any]]:
    """The rows of `CoordinatorActor.shards`. Raises `Unavailable` when the app does not run, `RayProblem` when its
    coordinator does not answer."""
    handle = coordinator(app_name)
    if handle is None and not host_actors(app_name):
        raise not_running(app_name)
    found: list[dict[str, Any]] | None = None
    if handle is not None:
        found = ray_adapter.ask(handle, "shards")
    if found is None:
        raise RayProblem(f"the coordinator of {app_name!r} is not up: look again")
    return found


def until(
    app_name: str, missing: Callable[[dict[str, Any]], str], deadline: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """The first status of which `missing` says nothing. Raises `Late` with what it said last after the deadline (by
    `time.monotonic`), and whatever `missing` raises. `tell` is told each time."""
    while True:
        found = status(app_name)
        lacks = missing(found) if found["coordinator"] else "the coordinator does not answer"
        if not lacks:
            return found
        if time.monotonic() > deadline:
            raise Late(lacks)
        tell(lacks)
        time.sleep(LOOK_S)


def stop(app_name: str, timeout_s: float) -> Stopped:
    """Let every host give its shards back, then end everything.

    Works without a coordinator too. Raises `Unavailable` when nothing of the app runs.
    """
    handle = coordinator(app_name)
    if handle is None and not host_actors(app_name):
        raise not_running(app_name)
    deciders = [] if handle is None or not _stopped(handle) else [handle]  # it gives nothing to the next host
    answers = ray_adapter.ask_all(host_actors(app_name), "stop", timeout_s=timeout_s)
    counted = ray_adapter.ask_all(deciders, "pending", timeout_s=COUNT_TIMEOUT_S)
    _kill_coordinator(app_name)
    _kill_hosts(app_name)
    return Stopped(
        released=all(answer is True for answer in answers),
        pending=next((found for found in counted if isinstance(found, dict)), None),
    )


def end_all(app_name: str) -> None:
    """End the coordinator, then every host."""
    end_coordinator(app_name)
    _kill_hosts(app_name)


def end_coordinator(app_name: str) -> None:
    """End it for good; if it answers, only after the hosts that it is making have names, under which they are found.
    The hosts go on."""
    handle = coordinator(app_name)
    if handle is not None:
        _stopped(handle)
        _kill_coordinator(app_name)


def _stopped(handle: Any) -> bool:
    """Let a coordinator decide nothing any more. False when it does not answer."""
    (answer,) = ray_adapter.ask_all([handle], "stop", timeout_s=HOST_ANSWER_S)
    return not isinstance(answer, RayProblem)


def _kill_coordinator(app_name: str) -> None:
    _until_gone(app_name, lambda: ray_adapter.kill_all(coordinator_name(app_name)))


def _kill_hosts(app_name: str) -> None:
    _until_gone(app_name, lambda: ray_adapter.kill_all(host_prefix(app_name)))


def _until_gone(app_name: str, kill: Callable[[], int]) -> None:
    """Kill until Ray has let go of their names."""
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while kill():
        if time.monotonic() > deadline:
            raise RayProblem(
                f"Ray still lists actors of {app_name!r} after {GONE_TIMEOUT_S:g} s: try `atoll stop {app_name}`"
            )
        time.sleep(LOOK_S)
