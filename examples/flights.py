"""The main job: a year of flights through three Ray nodes, one of which is killed in the middle.

    python examples/flights.py                          (or: make run)
    python examples/flights.py --flights 20000 --no-kill --json result.json
    python examples/flights.py --store postgresql       (or: make run STORE=postgresql)

It starts three Ray nodes on this machine with the ordinary `ray start`, starts the app on them with `atoll start`,
connects over TCP to hosts that it will not kill, and sends each of the 336,776 flights that left New York in 2013 as a
durable command to its aircraft, its origin and its destination. In the middle it SIGKILLs one node: its raylet and all
that runs under it, the host included. In the end it asks every aircraft and airport for its totals and compares them
with pandas over the same table. It exits with 0 when every one agrees, with 1 otherwise, and leaves nothing behind
either way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from replay import (
    Comparison,
    Replay,
    ReplayFailed,
    compare,
    expected_totals,
    load_flights,
    read_totals,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import atoll

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "deploy"))  # a folder of scripts, no package

from three_nodes import Node, RayNodes, RayNodesError  # noqa: E402 - needs the line above

START_TIMEOUT_S = 120.0
"""For `atoll start`: three worker processes on a machine that may be busy."""

console = Console()


class JobFailed(Exception):
    """The job could not be done; the message says why."""


@dataclass(frozen=True)
class Host:
    """One host of the app, and the node that it runs on."""

    address: str
    pid: int
    node: Node


# ---- the cluster


def _atoll(arguments: list[str], nodes: RayNodes, environment: Mapping[str, str]) -> str:
    """Run the CLI as anybody would; return what it prints. Raises `JobFailed` with what it said when it fails."""
    run = subprocess.run(  # noqa: S603 - our own program with our own arguments
        [str(Path(sys.executable).with_name("atoll")), *arguments],
        env={**environment, "RAY_ADDRESS": nodes.address},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    if run.returncode != 0:
        raise JobFailed(f"atoll {arguments[0]} ended with {run.returncode}\n{run.stdout}{run.stderr}".rstrip())
    return run.stdout


def start_app(nodes: RayNodes, environment: Mapping[str, str], store: str) -> list[Host]:
    """Start the app on the nodes; return its hosts when every shard is served."""
    arguments = ["start", "flights_app:app", "--app-dir", str(HERE), "--store", store, "--json"]
    started = json.loads(_atoll(arguments, nodes, environment))
    by_id = {node.node_id: node for node in nodes.nodes}
    return [Host(host["address"], host["pid"], by_id[host["node"]]) for host in started["hosts"]]


# ---- the job


async def replay_and_compare(
    cluster: atoll.Cluster,
    count: int | None,
    nodes: RayNodes,
    hosts: list[Host],
    victim: Node | None,
    luck: random.Random,
) -> tuple[dict[str, Any], Comparison]:
    """Replay, kill `victim` somewhere in the middle fifth, compare. Returns the figures and the comparison."""
    flights = load_flights(count)
    replay = Replay(cluster, flights)
    killed_at: list[float] = []

    doomed = nodes.processes(victim.index) if victim is not None else []

    async def kill() -> None:
        assert victim is not None
        killed_at.append(time.perf_counter())
        killed = await asyncio.to_thread(nodes.kill, victim.index, at_once=doomed)
        if not any(host.node == victim and host.pid in killed for host in hosts):
            raise JobFailed(f"node {victim.index} died, and no host with it: nothing is proved")
        console.print(f"[red]killed node {victim.index}[/red]: {len(killed)} processes, its raylet and host included")

    at = int(replay.commands * luck.uniform(0.4, 0.6)) if victim is not None else None
    with _progress() as progress:
        bar = progress.add_task("replaying", total=replay.commands)
        watcher = asyncio.create_task(_watch(replay, progress, bar))
        try:
            await replay.run(at=at, then=kill if victim is not None else None)
        finally:
            watcher.cancel()
        progress.update(bar, completed=replay.done)
    if victim is not None and not killed_at:
        raise JobFailed("the replay ended before the node was killed: nothing is proved")

    with console.status("asking every entity, and pandas"):
        expected = expected_totals(flights)
        comparison = compare(expected, await read_totals(cluster, list(expected)))
    figures = {
        "flights": len(flights),
        "commands": replay.commands,
        "entities": len(expected),
        "lost": comparison.lost,
        "doubled": comparison.doubled,
        "mismatches": len(comparison.mismatches),
        "killed": len(killed_at),
        "commands_per_s": round(replay.commands / replay.seconds, 1),
        "p50_ms": round(replay.percentile_ms(50), 3),
        "p99_ms": round(replay.percentile_ms(99), 3),
        "failover_gap_ms": round(replay.longest_ms(killed_at[0]), 1) if killed_at else None,
        "seconds": round(replay.seconds, 3),
    }
    return figures, comparison


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=5)


async def _watch(replay: Replay, progress: Progress, bar: Any) -> None:
    while True:
        progress.update(bar, completed=replay.done)
        await asyncio.sleep(0.2)


async def drive(
    nodes: RayNodes, hosts: list[Host], token: Path, count: int | None, victim: Node | None, luck: random.Random
) -> tuple[dict[str, Any], Comparison]:
    """Connect to the hosts that stay, and do the job."""
    stay = [host.address for host in hosts if host.node != victim]
    async with atoll.connect("tcp://" + ",".join(stay), token_file=token) as cluster:
        return await replay_and_compare(cluster, count, nodes, hosts, victim, luck)


def choose_victim(nodes: RayNodes, hosts: list[Host], luck: random.Random) -> Node:
    """A node that runs a host and is not the head (killing that one kills Ray's memory of the cluster)."""
    candidates = [node for node in nodes.nodes if not node.head and any(host.node == node for host in hosts)]
    if not candidates:
        raise JobFailed("no node but the head runs a host: there is nothing to kill")
    return luck.choice(candidates)


def report(figures: Mapping[str, Any], comparison: Comparison) -> None:
    """Print the figures, and what differs."""
    table = Table(show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    console.print(table)
    for mismatch in comparison.mismatches[:20]:
        console.print(f"[red]{mismatch}[/red]", highlight=False)
    if not comparison.mismatches:
        console.print("[green]every aircraft and every airport agrees with the table[/green]")


@contextlib.contextmanager
def own_postgres(nodes: RayNodes, environment: Mapping[str, str]) -> Iterator[str]:
    """The URL of a store on a PostgreSQL server of its own."""
    from postgres_server import PostgresServer  # noqa: PLC0415 - a development dependency, which only this needs

    with PostgresServer.start() as server:
        server.create_database("flights")
        _atoll(["store", "migrate", "--store", server.owner_url("flights")], nodes, environment)
        yield server.url("flights")


def run_job(count: int | None, *, kill: bool, store: str | None, seed: int) -> tuple[dict[str, Any], Comparison]:
    """Start everything, do the job, and leave nothing behind, however it ends."""
    luck = random.Random(seed)  # noqa: S311 - chooses whom to kill, and when
    began = time.monotonic()
    with contextlib.ExitStack() as cleanup:
        with console.status("starting three Ray nodes"):
            nodes = RayNodes.start(3)
            cleanup.callback(_clean_up, nodes)
        token = nodes.folder / "token"
        environment = {**os.environ, "ATOLL_TOKEN_FILE": str(token), "RAY_AUTH_MODE": "disabled"}
        if store == "postgresql":
            with console.status("starting a PostgreSQL server"):
                store = cleanup.enter_context(own_postgres(nodes, environment))
        with console.status("starting the app on them"):
            hosts = start_app(nodes, environment, store or f"sqlite:{nodes.folder / 'store'}")
        victim = choose_victim(nodes, hosts, luck) if kill else None
        setup_s = time.monotonic() - began
        console.print(f"three nodes and {len(hosts)} hosts are up after {setup_s:.1f} s (seed {seed})")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            figures, comparison = runner.run(drive(nodes, hosts, token, count, victim, luck))
        return {**figures, "setup_seconds": round(setup_s, 1), "seed": seed}, comparison


def _clean_up(nodes: RayNodes) -> None:
    # A second Ctrl-C must not leave half of it behind; it takes a second.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    nodes.stop()


def _as_interrupt(_number: int, _frame: object) -> None:
    """SIGTERM ends the job as Ctrl-C does, so that it cleans up."""
    signal.raise_signal(signal.SIGINT)


def main(
    flights: Annotated[int | None, typer.Option(min=1, help="Only the first so many of the 336,776.")] = None,
    kill: Annotated[bool, typer.Option(help="SIGKILL a node in the middle.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file, too.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="A URL, instead of SQLite in a temporary folder; `postgresql`: a server of its own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which node is killed, and when. Printed.")] = None,
) -> None:
    """Replay a year of flights through three Ray nodes, kill one in the middle, and compare with the table."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    seed = seed if seed is not None else int.from_bytes(os.urandom(4))
    try:
        figures, comparison = run_job(flights, kill=kill, store=store, seed=seed)
    except (JobFailed, RayNodesError, ReplayFailed, atoll.AtollError, subprocess.TimeoutExpired) as error:
        console.print(f"[red]failed[/red] (seed {seed}): {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started is gone")
        raise typer.Exit(130) from None
    report(figures, comparison)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if comparison.lost or comparison.doubled or comparison.mismatches:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
