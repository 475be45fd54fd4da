"""`atoll status` and `atoll shards`: what runs, who has which shard, what moves and why; `--watch` draws it again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..actors.errors import AtollError, Unavailable
from .cli_common import TABLE_WIDTH, Address, AsJson, console, fail, told_in_one_line
from .signals import end_on_sigterm
from .starting import in_ray

MaybeName = Annotated[str | None, typer.Argument(metavar="[NAME]", help="the app's name, as in atoll.App(name)")]
Watch = Annotated[bool, typer.Option("--watch", help="draw it again and again, until interrupted")]
Every = Annotated[float, typer.Option("--every", help="seconds between two looks of --watch", min=0.1)]

Look = Callable[[], dict[str, Any]]
Draw = Callable[[dict[str, Any]], RenderableType]


def status(
    name: MaybeName = None, address: Address = None, as_json: AsJson = False, watch: Watch = False, every: Every = 2.0
) -> None:
    """Show an app's hosts, leases, shards and moves, or without a name the apps that run."""

    def look() -> dict[str, Any]:
        from . import ray_status  # noqa: PLC0415 - Ray takes half a second to import: only when it is asked

        return {"apps": ray_status.apps()} if name is None else ray_status.status(name)

    found = _show(look, _apps if name is None else _status, address, as_json=as_json, every=every if watch else None)
    if name is not None and found is not None:
        _fail_unless_well(found)


def shards(
    name: MaybeName = None, address: Address = None, as_json: AsJson = False, watch: Watch = False, every: Every = 2.0
) -> None:
    """Show who has which shard. Without a name: of the app that runs, if there is only one."""

    def look() -> dict[str, Any]:
        from . import ray_status  # noqa: PLC0415 - as above

        app_name = _only(ray_status.apps()) if name is None else name
        return {"app": app_name, "shards": ray_status.shards(app_name)}

    _show(look, _shards, address, as_json=as_json, every=every if watch else None)


def _only(apps: list[str]) -> str:
    if not apps:
        raise Unavailable("no app runs in this Ray cluster")
    if len(apps) > 1:
        raise ValueError(f"several apps run, name one: {', '.join(apps)}")
    return apps[0]


def _show(look: Look, draw: Draw, address: str | None, *, as_json: bool, every: float | None) -> dict[str, Any] | None:
    """Look once, and return what was found; or, `every` so many seconds, until interrupted, and return None."""
    with told_in_one_line():
        if as_json and every is not None:
            raise ValueError("--watch draws tables: leave out --json")
        with in_ray(address):
            if every is not None:
                _watch(look, draw, every)
                return None
            found = look()
        if as_json:
            console.print_json(json.dumps(found))
        else:
            Console(width=TABLE_WIDTH, highlight=False).print(draw(found))
    return found


def _watch(look: Look, draw: Draw, every_s: float) -> None:
    """What goes wrong is drawn as well: it may be better the next time."""

    def drawn() -> RenderableType:
        try:
            return draw(look())
        except AtollError as error:
            return Text(f"atoll: {error}", style="red")

    end_on_sigterm()
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the ordinary end
        if console.is_terminal:
            with Live(drawn(), console=console, auto_refresh=False) as live:
                while True:
                    time.sleep(every_s)
                    live.update(drawn(), refresh=True)
        while True:  # where nothing can be drawn over: one below the other
            Console(width=TABLE_WIDTH, highlight=False).print(drawn())
            time.sleep(every_s)


# ---- what is drawn


def _apps(found: dict[str, Any]) -> RenderableType:
    return Text("\n".join(found["apps"]) or "no app runs in this Ray cluster")


def _status(found: dict[str, Any]) -> RenderableType:
    version = f" (version {found['version']})" if found["version"] else ""
    several = found["stripes"] > 1
    database = ("database",) if several else ()
    table = _table(
        *database, "host", "address", "state", "version", "shards", "entities", "lease", "clients", "pid", "node"
    )
    for host in found["hosts"]:
        table.add_row(
            *((_number(host),) if several else ()),
            *(str(host[key]) for key in ("incarnation", "address", "state", "version", "shards", "entities")),
            "valid" if host["lease_valid"] else "lapsed",
            str(host["connections"]),
            str(host.get("pid", "?")),
            host["node"][:12],
        )
    return Group(
        Text(f"{found['app']}{version}: {found['served']} of {found['shards']} shards served"),
        table,
        *_moves(found["moves"], several=several),
        *_pins(found["pins"], several=several),
        *_hot(found["hosts"], several=several),
        Text(f"connect     {found['url']}", no_wrap=True),
        Text(f"token file  {found['token_file']}", no_wrap=True),
    )


