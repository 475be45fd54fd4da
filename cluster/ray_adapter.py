"""How Ray is asked: nodes, actors, names. With the Ray actors themselves (ray_actors.py) the only door to Ray.

Every call that reaches Ray's GCS blocks while the GCS is down, so a process that must go on asks with `on_thread`, and
no such call stands on a path that answers commands. What Ray says of nodes and actors is a hint; ownership never rests
on it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import ray
import ray.exceptions
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..actors.errors import AtollError

T = TypeVar("T")

log = logging.getLogger("atoll.ray")

NAMESPACE = "atoll"
GCS_TIMEOUT_S = 5.0
GCS_DIAL_TIMEOUT_S = 3.0
HEAD_RESOURCE = "node:__internal_head__"


class RayProblem(AtollError):
    """Ray cannot do what is asked; the message says what to do."""


class NameTaken(RayProblem):
    """A living Ray actor has this name already."""


class Node(msgspec.Struct, frozen=True):
    """A node as Ray lists it (alive ones only)."""

    id: str
    address: str
    """Its IP address."""
    hostname: str
    head: bool
    resources: Mapping[str, float] = {}
    """All it has, in use or not."""
    labels: Mapping[str, str] = {}


def connect(address: str | None, ship: str | None = None) -> None:
    """Join the Ray cluster at `address` (None: what RAY_ADDRESS names, else the one running on this machine). `ship`: a
    folder that is uploaded and becomes the current one of every Ray actor made from here, and of those that they make.

    Raises `RayProblem` when there is none: Atoll never starts a Ray of its own behind the user's back.
    """
    if ray.is_initialized():
        return
    named = address or os.environ.get("RAY_ADDRESS") or "auto"
    if named != "auto":
        _look_for_gcs(named)
    try:
        ray.init(
            address=named,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            runtime_env={"working_dir": ship} if ship else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _no_cluster(None if named == "auto" else named, reason) from None


def _look_for_gcs(address: str) -> None:
    """Does anything listen there at all? Ray itself would try for 40 seconds, and talk about it on standard error."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        raise RayProblem(f"{address!r} is not the address of a Ray cluster: write host:port, as `ray start` printed it")
    try:
        socket.create_connection((host.strip("[]"), int(port)), GCS_DIAL_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from None


def _no_cluster(address: str | None, reason: str) -> RayProblem:
    where = f"at {address}" if address else "on this machine"
    advice = "start one with `ray start --head`, or name it with RAY_ADDRESS or --address"
    return RayProblem(f"no Ray cluster {where}: {advice} ({reason})")


def disconnect() -> None:
    ray.shutdown()


def nodes() -> list[Node]:
    """The nodes that Ray believes to be alive (it learns of a death up to 15 s later, of a silent cut up to 64 s)."""
    return [
        Node(
            id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            hostname=entry["NodeManagerHostname"],
            head=HEAD_RESOURCE in entry["Resources"],
            resources=entry["Resources"],
            labels=entry["Labels"],
        )
        for entry in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own signature lacks types
        if entry["Alive"]
    ]


def find_node(nodes: Sequence[Node], named: str) -> Node:
    """The one node that is meant by (the beginning of) its Ray ID, its hostname, or its IP address. Raises
    `RayProblem` when there is none, or more than one."""
    found = [node for node in nodes if named in (node.hostname, node.address)]
    found = found or [node for node in nodes if named and node.id.startswith(named.lower())]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{node.id[:12]} ({node.hostname}, {node.address})" for node in found or nodes)
    if found:
        raise RayProblem(f"{named!r} means {len(found)} nodes, name one by its ID: {listed}")
    raise RayProblem(f"no node of this Ray cluster is {named!r}; there are {listed}")


def draining_nodes() -> frozenset[str]:
    """IDs of nodes that Ray is about to lose: a preemption notice, its autoscaler, `ray drain-node`, or (2.60) a
    SIGTERM to `ray start --block`. Ray never takes that back, and ends such a node when nothing of it is used.

    There is no public way to ask (2.60: `ray.nodes()` and the state API say nothing of it). This is what Ray Train
    asks, a dict from ID to deadline since 2.10. Where it is not there any more: none, and a warning.
    """
    try:
        from ray._private.state import state  # noqa: PLC0415 - not Ray's public API: it may be gone

        return frozenset(state.get_draining_nodes())
    except (ImportError, AttributeError, TypeError) as error:
        _cannot_tell(str(error))
        return frozenset()


@functools.cache
def _cannot_tell(reason: str) -> None:
    log.warning("this version of Ray does not tell which nodes it drains; use `atoll drain` (%s)", reason)


def this_node() -> str:
    """The ID of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def names(prefix: str) -> list[str]:
    """Names of living Ray actors of ours that begin with `prefix`."""
    listed = ray.util.list_named_actors(all_namespaces=True)
    return sorted(e["name"] for e in listed if e["namespace"] == NAMESPACE and e["name"].startswith(prefix))


def find(name: str) -> Any | None:
    """The handle of a Ray actor of ours, None when there is none."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def this_runtime_env() -> dict[str, Any]:
    """Where the code of this Ray actor comes from: what Ray actors that it makes will have too."""
    return dict(ray.get_runtime_context().runtime_env)


def was_restarted() -> bool:
    """True when Ray has made this Ray actor anew after its process ended."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def create(
    actor_class: Any,
    name: str,
    *args: Any,
    node: str | None,
    restarts: int,
    concurrency: int = 16,
    runtime_env: Mapping[str, Any] | None = None,
) -> Any:
    """Create a detached Ray actor. `node`: the only node it may run on; None: the head node, because a coordinator
    anywhere else would be missed for as long as Ray needs to notice that its node died. `runtime_env`: None for the
    maker's own. Raises `NameTaken`."""
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": restarts,
        "max_concurrency": concurrency,
    }
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    if node is None:
        options["resources"] = {HEAD_RESOURCE: 0.001}
    else:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    try:
        return actor_class.options(**options).remote(*args)
    except ValueError as error:
        if "already" not in str(error):
            raise
        raise NameTaken(f"there is a Ray actor {name!r} already") from None


