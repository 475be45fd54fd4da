"""Delivery on real processes: a host kills itself at each step of the commit path, and its work goes on elsewhere.

Meanwhile a client lets money move by messages, has sequences sent from entity to entity, tells, and sets timers. In the
end all of it took effect exactly once and in order, or the case fails. So does a case in which nobody died where it was
asked for. One cluster serves all cases, each with entities of its own; a case that fails leaves the next one a new
cluster.

The second half leaves out a rule of delivery at a time, and expects the same cases to fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from bank_of_messages import Load, Violation
from failpoint_cluster import FailpointCluster, failpoint_cluster, host_forker
from failpoint_host import STEPS
from luck import Luck
from postgres_databases import PostgresDatabases

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS_OF_STORES = (
    "append of acceptances: before",
    "append of messages: after",
    "checkpoint that ends: before",
    "checkpoint that gives back: after",
    "recovery: sealed",
)
"""One of each kind of call to the store that a death can cut in two."""
on_sqlite = pytest.mark.parametrize("databases", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("databases", ["postgresql"], indirect=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[str]:
    with host_forker() as path:
        yield path


class Clusters:
    """The cluster of all cases, or the next one."""

    def __init__(
        self, host_forker: str, tmp_path_factory: pytest.TempPathFactory, databases: PostgresDatabases | None
    ) -> None:
        """`databases`: where their stores are, if not on SQLite."""
        self.luck = Luck()
        self.loads: list[Load] = []
        """Of the present one."""
        self._forker = host_forker
        self._tmp_path_factory = tmp_path_factory
        self._databases = databases
        self._stack = AsyncExitStack()
        self._cluster: FailpointCluster | None = None

    async def one(self) -> FailpointCluster:
        if self._cluster is None:
            folder = self._tmp_path_factory.mktemp("cluster")
            store = None if self._databases is None else await self._database(self._databases)
            self._cluster = await self._stack.enter_async_context(
                failpoint_cluster(self._forker, folder, self.luck, store=store)
            )
        return self._cluster

    async def _database(self, databases: PostgresDatabases) -> str:
        """The URL of a fresh one. On a thread, since it runs an event loop of its own."""
        made = ExitStack()
        self._stack.push_async_callback(asyncio.to_thread, made.close)
        return databases.server.url(await asyncio.to_thread(made.enter_context, databases.fresh()))

    async def close(self) -> None:
        self.loads.clear()
        self._cluster = None
        await self._stack.aclose()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> PostgresDatabases | None:
    """Where stores are; None for SQLite."""
    if request.param == "sqlite":
        return None
    found: PostgresDatabases = request.getfixturevalue("postgres_databases")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clusters(
    hosts: str, tmp_path_factory: pytest.TempPathFactory, databases: PostgresDatabases | None
) -> AsyncIterator[Clusters]:
    clusters = Clusters(hosts, tmp_path_factory, databases)
    yield clusters
    await clusters.close()


async def deaths(clusters: Clusters, step: str, times: int) -> None:
    clusters.luck.seed(f"{clusters.luck.first_seed}/{step}")  # a case alone is the same case
    print(clusters.luck)  # noqa: T201 - pytest shows it when the test fails
    cluster = await clusters.one()
    try:
        clusters.loads.append(await cluster.deaths_under_load(step, times))
    except BaseException:
        await clusters.close()
        raise


@on_sqlite
@pytest.mark.parametrize("step", STEPS)
async def test_a_host_that_dies_at_any_step_loses_doubles_and_reorders_nothing(clusters: Clusters, step: str) -> None:
    """J15, M05, M06, M07, M10, S08, PR23, PR24, PR28: tells, messages and timers go on at the next owner, once each."""
    await deaths(clusters, step, times=2)


@on_postgresql
@pytest.mark.parametrize("step", STEPS_OF_STORES)
async def test_a_host_that_dies_in_a_call_to_postgresql_loses_doubles_and_reorders_nothing(
    clusters: Clusters, step: str
) -> None:
    """J15, M05, M06, M07, M10, S08, PR23, PR24, PR28: the same on PostgreSQL. (Its other steps are soak tests.)"""
    await deaths(clusters, step, times=2)


async def test_nothing_of_it_happened_again_afterwards(clusters: Clusters) -> None:
    """J15, M06, M10: what ended in an earlier case is as it was, after all the deaths of the later ones."""
    if not clusters.loads:
        pytest.skip("there was no earlier case")
    for load in clusters.loads:
        await load.check()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", STEPS)
async def test_hosts_die_at_each_step_many_times(clusters: Clusters, step: str) -> None:
    """The same ten times for each step, on both stores."""
    await deaths(clusters, step, times=10)


# ---- without a rule the cases fail


async def rounds(cluster: FailpointCluster, step: str) -> None:
    for _ in range(20):  # some may go well
        await cluster.deaths_under_load(step, 2, settle_s=2.0)


soak = pytest.mark.soak


@pytest.mark.parametrize(
    ("mutation", "step", "what"),
    [
        ("admit_what_is_known", "message: its acknowledgement came", "in the accounts|while|heard|doubled"),
        ("answer_before_the_commit", "append of acceptances: before", "lost"),
        ("acknowledge_what_was_not_acknowledged", "message: before it is sent", "lost"),
        pytest.param("accept_past_earlier_commands", "append of acceptances: after", "reordered", marks=soak),
        pytest.param(
            "run_what_is_done", "append of acceptances: after", "in the accounts|while|heard|doubled", marks=soak
        ),
        pytest.param("keep_timers_that_fired", "append of timers: after", "out_of_patience|fired|ticks", marks=soak),
    ],
)
async def test_a_rule_that_is_left_out_is_noticed(
    hosts: str, tmp_path: Path, mutation: str, step: str, what: str
) -> None:
    """PR23, PR24: without knowing what came before, without the commit before the answer, without the acknowledgement
    before a message is forgotten, without the order of acceptances, without the end of what ran: the cases fail."""
    async with failpoint_cluster(hosts, tmp_path, Luck(), mutation) as cluster:
        with pytest.raises(Violation, match=what):
            await rounds(cluster, step)
