"""`atoll pin` and `atoll unpin`: a hot shard gets a host for itself."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .cli_common import Address, AppName, AsJson, console, errors, told_in_one_line
from .signals import end_on_sigterm
from .starting import in_ray

MaybeKind = Annotated[str | None, typer.Argument(metavar="KIND", help="with ID: the shard of that entity")]
MaybeId = Annotated[str | None, typer.Argument(metavar="ID")]
Shard = Annotated[int | None, typer.Option("--shard", help="as `atoll shards` shows it", min=0)]
Timeout = Annotated[float, typer.Option(help="seconds until it must be so", min=1.0)]


def pin(
    name: AppName,
    kind: MaybeKind = None,
    id: MaybeId = None,
    shard: Shard = None,
    node: Annotated[
        str | None,
        typer.Option("--node", help="the beginning of its Ray ID, its hostname or IP address; default: any"),
    ] = None,
    timeout: Timeout = 60.0,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Give a shard a host for itself: all others move away from there while they are served. Returns when it is alone.

    The pin stays when the app or the cluster is stopped. If its host dies, the shard is served elsewhere at once, and
    is alone again as soon as it can be: one node always remains for all other shards.
    """
    from . import pinning  # noqa: PLC0415 - Ray takes half a second to import: only when it is asked

    with told_in_one_line():
        _check_named(kind, id, shard)
        with errors.status("pinning") as line, in_ray(address):
            end_on_sigterm()
            which = pinning.shard_of_entity(name, kind or "", id or "") if shard is None else shard
            found = pinning.pin(name, which, node, timeout, lambda lacks: line.update(f"pinning: {lacks}"))
    if as_json:
        console.print_json(json.dumps(found))
        return
    at = f"node {found['at'][:12]}" + ("" if found["node"] else ", which any other may replace")
    console.print(f"shard {which} of {name} is alone on host {found['host']} ({at})", soft_wrap=True)


def unpin(
    name: AppName,
    kind: MaybeKind = None,
    id: MaybeId = None,
    shard: Shard = None,
    timeout: Timeout = 60.0,
    address: Address = None,
) -> None:
    """Take a pin back: the shard is one like all others, and its host gets a fair share again."""
    from . import pinning  # noqa: PLC0415 - as above

    with told_in_one_line():
        _check_named(kind, id, shard)
        with errors.status("unpinning") as line, in_ray(address):
            end_on_sigterm()
            which = pinning.shard_of_entity(name, kind or "", id or "") if shard is None else shard
            pinning.unpin(name, which, timeout, lambda lacks: line.update(f"unpinning: {lacks}"))
    console.print(f"shard {which} of {name} is not pinned any more: its host gets a fair share again", soft_wrap=True)


def _check_named(kind: str | None, id: str | None, shard: int | None) -> None:
    if (shard is None) == (kind is None) or (kind is None) != (id is None):
        raise ValueError("name a shard with --shard N, or an entity with KIND ID")
