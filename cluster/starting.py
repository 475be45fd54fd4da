"""Starting and stopping an app on a Ray cluster, as one step that is done or undone.

checks (app, store, Ray, not running yet, machines)  ->  token file  ->  coordinator  ->  hosts  ->  every shard served
                                                               any failure: coordinator and hosts are ended again
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..actors.app import App
from ..actors.errors import AtollError
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.sqlite import SQLiteStore
from .loading import load_app
from .token import make_token_file, read_token_file, token_file

LOOK_S = 0.1
STOP_TIMEOUT_S = 30.0


class StartRefused(AtollError):
    """The app was not started, and nothing was left behind; the message says what to do."""


def store_url(app: App, asked: str | None, environment: Mapping[str, str]) -> str:
    """`--store` over `ATOLL_STORE` over `App(store=...)` over SQLite in ./atoll-data/<app>."""
    return asked or environment.get("ATOLL_STORE") or app.store or f"sqlite:{Path('atoll-data', app.name).absolute()}"


def start_app(
    app_path: str,
    *,
    app_dir: str,
    store: str | None,
    address: str | None,
    port: int,
    ship: bool,
    timeout_s: float,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the app's name, URL, token file, hosts and shards. Raises `AppImportError`, `StartRefused` or another
    `AtollError`, `ValueError` for a store or setting that cannot be."""
    app = load_app(app_path, app_dir)
    settings, _ = Settings.load(app.settings_asked, environment)
    url = store_url(app, store, environment)
    opened = open_store(url)
    if not isinstance(opened, SQLiteStore):
        raise StartRefused(f"{url} cannot be shared by several processes: use sqlite:PATH")
    url = f"sqlite:{opened.folder}"
    asyncio.run(_try_store(url, app, settings))

    from . import ray_adapter, ray_status  # noqa: PLC0415 - Ray takes a second to import: not before the checks above
    from .ray_actors import ClusterSpec, CoordinatorActor, coordinator_name  # noqa: PLC0415

    ray_adapter.connect(address, app_dir if ship else None)
    try:
        if ray_adapter.find(coordinator_name(app.name)) is not None:
            raise StartRefused(f"{app.name!r} runs already: see `atoll status {app.name}`, or `atoll stop {app.name}`")
        nodes = ray_adapter.nodes()
        machines = sorted({node.hostname for node in nodes})
        if len(machines) > 1:
            raise StartRefused(
                f"SQLite lives on one machine, and this Ray cluster has {len(machines)} ({', '.join(machines)}): "
                "start it on a cluster of one machine"
            )
        spec = ClusterSpec(
            app=app_path,
            app_name=app.name,
            app_dir=str(Path(app_dir).resolve()),
            ship=ship,
            store=url,
            settings=msgspec.to_builtins(settings),
            token_file=str(_token_path(opened.folder, environment)),
            port=port,
            hosts_wanted=len(nodes),
        )
        try:
            ray_adapter.create(
                CoordinatorActor, coordinator_name(app.name), msgspec.json.encode(spec), node=None, restarts=-1
            )
            return _wait_until_served(app.name, len(nodes), timeout_s)
        except BaseException:
            ray_status.end_all(app.name)
            raise
    finally:
        ray_adapter.disconnect()


async def _try_store(url: str, app: App, settings: Settings) -> None:
    """Open it here first, so that a store of another app or shard count is refused before anything is started."""
    store = open_store(url)
    await store.open(app.name, settings.shards)
    await store.close()


def _token_path(folder: Path, environment: Mapping[str, str]) -> Path:
    """The file that `ATOLL_TOKEN_FILE` names, else `token` in the store's folder, made when it is not there."""
    path = token_file(environment) or folder / "token"
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another start may make it in this very moment
            make_token_file(path, secrets.token_bytes(32))
    read_token_file(path)
    return path.absolute()


def _wait_until_served(app_name: str, hosts: int, timeout_s: float) -> dict[str, Any]:
    from . import ray_status  # noqa: PLC0415 - as above

    deadline = time.monotonic() + timeout_s
    found: dict[str, Any] = {}
    problem = "the coordinator does not answer"
    while time.monotonic() < deadline:
        try:
            found = ray_status.status(app_name, None)
        except AtollError as error:
            problem = str(error)
        else:
            if found["problem"]:
                raise StartRefused(found["problem"])
            if found["served"] == found["shards"] and len(found["hosts"]) >= hosts:
                return found
            problem = f"{found['served']} of {found['shards']} shards are served by {len(found['hosts'])} hosts"
        time.sleep(LOOK_S)
    raise StartRefused(f"{app_name!r} did not come up within {timeout_s:g} s ({problem}); it was stopped again")


def stop_app(app_name: str, address: str | None) -> bool:
    """True when every host gave all its shards back."""
    from . import ray_adapter, ray_status  # noqa: PLC0415 - as above

    ray_adapter.connect(address)
    try:
        return ray_status.stop(app_name, STOP_TIMEOUT_S)
    finally:
        ray_adapter.disconnect()