def _number(item: dict[str, Any]) -> str:
    """Which of several databases, as people count."""
    return str(item["stripe"] + 1)


def _name(host: int, item: dict[str, Any], *, several: bool) -> str:
    return f"{host} of database {_number(item)}" if several else str(host)


HOT_SHARE = 0.2
"""Of its host's time: what takes less is not worth a line."""


def _hot(hosts: list[dict[str, Any]], *, several: bool) -> list[RenderableType]:
    """Entities and shards that take much of their host."""
    rows = []
    for host in hosts:
        hot = host.get("hot", {"entities": (), "shards": ()})
        in_all = sum(share for _, share in hot["shards"])
        name = _name(host["incarnation"], host, several=several)
        rows += [(share, f"shard {shard}", name) for shard, share in hot["shards"]]
        rows += [(share * in_all, f"{kind}/{id}", name) for kind, id, share in hot["entities"]]
    rows = [row for row in rows if row[0] >= HOT_SHARE]
    if not rows:
        return []
    table = _table("hot", "on host", "of its time")
    for share, what, name in sorted(rows, reverse=True):
        table.add_row(what, name, f"{share:.0%}")
    return [table]


def _moves(moves: list[dict[str, Any]], *, several: bool) -> list[RenderableType]:
    """Those with the same end points and reason in one line."""
    if not moves:
        return []
    groups: dict[tuple[str, str, str], list[float]] = {}
    for move in moves:
        source, target = (_name(move[end], move, several=several) for end in ("from", "to"))
        groups.setdefault((source, target, move["why"]), []).append(move["since_s"])
    table = _table("moving", "from host", "to host", "why", "longest")
    for (source, target, why), since in sorted(groups.items()):
        table.add_row(_count(len(since), "shard"), source, target, why, f"{max(since):.1f} s")
    return [table]


def _pins(pins: list[dict[str, Any]], *, several: bool) -> list[RenderableType]:
    if not pins:
        return []
    table = _table("pinned", "to node", "on host", "at node", "beside it")
    for pin in pins:
        beside = "nothing" if pin["alone"] else _count(pin["beside"], "shard")
        host = "nobody" if pin["host"] is None else _name(pin["host"], pin, several=several)
        table.add_row(f"shard {pin['shard']}", _node(pin["node"]), host, pin["at"][:12], beside)
    return [table]


def _node(node: str) -> str:
    return node[:12] or "any"


def _shards(found: dict[str, Any]) -> RenderableType:
    several = any(row["stripe"] for row in found["shards"])
    names = (
        "shard",
        *(("stripe",) if several else ()),
        "state",
        "owner",
        "address",
        "epoch",
        "target",
        "position",
        "pin",
    )
    called = {"stripe": "database", "pin": "pinned to"}
    table = _table(*(called.get(name, name) for name in names))
    for row in found["shards"]:
        shown = {**row, "stripe": _number(row), "pin": None if row["pin"] is None else _node(row["pin"])}
        table.add_row(*("" if shown[name] is None else str(shown[name]) for name in names))
    moving = sum(row["target"] is not None for row in found["shards"])
    states = [row["state"] for row in found["shards"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    return Group(table, Text(f"{found['app']}: {counts}; {moving} wanted elsewhere"))


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _fail_unless_well(found: dict[str, Any]) -> None:
    if found["problem"]:
        fail(found["problem"])
    if not found["coordinator"]:
        fail("the coordinator does not answer: Ray restarts it; what is placed goes on meanwhile")
    if found["silent"]:
        which = ", ".join(str(stripe + 1) for stripe in found["silent"])
        fail(f"of {found['stripes']} databases number {which} does not answer: its shards wait, the others are served")
    if found["served"] != found["shards"]:
        fail(f"{found['shards'] - found['served']} of {found['shards']} shards are not served right now: look again")
