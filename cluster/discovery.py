"""Finding an app's hosts through Ray, by the names of their Ray actors: it works while the coordinator is down."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..actors.errors import Unavailable
from . import ray_adapter
from .ray_adapter import RayProblem


class FoundHosts(msgspec.Struct, frozen=True):
    addresses: Sequence[str]
    token_file: str


def host_prefix(app_name: str) -> str:
    """Names of its host actors begin so."""
    return f"{app_name}/host/"


async def find_hosts(app_name: str) -> FoundHosts:
    """Ask Ray, then the hosts themselves. Raises `Unavailable` when the app does not run, `RayProblem` without Ray."""
    ray_adapter.connect(None)  # on this thread: Ray wants the main one for its signal handlers; once, about a second
    return await ray_adapter.on_thread(lambda: _find(app_name), ray_adapter.GCS_TIMEOUT_S * 2)


def _find(app_name: str) -> FoundHosts:
    addresses, token_file = [], ""
    for name in ray_adapter.names(host_prefix(app_name)):
        handle = ray_adapter.find(name)
        if handle is None:
            continue
        try:
            info = ray_adapter.ask(handle, "info", timeout_s=2.0)
        except RayProblem:
            continue  # dying, or on a node that Ray has not yet given up
        addresses.append(info["address"])
        token_file = info["token_file"]
    if not addresses:
        raise Unavailable(f"no host of {app_name!r} is found in this Ray cluster: start it with `atoll start`")
    return FoundHosts(addresses, token_file)
