"""Ten thousand senders want the same entity, and it is slow."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from ledger import List
from plain_cluster import plain_cluster
from pressure import Heard, Memory

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
CLIENTS = 4
SENDERS = 10_000
LATE_S = 1.0
"""How much later than its deadline a sender may hear, in this process's own time."""
HANGS_S = 50.0
GROWN_MIB_MAX = 16
"""Of the host: a full mailbox of 1,000 commands of about 1 KB, and the connections' buffers. The other 9,000 wait at
their clients."""
SOON_S = 1.5
"""Before the deadline of any who wait for the slow one."""


async def run(folder: Path, work_s: float, deadline_s: float) -> None:
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            plain_cluster("ledger:app", "ledger", folder, app_dir=HELPERS, settings={"mailbox_commands_max": 1000})
        )
        clients = [await stack.enter_async_context(cluster.connect()) for _ in range(CLIENTS)]
        heard, others, fates = Heard(), Heard(), dict[str, str]()

        async def send(client: int, number: int) -> None:
            ref, token = clients[client].entity(List, "one"), f"{client}.{number}"
            fates[token] = await heard.of(ref.append_slowly.using(timeout=deadline_s)(token, work_s))

        await clients[0].entity(List, "one").read()
        await clients[0].entity(List, "other").read()
        began = time.monotonic()
        async with (
            Memory.of(cluster.hosts[0].process.pid) as memory,
            asyncio.timeout(HANGS_S),
            asyncio.TaskGroup() as senders,
        ):
            for number in range(SENDERS // CLIENTS):
                for client in range(CLIENTS):
                    senders.create_task(send(client, number))
            await asyncio.sleep(deadline_s / 2)
            for other in clients:
                await others.of(other.entity(List, "other").append.using(timeout=HANGS_S)("x"))
        took_s = time.monotonic() - began
        items = await clients[0].entity(List, "one").read.using(timeout=work_s + SOON_S)()
        assert await clients[0].entity(List, "one").append("the next") == len(items)
    print(f"{took_s:.2f} s; {heard}; {memory.grown:.1f} MiB more")  # noqa: T201
    assert len(fates) == heard.all == SENDERS
    assert heard.slowest_s < deadline_s + LATE_S
    assert not others.errors
    assert others.slowest_s < SOON_S, "others noticed"
    assert 1 <= heard.answers <= deadline_s / work_s + 1
    assert {token for token, fate in fates.items() if not fate} <= set(items)
    assert all(fates[token] in ("", "OutcomeUnknown") for token in items), "one that surely did not run, ran"
    assert len(set(items)) == len(items)
    for client in range(CLIENTS):
        numbers = [int(token.split(".")[1]) for token in items if token.startswith(f"{client}.")]
        assert numbers == sorted(numbers), "not in the order in which they were sent"
    assert memory.grown < GROWN_MIB_MAX


@pytest.mark.timeout(60)
async def test_10000_senders_on_one_entity_that_takes_a_fifth_of_a_second(tmp_path: Path) -> None:
    """M14, M12, M01, R05: some are answered, the others are told by their deadline that it did not run or may have;
    those that ran did so once and in the order sent; memory is bounded, others do not notice, and all is well after."""
    await run(tmp_path, 0.2, 2.0)


@pytest.mark.soak
@pytest.mark.timeout(60)
async def test_10000_senders_on_one_entity_that_takes_a_second(tmp_path: Path) -> None:
    """M14, M12, M01, R05: the same with a handler of a second, and five seconds' patience."""
    await run(tmp_path, 1.0, 5.0)
