"""Starting and stopping an app on a Ray cluster, as one step that is done or undone.

checks (app, store, Ray, what runs, nodes)  ->  token file  ->  coordinator  ->  hosts  ->  every shard served
                                      |              any failure: coordinator and hosts are ended again
                                      `- runs with another version: upgrading.py

Nothing is written or started before everything has been checked that can be checked from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..actors.app import App
from ..actors.errors import AtollError
from ..actors.requirements import Requirements, unmet
from ..actors.settings import Settings
from ..persistence.memory import MemoryStore
from ..persistence.open import open_store
from ..persistence.sqlite import SQLiteStore
from .cluster_spec import ClusterSpec
from .loading import load_app
from .log_format import asked_format
from .signals import end_on_sigterm, ignore_from_now_on, undisturbed
from .stores import open_all, store_urls
from .token import make_token_file, read_token_file, token_file

if TYPE_CHECKING:
    from .ray_adapter import Node
    from .ray_status import Stopped

STOP_TIMEOUT_S = 30.0
LOG_VARIABLE = "ATOLL_LOG"


class StartRefused(AtollError):
    """The app was not started, and nothing was left running; the message says what to do."""


def start_app(
    app_path: str,
    *,
    app_dir: str,
    store: Sequence[str],
    address: str | None,
    port: int,
    ship: bool,
    timeout_s: float,
    environment: Mapping[str, str],
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Start it, or replace the version of it that runs. Returns the app's status (see `ray_status.status`). `tell` is
    told what is still missing.

    `store`: URLs of its databases, empty for those of the environment, the app or the default (stores.py).

    Raises `AppImportError`, `ValueError` for a store, setting or log level that cannot be, `StartRefused` or another
    `AtollError`, `OSError` when the store's folder cannot be used.
    """
    app = load_app(app_path, app_dir)
    settings, _ = Settings.load(app.settings_asked, environment)
    log_level, log_format = _log_level(environment), asked_format(environment)
    urls = tuple(_shared(url) for url in store_urls(app, store, environment))
    folder = Path("atoll-data", app.name).absolute()
    folders = [opened.folder for url in urls if isinstance(opened := open_store(url), SQLiteStore)]
    asyncio.run(_try_stores(urls, app, settings, create=False))

    from . import ray_adapter, ray_status, upgrading  # noqa: PLC0415 - Ray takes half a second to import: check first
    from .discovery import coordinator_name  # noqa: PLC0415
    from .ray_actors import CoordinatorActor  # noqa: PLC0415

    ray_adapter.connect(address, app_dir if ship else None)
    end_on_sigterm()
    try:
        before = upgrading.running(app.name) if app.name in ray_status.apps() else None
        if before is not None and before.coordinator and before.version == app.version:
            raise StartRefused(_runs_already(app.name))
        nodes = [node for node in ray_adapter.nodes() if node.id not in ray_adapter.draining_nodes()]
        if folders:
            refuse_several_machines(nodes)
        nodes = suitable(nodes, app.requires)
        family = asyncio.run(_try_stores(urls, app, settings, create=True))
        spec = ClusterSpec(
            app=app_path,
            app_name=app.name,
            version=app.version,
            app_dir=str(Path(app_dir).resolve()),
            ship=ship,
            stores=urls,
            family=family,
            settings=msgspec.to_builtins(settings),
            token_file=str(_token_path(folders[0] if folders else folder, environment)),
            port=port,
            hosts_wanted=len(nodes),
            log_level=log_level,
            log_format=log_format,
            requires=dict(app.requires),
        )
        if before is not None:
            left = sum(node.id not in before.drained for node in nodes)
            return upgrading.upgrade(before, spec, left, timeout_s, tell)
        try:
            ray_adapter.create(
                CoordinatorActor, coordinator_name(app.name), msgspec.json.encode(spec), node=None, restarts=-1
            )
            started = _until_served(app.name, len(nodes), len(urls), timeout_s, tell)
            ignore_from_now_on()
        except ray_adapter.NameTaken:  # another start was faster: what runs is not ours to end
            raise StartRefused(_runs_already(app.name)) from None
        except BaseException:
            with undisturbed():
                ray_status.end_all(app.name)
            raise
        else:
            return started
    finally:
        ray_adapter.disconnect()


