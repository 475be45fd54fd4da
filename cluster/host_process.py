"""A process that is a host: the same whether Ray started it (as an actor) or a command line (tests, development).

    python -m atoll.cluster.host_process < spec.json

reads a `HostSpec` from standard input, prints one JSON line {"incarnation": ..., "address": ...} when it is ready, and
ends, with status 1 and the reason on standard error, when it is fenced, condemned or broken.

Crash-only. SIGTERM ends it as SIGKILL does: in a Ray actor signals are Ray's, which has its own handlers there. That
costs its entities what any crash does (their shards go elsewhere, nothing that was acknowledged is lost). Who wants it
without the gap drains the node first (`atoll drain`) or stops the app (`atoll stop`), both through the store and Ray.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ..actors.errors import AtollError
from ..actors.logs import about
from ..actors.settings import Settings
from ..persistence.open import open_store
from ..persistence.process import this_process
from ..persistence.stripes import ONLY, Stripe
from .api import software
from .hosting import RunningHost, keep_lease_on_thread, start_host
from .loading import load_app
from .log_format import asked_format, log_to_stderr
from .memory import keep_large_blocks_apart, watch_memory
from .network import TcpNetwork
from .system import SystemWorld
from .token import read_token_file

log = logging.getLogger("atoll.host")

SWITCH_INTERVAL_S = 0.0005
"""How soon a thread that waits for the interpreter gets it. With Python's default (5 ms) a commit waits that long
behind a busy loop; below 0.1 ms the switching itself costs throughput."""


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a host process needs to know. The token itself never travels: only the path of its file."""

    app: str
    """`module:app`"""
    app_dir: str | None = None
    store: str
    stripe: Stripe = ONLY
    settings: dict[str, Any] = {}
    """What `atoll start` resolved: every host of an app runs with the same settings."""
    token_file: str
    log_level: str = "INFO"
    log_format: str = "text"
    """How a Ray actor logs (log_format.py); a plain process takes ATOLL_LOG and ATOLL_LOG_FORMAT itself."""
    bind: str = "127.0.0.1"
    port: int = 0
    node: str = ""
    weight: float = 1.0
    """Its share of the shards, as a ratio to the others' weights."""
    version: str | None = None
    """What the app must say that it is; None: anything. Its folder may have changed since it was started."""


def undo_niceness() -> None:
    """Ray starts its workers at nice 15, behind everything else on the machine. Take back what we may: all of it with
    the right to, else down to what RLIMIT_NICE allows. (`RAY_worker_niceness=0` before `ray start` avoids it.)

    On Linux each thread has a value of its own, which the threads that it starts inherit. So all there are must be set,
    and looked at again until nothing is left to do: one that was not reached yet may just have started another.
    """
    while any(_undo_niceness_of(thread) for thread in _threads()):
        pass


def _threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()] if sys.platform == "linux" else [0]


def _undo_niceness_of(thread: int) -> bool:
    """True when it could be brought down now."""
    with contextlib.suppress(OSError):  # it has ended
        for nice in range(os.getpriority(os.PRIO_PROCESS, thread)):
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, thread, nice)
                return True
    return False


async def run_host(spec: HostSpec, ready: Callable[[RunningHost], None]) -> NoReturn:
    """Be a host until that ends, and the process with it. `ready` is called once it serves; what goes wrong before that
    is raised, with nothing left behind."""
    undo_niceness()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what was imported so far lives for ever: keep it out of the collector's rounds
    app = load_app(spec.app, spec.app_dir)
    if spec.version not in (None, app.version):
        raise ValueError(
            f"{spec.app} is version {app.version!r} now, and {spec.version!r} was started: upgrade with `atoll start`"
        )
    settings = msgspec.convert(spec.settings, Settings)
    world = SystemWorld()
    store = open_store(spec.store)
    await store.open(app.name, settings.shards, spec.stripe)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        resources = await stack.enter_async_context(app.resources()) if app.resources is not None else None
        running = await start_host(
            app,
            store=store,
            stripe=spec.stripe,
            settings=settings,
            world=world,
            network=TcpNetwork(),
            token=read_token_file(Path(spec.token_file)),
            bind=spec.bind,
            port=spec.port,
            node=spec.node,
            weight=spec.weight,
            process=this_process(),
            resources=resources,
            software=software(),
        )
        keep_lease_on_thread(running.host)
        keep_large_blocks_apart()
        watching = watch_memory(settings.memory_bytes_max, spec.stripe.count, running.host.memory_seen)
        world.spawn(watching, "atoll-memory")
        of_this_host = about(incarnation=running.incarnation)
        log.info("host %d serves at %s", running.incarnation, running.address, extra=of_this_host)
        ready(running)
        reason = await running.host.ended
        # A fenced host runs nothing any more, not even its cleanup, and no task that would meet a closed store.
        log.critical("host %d ended: %s", running.incarnation, reason, extra=of_this_host)
        os._exit(1)


def run_loop(main: Any) -> Any:
    """Run a coroutine on uvloop: half the latency and twice the throughput of asyncio's own loop (measured)."""
    import uvloop  # noqa: PLC0415 - not needed by anybody who only imports this module's spec

    return uvloop.run(main)


def main() -> None:
    def ready(running: RunningHost) -> None:
        print(json.dumps({"incarnation": running.incarnation, "address": running.address}), flush=True)  # noqa: T201

    try:
        log_to_stderr(asked_format(os.environ), os.environ.get("ATOLL_LOG", "WARNING"))
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=HostSpec)
        run_loop(run_host(spec, ready))
    except (AtollError, ValueError, OSError) as error:
        log.critical("the host does not start: %s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
