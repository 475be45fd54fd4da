"""Callers whose time-outs are shorter than an outage of the PostgreSQL server: what they hear, and when."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from ledger import List, Operation, Outcome
from luck import Luck
from plain_cluster import plain_cluster
from postgres_databases import PostgresDatabases
from steady_client import Spec
from steady_load import SteadyClient, findings_of

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
CALLERS = 24
TIMEOUT_S = 1.0
LATE_S = 3.0
"""On a busy machine."""
HEARD = 2 * CALLERS
"""Answers during the outage, errors included: it lasts for two time-outs."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_impatient_callers_hear_in_time_and_nothing_acknowledged_is_lost(
    postgres_databases: PostgresDatabases,
    postgres_url: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    how: str,
) -> None:
    """R01: with its deadline each is told that its command did not run, or that it may have; when the server is back
    everybody is answered. What was acknowledged is there, once and in order, and what surely did not run is not. Hosts
    do not fill their logs with it."""
    server = postgres_databases.server
    down, up = (server.kill, server.restart) if how == "killed" else (server.suspend, server.resume)

    async def outage() -> list[Operation]:
        spec = Spec(
            name="I",
            target="",
            shards=256,
            callers=CALLERS,
            pause_s=0.02,
            timeout_s=TIMEOUT_S,
            seed=Luck().first_seed,
        )
        async with plain_cluster(
            "ledger:app", "ledger", tmp_path, app_dir=HELPERS, hosts=2, store=postgres_url
        ) as cluster:
            async with cluster.connect():
                pass  # every shard is served
            spec = msgspec.structs.replace(
                spec, target=f"tcp://{','.join(cluster.addresses)}", token_file=str(cluster.token_file)
            )
            client = await SteadyClient.start(spec, os.environ, tmp_path)
            try:
                await client.tell(begin="r")
                await client.tell(more=HEARD)
                await asyncio.to_thread(down)
                try:
                    await client.tell(more=HEARD)
                finally:
                    await asyncio.to_thread(up)
                async with cluster.connect() as other:  # one host may be back before the other, and answer all of those
                    back = [other.entity(List, f"back {n}").append.using(timeout=60) for n in range(64)]
                    await asyncio.gather(*(append("here") for append in back))
                await client.tell(more=4 * HEARD)
                file = tmp_path / "operations.json"
                await client.tell(end=str(file))
            finally:
                await client.stop()
            operations = msgspec.json.decode(file.read_bytes(), type=list[Operation])
            async with cluster.connect() as reader:
                assert (await findings_of(operations, reader)).all() == []
        return operations

    operations = asyncio.run(outage())
    assert max(operation.ended - operation.began for operation in operations) < TIMEOUT_S + LATE_S
    heard = Counter(operation.error.partition(":")[0] for operation in operations if operation.error)
    print(heard)  # noqa: T201 - pytest shows it when the test fails
    assert heard["OutcomeUnknown"] > 0
    assert heard.keys() <= {"OutcomeUnknown", "Unavailable", "DeadlineExceeded", "Overloaded"}
    newest = {operation.caller: operation.outcome for operation in sorted(operations, key=lambda each: each.ended)}
    assert set(newest.values()) == {Outcome.DONE}
    said = capfd.readouterr().err
    assert said.count("the store does not answer") <= 6, said
