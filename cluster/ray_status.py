"""What runs of an app in a Ray cluster, and ending it: asked of the Ray actors by name."""

from __future__ import annotations

import time
from typing import Any

from ..actors.errors import Unavailable
from . import ray_adapter
from .discovery import host_prefix
from .ray_adapter import RayProblem

GONE_LOOK_S = 0.05


def _coordinator(app_name: str) -> Any:
    handle = ray_adapter.find(f"{app_name}/coordinator")
    if handle is None:
        raise Unavailable(f"{app_name!r} does not run in this Ray cluster: start it with `atoll start`")
    return handle


def _hosts(app_name: str) -> dict[str, Any]:
    """name -> handle"""
    found = {name: ray_adapter.find(name) for name in ray_adapter.names(host_prefix(app_name))}
    return {name: handle for name, handle in found.items() if handle is not None}


def status(app_name: str, address: str | None) -> dict[str, Any]:
    """Hosts and shards, from the store through the coordinator and from each host that answers.

    Raises `Unavailable` when the app does not run, `RayProblem` when Ray or the coordinator does not answer.
    """
    ray_adapter.connect(address)
    coordinator = _coordinator(app_name)
    problem = ray_adapter.ask(coordinator, "problem")
    ownership = ray_adapter.ask(coordinator, "ownership")
    states = {host["incarnation"]: host["state"] for host in ownership["hosts"]}
    hosts = []
    token_file = ""
    for handle in _hosts(app_name).values():
        try:
            host = ray_adapter.ask(handle, "status", timeout_s=2.0)
        except RayProblem:
            continue  # still starting, or dying
        token_file = host["token_file"]
        hosts.append({**host, "state": states.get(host["incarnation"], "unknown")})
    hosts.sort(key=lambda host: host["incarnation"])
    return {
        "app": app_name,
        "shards": ownership["shards"],
        "served": sum(host["shards"] for host in hosts),
        "hosts": hosts,
        "url": "tcp://" + ",".join(host["address"] for host in hosts),
        "token_file": token_file,
        "problem": problem,
    }


def stop(app_name: str, timeout_s: float) -> bool:
    """Let every host give its shards back, then end everything. True when all was given back."""
    coordinator = _coordinator(app_name)
    ray_adapter.ask(coordinator, "stop")
    released = True
    for handle in _hosts(app_name).values():
        try:
            released &= bool(ray_adapter.ask(handle, "stop", timeout_s=timeout_s))
        except RayProblem:
            released = False
    end_all(app_name)
    return released


def end_all(app_name: str) -> None:
    """End the coordinator, then every host, and wait until Ray has let go of their names."""
    coordinator = ray_adapter.find(f"{app_name}/coordinator")
    if coordinator is not None:
        ray_adapter.kill(coordinator)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        hosts = _hosts(app_name)
        if not hosts and ray_adapter.find(f"{app_name}/coordinator") is None:
            return
        for handle in hosts.values():
            ray_adapter.kill(handle)
        time.sleep(GONE_LOOK_S)
    raise RayProblem(f"Ray still lists actors of {app_name!r} after 10 s: look with `ray list actors`")
