"""Finding an app's hosts through Ray, by the names of their Ray actors: it works while the coordinator is down."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ..actors.errors import Unavailable
from ..persistence.stripes import Stripe
from . import ray_adapter
from .ray_adapter import RayProblem

HOST_ANSWER_S = 2.0


class FoundHosts(msgspec.Struct, frozen=True):
    addresses: Sequence[str]
    token_file: str


def coordinator_name(app_name: str) -> str:
    return f"{app_name}/coordinator"


def host_prefix(app_name: str) -> str:
    """Names of its host actors begin so."""
    return f"{app_name}/host/"


def host_prefix_on(app_name: str, node: str, version: str, stripe: Stripe) -> str:
    """Those of one version and stripe on one node: one host, and whatever may be left of former ones."""
    own = "" if stripe.count == 1 else f"{stripe.index}-"
    return f"{host_prefix(app_name)}{node[:12]}{version_part(version)}{own}"


def version_part(version: str) -> str:
    """What the names of all host actors of a version contain, and of no other."""
    return f"/v{version}/"


async def find_hosts(app_name: str) -> FoundHosts:
    """Ask Ray, then the hosts themselves. Raises `Unavailable` when the app does not run, `RayProblem` without Ray."""
    ray_adapter.connect(None)  # on this thread: Ray wants the main one for its signal handlers; once, about a second
    return await ray_adapter.on_thread(lambda: _find(app_name), ray_adapter.GCS_TIMEOUT_S * 2)


def _find(app_name: str) -> FoundHosts:
    handles = [ray_adapter.find(name) for name in ray_adapter.names(host_prefix(app_name))]
    answers = ray_adapter.ask_all([handle for handle in handles if handle is not None], "info", timeout_s=HOST_ANSWER_S)
    # one that does not answer is still starting, dying, stopped, or on a node that Ray has not yet given up
    hosts = [answer for answer in answers if not isinstance(answer, RayProblem)]
    if not hosts:
        raise Unavailable(f"no host of {app_name!r} is found in this Ray cluster: start it with `atoll start`")
    return FoundHosts([host["address"] for host in hosts], hosts[0]["token_file"])
