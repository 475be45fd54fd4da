"""What `atoll start` decided: how a coordinator is made, and made again."""

from __future__ import annotations

from typing import Any

import msgspec

from ..persistence.stripes import Stripe
from .stores import stripes


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """For the coordinator and, through it, every host."""

    app: str
    app_name: str
    version: str = ""
    app_dir: str
    ship: bool
    """The folder was uploaded: it is each worker's current one."""
    stores: tuple[str, ...]
    """URLs of the app's databases, in order."""
    family: str = ""
    """Of the databases (persistence/stripes.py)."""
    settings: dict[str, Any]
    token_file: str
    port: int
    """Of the first host; the others take the next ones. 0: any free ones."""
    hosts_wanted: int
    """Per database."""
    log_level: str
    """Of the logger `atoll` in every process of the app."""
    log_format: str
    """Of all that these processes log."""
    requires: dict[str, float | str] = {}
    """What a node must have to get a host."""
    drained: tuple[str, ...] = ()
    """Nodes that had been drained by hand when this version was started."""

    def stripes(self) -> list[Stripe]:
        return stripes(len(self.stores), self.family)


class Launch(msgspec.Struct, frozen=True):
    """What it takes to make a running coordinator again."""

    spec: ClusterSpec
    runtime_env: dict[str, Any]
    stopping: bool = False
    """It decides nothing any more: somebody was about to end it."""
