"""How Ray is asked: nodes, actors, names. With the Ray actors themselves (ray_actors.py) the only door to Ray.

Every call that reaches Ray's GCS blocks while the GCS is down, so each one runs on a thread with a time-out, and none
stands on a path that must answer commands. What Ray says of nodes and actors is a hint; ownership never rests on it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import ray
import ray.exceptions
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..actors.errors import AtollError

T = TypeVar("T")

NAMESPACE = "atoll"
GCS_TIMEOUT_S = 5.0
HEAD_RESOURCE = "node:__internal_head__"


class RayProblem(AtollError):
    """Ray cannot do what is asked; the message says what to do."""


class Node(msgspec.Struct, frozen=True):
    """A node as Ray lists it (alive ones only)."""

    id: str
    address: str
    """Its IP address."""
    hostname: str
    head: bool


def connect(address: str | None, ship: str | None = None) -> None:
    """Join the Ray cluster at `address` (None: what RAY_ADDRESS names, else the one running on this machine). `ship`: a
    folder that is uploaded and becomes the current one of every Ray actor made from here, and of those that they make.

    Raises `RayProblem` when there is none: Atoll never starts a Ray of its own behind the user's back.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(
            address=address or "auto",
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            runtime_env={"working_dir": ship} if ship else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {address}" if address else "on this machine"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RayProblem(
            f"no Ray cluster {where}: start one with `ray start --head`, or name it with --address ({reason})"
        ) from None


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
        )
        for entry in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own signature lacks types
        if entry["Alive"]
    ]


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


def create(actor_class: Any, name: str, *args: Any, node: str | None, restarts: int, concurrency: int = 16) -> Any:
    """Create a detached Ray actor. `node`: the only node it may run on; None: the head node, because a coordinator
    anywhere else would be missed for as long as Ray needs to notice that its node died."""
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": restarts,
        "max_concurrency": concurrency,
    }
    if node is None:
        options["resources"] = {HEAD_RESOURCE: 0.001}
    else:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return actor_class.options(**options).remote(*args)


def ask(handle: Any, method: str, *args: Any, timeout_s: float = GCS_TIMEOUT_S) -> Any:
    """Call a method of a Ray actor and wait. Raises `RayProblem` when it is dead or does not answer in time."""
    try:
        return ray.get(getattr(handle, method).remote(*args), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise RayProblem(f"{method}: no answer within {timeout_s:g} s") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise RayProblem(f"{method}: {type(cause).__name__}: {cause}") from None
    except ray.exceptions.RayError as error:
        # of an actor whose constructor failed Ray gives the whole traceback: its last line is the reason
        raise RayProblem(f"{method}: {str(error).strip().splitlines()[-1]}") from None


def kill(handle: Any) -> None:
    """End a Ray actor for good."""
    ray.kill(handle, no_restart=True)


async def on_thread(work: Callable[[], T], timeout_s: float = GCS_TIMEOUT_S) -> T:
    """Run a blocking question to Ray beside the loop. Raises `RayProblem` after the time-out; the thread is left to
    end by itself, since nothing can interrupt a call into a GCS that is down."""
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise RayProblem(f"Ray did not answer within {timeout_s:g} s: is its head node up?") from None
