"""The Ray actors: a host per node, and the coordinator. Ray supervises their processes; everything that matters happens
on a thread with a loop of its own, so that Ray's calls and the data plane do not get into each other's way.

    CoordinatorActor   detached, on the head node, restarted by Ray for ever; a keeper of hosts (host_keeper.py) for
                       each of the app's databases
    HostActor          detached, pinned to its node, never restarted: a new one is another incarnation

Both run in the `runtime_env` of the `atoll start` that made the coordinator: where a folder was shipped, each version
of an app has its own.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import operator
import os
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
import ray

from ..actors.errors import AtollError, StoreError
from ..persistence.stripes import stripe_of
from ..sharding.pinning import not_there
from . import ray_adapter
from .cluster_spec import ClusterSpec, Launch
from .discovery import host_prefix, version_part
from .host_keeper import HOST_START_TIMEOUT_S, HostKeeper
from .host_process import HostSpec, run_host, run_loop, undo_niceness
from .hosting import RunningHost
from .log_format import log_to_stderr
from .stripe_hosts import StripeDirectory

log = logging.getLogger("atoll")


def _log_to_ray(spec: HostSpec | ClusterSpec) -> None:
    """Log to standard error, which Ray writes to the worker's file in its session's log folder."""
    log_to_stderr(spec.log_format, spec.log_level)
    log.debug("process %d logs at %s", os.getpid(), spec.log_level)


class _OwnLoop:
    """A thread with a loop, and a way to ask it things from Ray's threads."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._up = threading.Event()

    def run(self, main: Any) -> None:
        async def outer() -> Any:
            self._loop = asyncio.get_running_loop()
            self._up.set()
            return await main

        def work() -> None:
            try:
                reason = run_loop(outer())
            except BaseException as error:
                log.critical("%s failed", self._name, exc_info=error)
                reason = f"{type(error).__name__}: {error}"
            log.warning("%s ends: %s", self._name, reason)
            os._exit(1)  # crash-only: Ray sees the process end

        threading.Thread(target=work, name=self._name, daemon=True).start()

    def ask(self, work: Any) -> Future[Any]:
        self._up.wait()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop)


@ray.remote
class HostActor:
    """One host. When it cannot start, everything that is asked of it is answered with the reason, until it is ended."""

    def __init__(self, spec_json: bytes) -> None:
        self._spec = msgspec.json.decode(spec_json, type=HostSpec)
        _log_to_ray(self._spec)
        self._ready: Future[RunningHost] = Future()
        self._own = _OwnLoop("atoll-host")
        self._own.run(self._main())

    async def _main(self) -> str:
        try:
            return await run_host(self._spec, self._ready.set_result)
        except BaseException as error:
            if self._ready.done():
                raise
            log.exception("the host does not start")
            self._ready.set_exception(ray_adapter.RayProblem(self._explained(error)))
            await asyncio.Event().wait()  # the process is ended by whoever asks, and learns the reason
            raise

    def _explained(self, error: BaseException) -> str:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return f"port {self._spec.port} is in use: choose another one with --port, or leave it to any"
        told = str(error) if isinstance(error, AtollError) else f"{type(error).__name__}: {error}"
        return " ".join(told.split())

    def _running(self) -> RunningHost:
        return self._ready.result(timeout=HOST_START_TIMEOUT_S)

    def info(self) -> dict[str, Any]:
        """Where clients find it; once it serves."""
        running = self._running()
        return {
            "stripe": self._spec.stripe.index,
            "stripes": self._spec.stripe.count,
            "incarnation": running.incarnation,
            "address": running.address,
            "node": self._spec.node,
            "version": self._spec.version or "",
            "kinds": sorted(running.host.kinds),
            "pid": os.getpid(),
            "token_file": self._spec.token_file,
        }

    def status(self) -> dict[str, Any]:
        """What it serves right now."""
        running = self._running()
        host = running.host
        return {
            **self.info(),
            "shards": len(host.shards),
            "shards_in_all": host.settings.shards,
            "entities": host.entities,
            "lease_valid": host.lease.valid(),
            "connections": running.server.connections,
            "log_row": host.commits.n,
            "checkpoints": host.upkeep.checkpoints,
            "hot": host.hot()._asdict(),
        }

    def spec(self) -> bytes:
        """The `HostSpec` that it was made from, as JSON."""
        return msgspec.json.encode(self._spec)

    def stop(self) -> bool:
        """Give every shard back. True when all were released."""
        running = self._running()
        self._own.ask(running.stop()).result()
        return not running.host.shards


