"""What runs of an app in a Ray cluster, and ending it: asked of its Ray actors by name, over a connection to Ray that
the caller has made. Each answer may be missing: a coordinator is restarted, a host is stopped or dies, while we ask.
"""

from __future__ import annotations

import time
from typing import Any

from ..actors.errors import Unavailable
from . import ray_adapter
from .discovery import HOST_ANSWER_S, coordinator_name, host_prefix
from .ray_adapter import RayProblem

GONE_LOOK_S = 0.05
GONE_TIMEOUT_S = 15.0


def apps() -> list[str]:
    """Names of the apps of which anything runs."""
    return sorted({name.partition("/")[0] for name in ray_adapter.names("")})


def _hosts(app_name: str) -> list[Any]:
    """Handles of the host actors."""
    found = [ray_adapter.find(name) for name in ray_adapter.names(host_prefix(app_name))]
    return [handle for handle in found if handle is not None]


def _not_running(app_name: str) -> Unavailable:
    others = [name for name in apps() if name != app_name]
    running = f"; running are {', '.join(others)}" if others else ""
    return Unavailable(f"{app_name!r} does not run in this Ray cluster: start it with `atoll start`{running}")


def status(app_name: str) -> dict[str, Any]:
    """Hosts and shards: from each host that answers, and from the store through the coordinator.

    Returns `app`, `shards` (in all), `served`, `hosts` (each with `incarnation`, `address`, `node`, `state`, and if it
    answers `pid`, `shards`, `entities`, `lease_valid`, `connections`, `log_row`, `checkpoints`), `url`, `token_file`,
    `coordinator` (it answers) and `problem` (what it knows to be wrong). Raises `Unavailable` when nothing of the app
    runs, `RayProblem` when Ray does not answer.
    """
    coordinator = ray_adapter.find(coordinator_name(app_name))
    handles = _hosts(app_name)
    if coordinator is None and not handles:
        raise _not_running(app_name)
    problem, ownership = "", None
    if coordinator is not None:
        try:
            problem = ray_adapter.ask(coordinator, "problem", timeout_s=HOST_ANSWER_S)
            ownership = ray_adapter.ask(coordinator, "ownership", timeout_s=HOST_ANSWER_S)
        except RayProblem:
            coordinator = None
    answers = ray_adapter.ask_all(handles, "status", timeout_s=HOST_ANSWER_S)
    answered = {host["incarnation"]: host for host in answers if not isinstance(host, RayProblem)}
    rows = {host["incarnation"]: host for host in ownership["hosts"]} if ownership else {}
    hosts = []
    for incarnation in sorted(answered.keys() | rows.keys()):
        silent = {"shards": 0, "entities": 0, "lease_valid": False, "connections": 0}
        state = "live" if incarnation in rows else "condemned" if ownership else "unknown"
        found = answered.get(incarnation)
        hosts.append({**found, "state": state} if found else {**rows[incarnation], **silent, "state": "no answer"})
    in_all = [host["shards_in_all"] for host in answered.values()]
    return {
        "app": app_name,
        "shards": ownership["shards"] if ownership else max(in_all, default=0),
        "served": sum(host["shards"] for host in hosts),
        "hosts": hosts,
        "url": "tcp://" + ",".join(host["address"] for host in hosts if host["incarnation"] in answered),
        "token_file": next((host["token_file"] for host in answered.values()), ""),
        "coordinator": coordinator is not None,
        "problem": problem,
    }


def stop(app_name: str, timeout_s: float) -> bool:
    """Let every host give its shards back, then end everything. True when all was given back.

    Works without a coordinator too. Raises `Unavailable` when nothing of the app runs.
    """
    coordinator = ray_adapter.find(coordinator_name(app_name))
    if coordinator is None and not _hosts(app_name):
        raise _not_running(app_name)
    _end_coordinator(coordinator)  # or it would give what one host returns to the next one
    answers = ray_adapter.ask_all(_hosts(app_name), "stop", timeout_s=timeout_s)
    end_all(app_name)
    return all(answer is True for answer in answers)


def end_all(app_name: str) -> None:
    """End the coordinator, then every host, and wait until Ray has let go of their names."""
    _end_coordinator(ray_adapter.find(coordinator_name(app_name)))
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while time.monotonic() < deadline:
        left = ray_adapter.kill_all(host_prefix(app_name))
        if not left and ray_adapter.find(coordinator_name(app_name)) is None:
            return
        time.sleep(GONE_LOOK_S)
    raise RayProblem(f"Ray still lists actors of {app_name!r} after {GONE_TIMEOUT_S:g} s: try `atoll stop {app_name}`")


def _end_coordinator(coordinator: Any | None) -> None:
    """End it for good; if it answers, only after the hosts that it is making have names, under which they are found."""
    if coordinator is None:
        return
    ray_adapter.ask_all([coordinator], "stop", timeout_s=HOST_ANSWER_S)
    ray_adapter.kill(coordinator)
