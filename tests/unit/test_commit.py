"""Group commit alone, over a store that the test answers for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atoll.actors.errors import Fenced, StoreUnavailable
from atoll.actors.settings import Settings
from atoll.actors.stored import StoredState
from atoll.cluster.system import SystemWorld
from atoll.persistence.records import Record, decode_batch
from atoll.sharding.commit import CommitPath


class Log:
    """The store's log: each append waits for the test to say how it ends."""

    def __init__(self) -> None:
        self.appends: list[tuple[int, list[int], asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    async def append(self, incarnation: int, n: int, content: bytes) -> None:
        positions = [record.position for record in decode_batch(content, incarnation, n)]
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.appends.append((n, positions, outcome))
        self._changed.set()
        await outcome

    async def begun(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.appends) < count:
                self._changed.clear()
                await self._changed.wait()

    def succeed(self) -> None:
        self.appends[-1][2].set_result(None)


class Fixture:
    def __init__(self, **settings: Any) -> None:
        self.log = Log()
        self.story: list[Any] = []
        log: Any = self.log
        self.commits = CommitPath(log, 1, Settings(**settings), SystemWorld(), self._committed)
        self.running = asyncio.ensure_future(self.commits.run())
        self._position = 0

    def _committed(self, n: int, records: list[Record], *_: Any) -> None:
        self.story.append((n, [record.position for record in records]))

    async def settled(self, ticket: int) -> None:
        """Wait for a commit, or raise what ended the path."""
        waiting = asyncio.ensure_future(self.commits.settled(ticket))
        await asyncio.wait([waiting, self.running], timeout=10, return_when=asyncio.FIRST_COMPLETED)
        if self.running.done():
            self.running.result()
        assert waiting.done()

    def stage(self, state: bytes = b"") -> int:
        self._position += 1
        ticket = self.commits.stage(Record(0, self._position, state=StoredState(1, state)))
        self.commits.when_committed(ticket, lambda: self.story.append(f"answer {ticket}"))
        return ticket


async def test_a_batch_fills_while_one_is_in_flight() -> None:
    """PR03: one append at a time; what was staged meanwhile goes together; answers leave after their own row, in order."""
    f = Fixture()
    f.stage()
    await f.log.begun(1)
    for _ in range(3):
        f.stage()
    f.log.succeed()
    await f.log.begun(2)
    f.log.succeed()
    await f.settled(4)
    assert [(n, positions) for n, positions, _ in f.log.appends] == [(1, [1]), (2, [2, 3, 4])]
    assert f.story == [(1, [1]), "answer 1", (2, [2, 3, 4]), "answer 2", "answer 3", "answer 4"]
    assert (f.commits.staged, f.commits.committed, f.commits.n) == (4, 4, 2)
    f.running.cancel()


async def test_an_unknown_outcome_is_repeated_with_the_same_row() -> None:
    """PR03: also when more has been staged in between."""
    f = Fixture()
    f.stage()
    for attempt in range(1, 4):
        await f.log.begun(attempt)
        f.stage()
        f.log.appends[-1][2].set_exception(StoreUnavailable("gone"))
    await f.log.begun(4)
    assert [(n, positions) for n, positions, _ in f.log.appends] == [(1, [1])] * 4
    assert f.story == []
    f.running.cancel()


async def test_fenced_ends_it_without_an_answer() -> None:
    """PR01: nothing that was staged is ever confirmed."""
    f = Fixture()
    f.stage()
    await f.log.begun(1)
    f.stage()
    f.log.appends[-1][2].set_exception(Fenced("sealed"))
    with pytest.raises(Fenced):
        await f.running
    assert f.story == []


async def test_batches_are_capped_in_count_and_bytes() -> None:
    """Larger ones only delay everybody in them; one record that is larger than the cap goes alone."""
    f = Fixture(batch_commands_max=3, batch_bytes_max=10_000)
    for size in (1, 1, 1, 1, 20_000, 6_000, 6_000, 1):
        f.stage(b"x" * size)
    for count in range(1, 6):
        await f.log.begun(count)
        f.log.succeed()
    await f.settled(8)
    assert [positions for _, positions, _ in f.log.appends] == [[1, 2, 3], [4], [5], [6], [7, 8]]
    f.running.cancel()


async def test_a_held_path_begins_no_append() -> None:
    """PR08: the tables are too far behind: the one in flight ends, the next waits for room."""
    f = Fixture()
    f.stage()
    await f.log.begun(1)
    f.commits.hold()
    f.stage()
    f.log.succeed()
    await f.settled(1)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(f.log.appends) == 1
    f.commits.resume()
    await f.log.begun(2)
    f.running.cancel()


async def test_what_is_committed_already_is_acted_on_at_once() -> None:
    f = Fixture()
    f.stage()
    await f.log.begun(1)
    f.log.succeed()
    await f.settled(1)
    seen: list[int] = []
    f.commits.when_committed(1, lambda: seen.append(1))
    assert seen == [1]
    await f.settled(0)
    f.running.cancel()