@ray.remote
class CoordinatorActor:
    """See the module. Everything it needs to go on after a restart is in the stores."""

    def __init__(self, spec_json: bytes) -> None:
        spec = self._spec = msgspec.json.decode(spec_json, type=ClusterSpec)
        _log_to_ray(spec)
        directory = StripeDirectory(len(spec.stores))
        restarted = ray_adapter.was_restarted()
        self._keepers = [
            HostKeeper(spec, stripe, directory, HostActor, self._sweep_actors, restarted=restarted)
            for stripe in spec.stripes()
        ]
        self._stopping = False
        self._swept = False
        """Nothing is left of other versions."""
        self._own = _OwnLoop("atoll-coordinator")
        self._own.run(self._main())

    async def _main(self) -> str:
        undo_niceness()
        await asyncio.gather(*(keeper.run() for keeper in self._keepers))
        return "its work ended"

    async def _sweep_actors(self) -> None:
        """Once no live host is of another version, end what is left of such: hosts that did not start, stopped ones."""
        if not all(keeper.alone for keeper in self._keepers):
            self._swept = False
        elif not self._swept:
            prefix, ours = host_prefix(self._spec.app_name), version_part(self._spec.version)
            await ray_adapter.on_thread(partial(ray_adapter.kill_all, prefix, but=ours))
            self._swept = True

    # ---- asked through Ray -----------------------------------------------------------------------------------------

    def problem(self) -> str:
        """Why the app is not up, empty when nothing is known to be wrong."""
        return next((problem for keeper in self._keepers for problem in list(keeper.problems.values())), "")

    def launch(self) -> bytes:
        """A `Launch` as JSON: what this coordinator was made from, and the nodes that are drained now."""
        drained = {node for keeper in self._keepers for node in list(keeper.drained)}
        spec = msgspec.structs.replace(self._spec, drained=tuple(sorted(drained)))
        return msgspec.json.encode(Launch(spec, ray_adapter.this_runtime_env(), self._stopping))

    def ownership(self) -> dict[str, Any] | None:
        """Living hosts, shards, moves under way and pins as the stores have them now, and `silent`: the stripes whose
        databases do not answer. None while none is opened yet."""
        found: dict[str, Any] | None = self._own.ask(self._ownership()).result()
        return found

    async def _ownership(self) -> dict[str, Any] | None:
        if not any(keeper.opened for keeper in self._keepers):
            return None
        found = await asyncio.gather(*(keeper.ownership() for keeper in self._keepers))
        if all(part is None for part in found):
            raise ray_adapter.RayProblem("no store answers")
        several = list(enumerate(found))
        return {
            "version": self._spec.version,
            "shards": self._spec.settings["shards"],
            "stripes": len(found),
            "silent": [stripe for stripe, part in several if part is None],
            "hosts": [
                {
                    "stripe": stripe,
                    "incarnation": host.incarnation,
                    "address": host.address,
                    "node": host.node,
                    "version": host.version,
                    "draining": host.draining,
                }
                for stripe, part in several
                for host in (part.hosts if part is not None else ())
            ],
            "moves": [
                {"stripe": stripe, **move}
                for stripe, part in several
                for move in (part.moves if part is not None else ())
            ],
            "pins": [
                {"stripe": stripe, **msgspec.structs.asdict(pin), "alone": pin.is_alone}
                for stripe, part in several
                for pin in (part.pins if part is not None else ())
            ],
        }

    def shards(self) -> list[dict[str, Any]] | None:
        """Every shard's row in its store: `shard`, `stripe`, `state`, `owner` and `address` (who has it, or is to claim
        it), `epoch`, `target`, `position` and `pin`. Those in a store that does not answer are left out; None when
        none does."""
        found: list[dict[str, Any]] | None = self._own.ask(self._shards()).result()
        return found

    async def _shards(self) -> list[dict[str, Any]] | None:
        found = await asyncio.gather(*(keeper.shards() for keeper in self._keepers))
        if all(part is None for part in found):
            return None
        rows = [
            {
                "shard": row.shard,
                "stripe": stripe,
                "state": row.state.value,
                "owner": row.holder,
                "address": address,
                "epoch": row.epoch,
                "target": row.target,
                "position": row.position,
                "pin": row.pin,
            }
            for stripe, part in enumerate(found)
            for row, address in part or ()
        ]
        return sorted(rows, key=operator.itemgetter("shard"))

    def drain(self, node: str, draining: bool) -> dict[str, Any]:
        """Drain the hosts of a node, or undo that; it may be asked for again. Returns how many shards are left on the
        node (`shards`), how many hosts are being started there (`starting`), and why it cannot be (`refused`)."""
        found: dict[str, Any] = self._own.ask(self._drain(node, draining=draining)).result()
        return found

    async def _drain(self, node: str, *, draining: bool) -> dict[str, Any]:
        try:
            for keeper in self._keepers:
                if refused := await keeper.may_drain(node, draining=draining):
                    return {"shards": 0, "starting": 0, "refused": refused}
            left = [await keeper.drain(node, draining=draining) for keeper in self._keepers]
        except StoreError as error:
            raise ray_adapter.RayProblem(f"the store does not answer: {error}") from None
        return {
            "shards": sum(shards for shards, _ in left),
            "starting": sum(starting for _, starting in left),
            "refused": "",
        }

    def pin(self, shard: int, node: str | None) -> dict[str, Any]:
        """Give a shard a host for itself, on that node or ("") on any, or take that back (None). Returns why it cannot
        be (`refused`, one line), and the pin that the shard has in the store now (`pin`)."""
        found: dict[str, Any] = self._own.ask(self._pin(shard, node)).result()
        return found

    async def _pin(self, shard: int, node: str | None) -> dict[str, Any]:
        shards = self._spec.settings["shards"]
        if refused := not_there(shard, shards):
            return {"refused": refused, "pin": None}
        try:
            refused, pin = await self._keepers[stripe_of(shard, len(self._keepers))].pin(shard, node)
        except StoreError as error:
            raise ray_adapter.RayProblem(f"the store does not answer: {error}") from None
        return {"refused": refused, "pin": pin}

    def pending(self) -> dict[str, int] | None:
        """How much the tables hold that goes on with the next start: `commands`, `messages`, `dead_letters`. All there
        is, once every shard was given back. None while a store is not opened yet."""
        found: dict[str, int] | None = self._own.ask(self._pending()).result()
        return found

    async def _pending(self) -> dict[str, int] | None:
        found = [await keeper.pending() for keeper in self._keepers]
        known = [part for part in found if part is not None]
        if len(known) < len(found):
            return None
        commands, messages, letters = map(sum, zip(*known, strict=True))
        return {"commands": commands, "messages": messages, "dead_letters": letters}

    def stop(self) -> None:
        """Make no more hosts, and give no shard to anybody any more; the process is ended by whoever asked."""
        self._own.ask(self._stop()).result()

    async def _stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers))