def suitable(nodes: Sequence[Node], required: Requirements) -> list[Node]:
    """Those that have what the app requires. Raises `StartRefused` when there is none."""
    found = [node for node in nodes if not unmet(required, node.resources, node.labels)]
    if not found:
        asked = ", ".join(unmet(required, {}, {}))
        raise StartRefused(f"no node of this Ray cluster has what the app requires: {asked}")
    return found


def refuse_several_machines(nodes: Sequence[Node]) -> None:
    """SQLite's files are safe among the processes of one machine only."""
    machines = sorted({node.hostname for node in nodes})
    if len(machines) > 1:
        raise StartRefused(
            f"SQLite lives on one machine, and this Ray cluster has {len(machines)} ({', '.join(machines)}): "
            "use a store that all of them reach, postgresql://USER@HOST/DATABASE"
        )


def _runs_already(app_name: str) -> str:
    return f"{app_name!r} runs already: see `atoll status {app_name}`, end it with `atoll stop {app_name}`"


def _log_level(environment: Mapping[str, str]) -> str:
    level = environment.get(LOG_VARIABLE, "INFO").upper()
    if level not in logging.getLevelNamesMapping():
        raise ValueError(f"{LOG_VARIABLE}={level} is no log level: use DEBUG, INFO, WARNING or ERROR")
    return level


def _shared(url: str) -> str:
    """The URL as every process can use it."""
    opened = open_store(url)
    if isinstance(opened, MemoryStore):
        raise StartRefused(
            f"the store {url} cannot be shared by several processes: use sqlite:PATH, or postgresql://USER@HOST/DATABASE"
        )
    return f"sqlite:{opened.folder.absolute()}" if isinstance(opened, SQLiteStore) else url


async def _try_stores(urls: Sequence[str], app: App, settings: Settings, *, create: bool) -> str:
    """Open all of them here first, so that a store of another app, shard count or stripe is refused before anything is
    started. Returns their family."""
    stores = [open_store(url) for url in urls]
    opened = await open_all(stores, app.name, settings.shards, create=create)
    for store in stores:
        await store.close()
    return opened[0].family


def _token_path(folder: Path, environment: Mapping[str, str]) -> Path:
    """The file that `ATOLL_TOKEN_FILE` names, else `token` in `folder`, made when it is not there."""
    path = token_file(environment) or folder / "token"
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another start may make it in this very moment
            make_token_file(path, secrets.token_bytes(32))
    read_token_file(path)
    return path.absolute()


def _until_served(
    app_name: str, nodes: int, stripes: int, timeout_s: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    from . import ray_adapter, ray_status  # noqa: PLC0415 - as above

    def missing(found: dict[str, Any]) -> str:
        if found["problem"]:
            raise StartRefused(found["problem"])
        up = sum(host["state"] == "live" for host in found["hosts"])
        # a node may be lost meanwhile, and Ray may take 15 s to say so
        if 0 < found["shards"] == found["served"] and up >= min(nodes, len(ray_adapter.nodes())) * stripes:
            return ""
        return f"{found['served']} of {found['shards']} shards are served by {up} hosts"

    try:
        return ray_status.until(app_name, missing, time.monotonic() + timeout_s, tell)
    except ray_status.Late as error:
        raise StartRefused(
            f"{app_name!r} did not come up within {timeout_s:g} s ({error}); it was stopped again"
        ) from None


def stop_app(app_name: str, address: str | None) -> Stopped:
    """End it; its store stays."""
    from . import ray_status  # noqa: PLC0415 - as above

    with in_ray(address):
        return ray_status.stop(app_name, STOP_TIMEOUT_S)


@contextlib.contextmanager
def in_ray(address: str | None) -> Iterator[None]:
    """With a connection to the Ray cluster at `address`."""
    from . import ray_adapter  # noqa: PLC0415 - as above

    ray_adapter.connect(address)
    try:
        yield
    finally:
        ray_adapter.disconnect()