def ask(handle: Any, method: str, *args: Any, timeout_s: float = GCS_TIMEOUT_S) -> Any:
    """Call a method of a Ray actor and wait. Raises `RayProblem` when it is dead or does not answer in time."""
    (answer,) = ask_all([handle], method, *args, timeout_s=timeout_s)
    if isinstance(answer, RayProblem):
        raise answer
    return answer


def ask_all(handles: Sequence[Any], method: str, *args: Any, timeout_s: float = GCS_TIMEOUT_S) -> list[Any]:
    """Call a method of several Ray actors at once. In the place of each one that is dead or does not answer in time
    stands a `RayProblem`."""
    asked = [getattr(handle, method).remote(*args) for handle in handles]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    ready = set(answered)
    for late in set(asked) - ready:  # Ray would print its error, when it comes, since nobody has looked at it
        late.future().add_done_callback(lambda done: done.exception())
    return [
        _answer(one) if one in ready else RayProblem(f"no answer to {method!r} within {timeout_s:g} s") for one in asked
    ]


def _answer(asked: Any) -> Any:
    try:
        return ray.get(asked)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, RayProblem):
            return cause
        return RayProblem(_one_line(f"{type(cause).__name__}: {cause}"))
    except ray.exceptions.RayError as error:
        # of an actor whose constructor failed Ray gives the whole traceback: its last line is the reason
        return RayProblem(str(error).strip().splitlines()[-1].strip())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def kill(handle: Any) -> None:
    """End a Ray actor for good."""
    ray.kill(handle, no_restart=True)


def kill_all(prefix: str, *, but: str | None = None) -> int:
    """End every Ray actor of ours whose name begins with `prefix` (and does not contain `but`); return how many there
    were."""
    ended = [name for name in names(prefix) if but is None or but not in name]
    handles = [handle for name in ended if (handle := find(name)) is not None]
    for handle in handles:
        kill(handle)
    return len(handles)


async def on_thread(work: Callable[[], T], timeout_s: float = GCS_TIMEOUT_S) -> T:
    """Ask Ray something beside the loop. Raises `RayProblem` after the time-out, or when Ray fails; the thread is left
    to end by itself, since nothing can interrupt a call into a GCS that is down, and it keeps no process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(settling: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():
            settling(outcome)

    def run() -> None:
        try:
            settled: tuple[Callable[[Any], None], Any] = (done.set_result, work())
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            settled = (done.set_exception, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *settled)

    threading.Thread(target=run, name="atoll-asks-ray", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await done
    except TimeoutError:
        raise RayProblem(f"Ray did not answer within {timeout_s:g} s: is its head node up?") from None
    except ray.exceptions.RayError as error:
        raise RayProblem(_one_line(f"Ray failed: {error}")) from None
