"""Replacing the code of an app that runs, as one step that is done, undone, or goes on by itself.

the old coordinator ends -> one that wants the new version -> a new host on every node -> the old ones drain and end
                                                           |                            (rollout.py), one by one
                              one does not start: a coordinator that wants the old version again, which drains and
                              ends whatever is new; the old hosts have never stopped serving

The coordinator is not on the path of commands, and hosts hand their shards over while they serve: no command fails.
While there is no coordinator (a second) no host is replaced. Should this process be killed in between, everything is
served on, and the next `atoll start`, of either version, goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec

from ..actors.errors import AtollError
from ..persistence.urls import shown
from . import ray_adapter, ray_status
from .cluster_spec import ClusterSpec, Launch
from .discovery import HOST_ANSWER_S, coordinator_name
from .host_process import HostSpec
from .ray_actors import CoordinatorActor
from .ray_adapter import RayProblem
from .signals import going_on, ignore_from_now_on, undisturbed

RESTORE_TIMEOUT_S = 60.0

Tell = Callable[[str], None]


class UpgradeFailed(AtollError):
    """The message says why, and what serves now."""


class Running(msgspec.Struct, frozen=True):
    """What of an app runs already."""

    version: str
    stores: tuple[str, ...]
    """In order of stripe; empty ones are not known."""
    settings: dict[str, Any]
    token_file: str
    drained: tuple[str, ...] = ()
    launch: Launch | None = None
    """To make its coordinator again; None when there is none that decides: who began to replace it, died."""

    @property
    def coordinator(self) -> bool:
        return self.launch is not None


def running(app_name: str) -> Running:
    """What runs of an app of which something does. Raises `UpgradeFailed` when nothing of it answers."""
    handle = ray_status.coordinator(app_name)
    if handle is not None:
        (answer,) = ray_adapter.ask_all([handle], "launch", timeout_s=HOST_ANSWER_S)
        if not isinstance(answer, bytes):
            raise UpgradeFailed(f"{app_name!r} runs already, and its coordinator does not answer: look again")
        launch = msgspec.json.decode(answer, type=Launch)
        spec = launch.spec
        again = None if launch.stopping else launch
        return Running(spec.version, spec.stores, spec.settings, spec.token_file, spec.drained, again)
    answers = ray_adapter.ask_all(ray_status.host_actors(app_name), "spec", timeout_s=HOST_ANSWER_S)
    hosts = [msgspec.json.decode(answer, type=HostSpec) for answer in answers if isinstance(answer, bytes)]
    for host in hosts:
        known = {other.stripe.index: other.store for other in hosts}
        stores = tuple(known.get(index, "") for index in range(host.stripe.count))
        return Running(host.version or "", stores, host.settings, host.token_file)
    raise UpgradeFailed(f"{app_name!r} runs already, and nothing of it answers: end it with `atoll stop {app_name}`")


def upgrade(before: Running, spec: ClusterSpec, nodes: int, timeout_s: float, tell: Tell) -> dict[str, Any]:
    """Replace what runs by what `spec` says, on so many nodes. Returns the status when every shard is served by that
    version and nothing else is left. `tell` is told what is missing.

    Raises `UpgradeFailed`: nothing was changed, or all is as before, or (after the time-out) it goes on by itself.
    """
    spec = _compatible(before, spec)
    deadline = time.monotonic() + timeout_s
    try:
        _replace_coordinator(spec)
        ray_status.until(spec.app_name, lambda found: _not_started(found, spec.version, nodes), deadline, tell)
    except ray_adapter.NameTaken:
        raise UpgradeFailed(f"somebody else starts {spec.app_name!r} at this moment: look again") from None
    except BaseException as error:
        if before.launch is None:
            raise  # it has a coordinator now, which is more than before
        with undisturbed():
            _restore(before.launch, tell)
        if isinstance(error, AtollError):
            what, old = _name(spec.version), _name(before.version)
            raise UpgradeFailed(f"{what} does not come up, {old} serves on: {error}") from None
        raise
    on = f"the upgrade goes on by itself: see `atoll status {spec.app_name}`"
    try:
        with going_on(on):
            upgraded = ray_status.until(spec.app_name, lambda found: _not_done(found, spec.version), deadline, tell)
            ignore_from_now_on()
    except ray_status.Late as error:
        raise UpgradeFailed(f"not done within {timeout_s:g} s ({error}); {on}") from None
    else:
        return upgraded


def _compatible(before: Running, spec: ClusterSpec) -> ClusterSpec:
    """The new spec with what both versions must share. Raises `UpgradeFailed` where they cannot."""
    name = spec.app_name
    if len(before.stores) != len(spec.stores) or any(
        was not in {"", asked} for was, asked in zip(before.stores, spec.stores, strict=True)
    ):
        runs, named = (", ".join(map(shown, filter(None, stores))) for stores in (before.stores, spec.stores))
        raise UpgradeFailed(f"{name!r} runs on {runs}, not on {named}: name its store with --store")
    for setting in ("lease_s", "shards"):
        was, asked = before.settings.get(setting), spec.settings.get(setting)
        if was != asked:
            raise UpgradeFailed(
                f"{setting} is {was} in the {name!r} that runs, and {asked} here: hosts that serve together must agree "
                f"on it, so stop the app first with `atoll stop {name}`"
            )
    return msgspec.structs.replace(spec, token_file=before.token_file, drained=before.drained)


def _replace_coordinator(spec: ClusterSpec, runtime_env: dict[str, Any] | None = None) -> None:
    ray_status.end_coordinator(spec.app_name)
    ray_adapter.create(
        CoordinatorActor,
        coordinator_name(spec.app_name),
        msgspec.json.encode(spec),
        node=None,
        restarts=-1,
        runtime_env=runtime_env,
    )


def _not_started(found: dict[str, Any], version: str, nodes: int) -> str:
    """What is missing until every node has its hosts of this version. Raises what keeps one from starting."""
    if found["problem"]:
        raise UpgradeFailed(found["problem"])
    up = sum(host["version"] == version and host["state"] in ("live", "draining") for host in found["hosts"])
    # a node may be lost meanwhile, and Ray may take 15 s to say so
    wanted = min(nodes, len(ray_adapter.nodes())) * found["stripes"]
    return "" if up >= wanted else f"{up} of {wanted} hosts of {_name(version)} are up"


def _not_done(found: dict[str, Any], version: str) -> str:
    """What is missing until nothing else is left, and all is served."""
    old = [host for host in found["hosts"] if host["version"] != version]
    if old:
        left = sum(host["shards"] for host in old)
        return f"{left} of {found['shards']} shards are with {len(old)} hosts of another version"
    return "" if found["served"] == found["shards"] else f"{found['served']} of {found['shards']} shards are served"


def _restore(launch: Launch, tell: Tell) -> None:
    """Let a coordinator put the old version back, and wait until it has."""
    spec = launch.spec
    _replace_coordinator(spec, launch.runtime_env)
    deadline = time.monotonic() + RESTORE_TIMEOUT_S
    try:
        ray_status.until(spec.app_name, lambda found: _not_done(found, spec.version), deadline, tell)
    except ray_status.Late as error:
        raise RayProblem(
            f"{_name(spec.version)} is being put back ({error}): see `atoll status {spec.app_name}`"
        ) from None


def _name(version: str) -> str:
    return f"version {version!r}" if version else "the version without a name"
