"""Two client processes with a steady load, one inside Ray and one without, and what they saw.

    async with steady_load(target, ...) as load:
        await load.begin("first")
        await load.more(500)
        operations = await load.end()

Times in operations are of the machine's monotonic clock, which all its processes share.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from ledger import Findings, History, Journal, List, Operation, Outcome
from steady_client import Spec

from atoll.cluster.api import Cluster

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 90.0
"""For anything that a client is told: longer than its commands may take."""
LINE_BYTES = 1 << 20
CALLERS = 24
"""Of each client: so many that a host has some, and a few when it has just joined."""


LOOK_S = 0.02
TELLS_TIMEOUT_S = 30.0
"""Until every tell that was accepted must have run."""


class ClientFailed(RuntimeError):
    """A client process ended or answered with an error; the text holds what it said."""


class SteadyClient:
    """One client process."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process = process
        self._errors = errors
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {0: asyncio.get_running_loop().create_future()}
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls, spec: Spec, environment: Mapping[str, str], folder: Path, within: Sequence[str] = ()
    ) -> SteadyClient:
        """`within`: a command that runs the process, with the process as its arguments."""
        errors = folder / f"client-{spec.name}.log"
        with errors.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *within, sys.executable, str(HERE / "steady_client.py"), msgspec.json.encode(spec).decode(),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                limit=LINE_BYTES,
            )  # fmt: skip
        client = cls(process, errors)
        try:
            await client._answer(0)
        except BaseException:
            await client.stop()
            raise
        return client

    async def tell(self, **command: Any) -> dict[str, Any]:
        """Let it do something; returns its answer when that is done."""
        number = next(self._ids)
        self._asked[number] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
        return await self._answer(number)

    async def owners(self) -> list[int | None]:
        """Who owns each shard, as it knows."""
        owners: list[int | None] = (await self.tell(table=True))["owners"]
        return owners

    async def _answer(self, number: int) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await self._asked[number]
        del self._asked[number]
        if "error" in answer:
            raise ClientFailed(f"{answer['error']}\n{self._said()}")
        return answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            asked = self._asked.get(answer["id"])
            if asked is not None and not asked.done():
                asked.set_result(answer)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ClientFailed(f"the client process ended\n{self._said()}"))

    def _said(self) -> str:
        return "\n".join(self._errors.read_text(errors="replace").splitlines()[-20:])

    async def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading


class SteadyLoad:
    def __init__(self, inside: SteadyClient, outside: SteadyClient, folder: Path) -> None:
        self.inside = inside
        """A driver of the Ray cluster, which finds the app by its name, and can ask its coordinator."""
        self.outside = outside
        """Over TCP; it knows nothing of Ray."""
        self._folder = folder
        self._round = ""

    async def begin(self, round: str) -> None:
        """Every round has entities of its own."""
        self._round = round
        await self._both(begin=round)

    async def more(self, answers: int) -> None:
        """Return once each client had so many more answers."""
        await self._both(more=answers)

    async def end(self) -> list[Operation]:
        files = [self._folder / f"{self._round}-{name}.json" for name in ("inside", "outside")]
        await asyncio.gather(self.inside.tell(end=str(files[0])), self.outside.tell(end=str(files[1])))
        operations: list[Operation] = []
        for file in files:
            operations += msgspec.json.decode(file.read_bytes(), type=list[Operation])
            file.unlink()
        return operations

    async def _both(self, **command: Any) -> None:
        await asyncio.gather(self.inside.tell(**command), self.outside.tell(**command))


@contextlib.asynccontextmanager
async def steady_load(
    app_name: str,
    url: str,
    token_file: str,
    *,
    ray_address: str,
    folder: Path,
    seed: int,
    shards: int,
    callers: int = CALLERS,
    pause_s: float = 0.03,
    timeout_s: float = 60.0,
) -> AsyncIterator[SteadyLoad]:
    """Both clients, connected. Each has `callers` callers, in as many shards, the same ones."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "RAY_"))}
    common: dict[str, Any] = {"shards": shards, "callers": callers, "pause_s": pause_s, "timeout_s": timeout_s}
    inner = Spec(name="R", target=app_name, seed=seed, **common)
    outer = Spec(name="T", target=url, token_file=token_file, seed=seed, **common)
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for spec, more in ((inner, {"RAY_ADDRESS": ray_address}), (outer, {})):
            client = await SteadyClient.start(spec, {**environment, **more}, folder)
            stack.push_async_callback(client.stop)
            clients.append(client)
        yield SteadyLoad(clients[0], clients[1], folder)


def loaded_shards(shards: int, callers: int = CALLERS) -> frozenset[int]:
    """Those that have a steady caller."""
    return frozenset(number * shards // callers for number in range(callers))


def failures(operations: Iterable[Operation]) -> list[str]:
    """What callers were told instead of an answer."""
    return [f"{o.verb} {o.entity}: {o.error}" for o in operations if o.outcome is not Outcome.DONE]


def longest_gap_s(operations: Iterable[Operation], shards: frozenset[int], began: float, over: float) -> float:
    """The longest time between two answers, at least partly within the times given, that one steady caller of one of
    these shards saw. 0 when none of them has a caller."""
    answers: dict[tuple[str, int], list[float]] = defaultdict(list)
    for operation in operations:
        if operation.shard in shards and operation.outcome is Outcome.DONE:
            answers[operation.client, operation.caller].append(operation.ended)
    longest = 0.0
    for times in answers.values():
        times.sort()
        for earlier, later in itertools.pairwise([*times, time.monotonic()] if times[-1] < over else times):
            if later > began and earlier < over:
                longest = max(longest, later - earlier)
    return longest


async def findings_of(operations: Iterable[Operation], cluster: Cluster) -> Findings:
    """Compare all that clients did with what the entities hold, once the tells have run."""
    operations = list(operations)
    history = History.of(operations)
    kinds: dict[str, type[List | Journal]] = {"List": List, "Journal": Journal}
    final: dict[str, list[str]] = {}
    for name in sorted({operation.entity for operation in operations}):
        kind, _, id = name.partition("/")
        expected = {token for token, entity in history.accepted.items() if entity == name}
        deadline = time.monotonic() + TELLS_TIMEOUT_S
        while True:
            final[name] = await cluster.entity(kinds[kind], id).read.using(timeout=TIMEOUT_S)()
            if expected <= set(final[name]) or time.monotonic() > deadline:
                break
            await asyncio.sleep(LOOK_S)
    return history.findings(final)
