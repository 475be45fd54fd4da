"""A client process with a steady load: callers that each do one thing after the other, to entities of one shard each.

    python steady_client.py '{"name": "T", "target": "tcp://...", "token_file": "...", "shards": 256, "callers": 24, ...}'

A driver process tells it what to do by lines of JSON on standard input, and it answers by such lines: `{"id": 1,
"begin": "name of the round"}` · `{"id": 2, "more": 500}` answered after so many more answers · `{"id": 3, "end":
"FILE"}` when nothing is under way any more and all operations stand in the file · `{"id": 4, "drain": "NODE"}`, and
`"undrain"`, which only a client inside Ray can do · `{"id": 5, "table": true}` answered with the `owners` of all shards
as it knows them. At the end of its input it ends.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from ledger import Journal, List, Operation, Outcome, Verb

import atoll
from atoll.cluster.api import Cluster
from atoll.sharding.hashing import shard_of

APPENDS_PER_ENTITY = 100
"""Of one caller; then it goes on with another entity of its shard, so that reads and states stay small."""
TELLS, READS = 0.25, 0.12
"""Parts of all that is sent; the others are asks."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    target: str
    """Of `atoll.connect`."""
    token_file: str | None = None
    shards: int
    """In all."""
    callers: int
    pause_s: float
    """Of each caller between an answer and what it sends next."""
    timeout_s: float
    """Of each command: longer than any fault, so that an error is a failure and no impatience."""
    seed: int


def entity_in(shard: int, shards: int, begin: str) -> str:
    """The first ID that begins so and lies in that shard: the same in every client."""
    return next(id for n in itertools.count() if shard_of(id := f"{begin}.{n}", shards) == shard)


class Callers:
    """The load of one round."""

    def __init__(self, cluster: Cluster, spec: Spec, round: str) -> None:
        self.operations: list[Operation] = []
        self.answers = 0
        self.news = asyncio.Event()
        self._cluster = cluster
        self._spec = spec
        self._round = round
        self._ending = False
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(spec.callers)]

    async def end(self) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        spec = self._spec
        luck = random.Random(f"{spec.seed}/{self._round}/{spec.name}/{number}")
        shard = number * spec.shards // spec.callers
        kind = List if number % 2 else Journal
        await asyncio.sleep(luck.uniform(0, spec.pause_s))  # not all of them in step
        for entity in itertools.count():
            id = entity_in(shard, spec.shards, f"{self._round}.{number}.{entity}")
            for append in range(APPENDS_PER_ENTITY):
                if self._ending:
                    return
                draw = luck.random()
                verb = Verb.READ if draw < READS else Verb.TELL if draw < READS + TELLS else Verb.ASK
                token = f"{spec.name}{number}.{entity}.{append}"
                self.operations.append(await self._operation(number, shard, kind, id, verb, token))
                self.answers += 1
                self.news.set()
                await asyncio.sleep(spec.pause_s)

    async def _operation(
        self, number: int, shard: int, kind: type[List | Journal], id: str, verb: Verb, token: str
    ) -> Operation:
        ref = self._cluster.entity(kind, id)
        index, items, error, timeout = -1, list[str](), "", self._spec.timeout_s
        outcome = Outcome.DONE
        began = time.monotonic()
        try:
            if verb is Verb.READ:
                items = await ref.read.using(timeout=timeout)()
            elif verb is Verb.TELL:
                await ref.append.using(timeout=timeout).tell(token)
            else:
                index = await ref.append.using(timeout=timeout)(token)
        except (atoll.Rejected, atoll.HandlerFailed, atoll.NotExecuted) as failure:
            outcome, error = Outcome.REFUSED, f"{type(failure).__name__}: {failure}"
        except atoll.OutcomeUnknown as failure:
            outcome, error = Outcome.UNKNOWN, f"{type(failure).__name__}: {failure}"
        return Operation(
            client=self._spec.name,
            caller=number,
            shard=shard,
            entity=f"{kind.__name__}/{id}",
            verb=verb,
            token=token,
            began=began,
            ended=time.monotonic(),
            outcome=outcome,
            index=index,
            items=items,
            error=error,
        )


class Client:
    """Does what it is told."""

    def __init__(self, cluster: Cluster, spec: Spec) -> None:
        self._cluster = cluster
        self._spec = spec
        self._callers: Callers | None = None

    async def do(self, told: dict[str, Any]) -> dict[str, Any]:
        if "begin" in told:
            await self._cluster.client.table_complete()
            self._callers = Callers(self._cluster, self._spec, told["begin"])
        elif "more" in told:
            await self._more(told["more"])
        elif "end" in told:
            assert self._callers is not None
            callers, self._callers = self._callers, None
            await callers.end()
            await asyncio.to_thread(Path(told["end"]).write_bytes, msgspec.json.encode(callers.operations))
        elif "table" in told:
            routes = [self._cluster.client.route(shard) for shard in range(self._spec.shards)]
            return {"id": told["id"], "owners": [None if route is None else route.incarnation for route in routes]}
        else:
            await asyncio.to_thread(_drain, self._cluster.app_name, told)
        return {"id": told["id"]}

    async def _more(self, count: int) -> None:
        callers = self._callers
        assert callers is not None
        wanted = callers.answers + count
        while callers.answers < wanted:
            callers.news.clear()
            await callers.news.wait()


def _drain(app_name: str, told: dict[str, Any]) -> None:
    """Ask the coordinator until nothing is left on the node (or the drain is undone); again and again, as `atoll drain`
    does, since it may be a new one that has not heard of it."""
    from atoll.cluster import ray_adapter, ray_status

    draining = "drain" in told
    while True:
        try:
            handle = ray_status.coordinator(app_name)
            if handle is not None:
                answer = ray_adapter.ask(handle, "drain", told["drain" if draining else "undrain"], draining)
                if not draining or answer["shards"] + answer["starting"] == 0:
                    return
        except ray_adapter.RayProblem as problem:
            print(f"still asked for: {told}: {problem}", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(0.05)  # asked again, until it is so or the driver process gives up


async def main(spec: Spec) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), os.fdopen(os.dup(0), "rb"))
    async with atoll.connect(spec.target, token_file=spec.token_file, timeout=30.0) as cluster:
        client = Client(cluster, spec)
        _say({"id": 0})
        doing: set[asyncio.Task[None]] = set()

        async def do(line: bytes) -> None:
            command = json.loads(line)
            try:
                _say(await client.do(command))
            except Exception as error:  # noqa: BLE001 - the driver process is told, whatever it is
                _say({"id": command["id"], "error": f"{type(error).__name__}: {error}"})

        while line := await told.readline():
            task = asyncio.create_task(do(line))
            doing.add(task)
            task.add_done_callback(doing.discard)
    os._exit(0)  # what it has not answered nobody waits for, and no thread that asks Ray may hold it


def _say(answer: dict[str, Any]) -> None:
    os.write(_OUT, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    _OUT = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints is not taken for an answer
    uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Spec)))
