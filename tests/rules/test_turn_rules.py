"""Whose turn it is at a busy host: between clients, priorities and kinds, on virtual time with handlers that take some."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from scenario import Scenario, play, until

import atoll
from atoll.actors.calls import Priority, Status

RAN: list[str] = []
"""What ran, in order, on all hosts together."""


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


class Desk(atoll.Entity):
    done: int = 0

    @atoll.command
    def do(self, item: str) -> int:
        RAN.append(item)
        self.done += 1
        return self.done

    @atoll.command
    async def ask(self, other: str, item: str) -> int:
        return await self.context.entity(Desk, other).do(item)


class Outside(atoll.Entity, turns_max=2):
    """Calls something slow."""

    running: ClassVar[int] = 0
    most: ClassVar[int] = 0
    done: int = 0

    @atoll.command
    async def call(self, seconds: float = 1.0) -> int:
        Outside.running += 1
        Outside.most = max(Outside.most, Outside.running)
        await asyncio.sleep(seconds)
        Outside.running -= 1
        self.done += 1
        return self.done

    @atoll.command
    async def pass_on(self, other: str) -> int:
        return await self.context.entity(Outside, other).call(0.0)


def test_a_noisy_client_does_not_stand_in_front_of_the_others() -> None:
    """M14: its thousand entities are ready first; another client's one is next but one."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        noisy, quiet = s.raw_client(7, host, kind=Desk), s.raw_client(8, host, kind=Desk)
        ids = [f"noisy {n}" for n in range(1000)]
        for number, id in enumerate(ids, 1):
            await noisy.ask(number, "do", id=id, item="warm")
        await quiet.ask(1, "do", id="quiet", item="warm")
        RAN.clear()
        for number, id in enumerate(ids, 1001):
            noisy.call(number, "do", id=id, floor=1001, item="noisy")
        quiet.call(2, "do", id="quiet", item="quiet")
        await until(lambda: len(RAN) == 1001)
        assert RAN.index("quiet") <= 1

    play(script, Desk)


def test_interactive_commands_run_before_the_others_which_do_not_starve() -> None:
    """M14: of each 21 turns 16 are for interactive, 4 for normal, 1 for background commands."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host, kind=Desk)
        lanes = [Priority.BACKGROUND, Priority.NORMAL, Priority.INTERACTIVE]
        for number in range(1, 301):
            await c.ask(number, "do", id=f"e{number}", item="warm")
        RAN.clear()
        for number in range(301, 601):
            priority = lanes[(number - 1) // 100 % 3]
            c.call(number, "do", id=f"e{number - 300}", floor=301, item=priority.name, priority=priority)
        await until(lambda: len(RAN) == 300)
        first = RAN[:105]
        shares = {lane: first.count(lane.name) for lane in lanes}
        assert abs(shares[Priority.INTERACTIVE] - 80) <= 2
        assert abs(shares[Priority.NORMAL] - 20) <= 2
        assert abs(shares[Priority.BACKGROUND] - 5) <= 1

    play(script, Desk)


def test_a_command_lends_its_priority_to_those_before_it_in_its_mailbox() -> None:
    """M01: order within an entity stays; its whole mailbox moves up instead."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host, kind=Desk)
        for number in range(1, 101):
            await c.ask(number, "do", id=f"e{number}", item="warm")
        RAN.clear()
        for number in range(101, 201):
            c.call(number, "do", id=f"e{number - 100}", floor=101, item=f"{number}", priority=Priority.BACKGROUND)
        c.call(201, "do", id="e100", floor=101, prev=200, item="urgent", priority=Priority.INTERACTIVE)
        await until(lambda: len(RAN) == 101)
        assert RAN[:2] == ["200", "urgent"]

    play(script, Desk)


def test_what_a_handler_asks_has_the_priority_of_its_command() -> None:
    async def script(s: Scenario) -> None:
        host = await s.host(0)
        cluster = await s.client("X")
        heard: list[tuple[str, int]] = []
        take_in = host._intake._call

        def note(peer: object, client: int, call: object, now: float) -> None:
            heard.append((call.method, call.priority))  # type: ignore[attr-defined] # a Call
            take_in(peer, client, call, now)  # type: ignore[arg-type] # as it came

        host._intake._call = note  # type: ignore[method-assign] # a listener in the script
        desk = cluster.entity(Desk, "a")
        await desk.ask.using(priority="interactive")("b", "x")
        await desk.ask("b", "x")
        assert heard == [("ask", 1), ("do", 1), ("ask", 0), ("do", 0)]
        with pytest.raises(atoll.InvalidCommand, match="normal, interactive, background, not 'urgent'"):
            desk.do.using(priority="urgent")  # type: ignore[arg-type] # what is tested

    play(script, Desk)


def test_an_unknown_priority_counts_as_normal() -> None:
    """R03: whoever sends it."""

    async def script(s: Scenario) -> None:
        host = await s.host(0)
        c = s.raw_client(7, host, kind=Desk)
        assert await c.ask(1, "do", item="x", priority=77) == 1

    play(script, Desk)


def test_a_kind_with_a_limit_has_no_more_turns_at_once_and_all_of_it_run() -> None:
    """M14: its slow calls outside leave the host to the other kinds."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("X")
        Outside.running = Outside.most = 0
        slow = [asyncio.ensure_future(cluster.entity(Outside, f"o{n % 5}").call.using(timeout=60)()) for n in range(20)]
        await until(lambda: Outside.running == 2)
        for n in range(10):
            assert await cluster.entity(Desk, f"d{n}").do("x") == 1
        began = asyncio.get_running_loop().time()
        assert sorted(await asyncio.gather(*slow)) == sorted([1, 2, 3, 4] * 5)
        assert 9 < asyncio.get_running_loop().time() - began < 10.5
        assert Outside.most == 2

    play(script, Desk, Outside)


def test_entities_of_a_limited_kind_that_ask_each_other_do_not_wait_for_their_own_places() -> None:
    """M11: who waits has a place, and whom it waits for gets one beyond the limit."""

    async def script(s: Scenario) -> None:
        await s.host(0)
        cluster = await s.client("X")
        asks = [cluster.entity(Outside, f"a{n}").pass_on.using(timeout=5)(f"b{n}") for n in range(6)]
        assert await asyncio.gather(*asks) == [1] * 6

    play(script, Outside)


@pytest.mark.parametrize("wrong", [0, -1, True, "2"])
def test_a_limit_is_a_number_of_turns(wrong: object) -> None:
    with pytest.raises(ValueError, match="turns_max"):
        type("Wrong", (atoll.Entity,), {}, turns_max=wrong)


def test_a_long_row_of_turns_of_one_entity_is_cut_by_time() -> None:
    """M14: a hot entity whose plain handlers take a millisecond each gives way after a few of them."""

    class Hot(atoll.Entity):
        @atoll.command
        def work(self, item: str) -> None:
            RAN.append(item)
            clock.sleep(0.001)

    async def script(s: Scenario) -> None:
        nonlocal clock
        host = await s.host(0)
        hot, other = s.raw_client(7, host, kind=Hot), s.raw_client(8, host, kind=Hot)
        clock = Clock(host._performer)
        await hot.ask(1, "work", id="hot", item="warm")
        await other.ask(1, "work", id="other", item="warm")
        RAN.clear()
        for number in range(2, 62):
            hot.call(number, "work", id="hot", prev=number - 1 if number > 2 else 0, item="hot")
        other.call(2, "work", id="other", item="other")
        assert (await other.answer(2))[0] is Status.OK
        assert RAN.index("other") <= 7

    clock: Clock
    play(script, Hot)


class Clock:
    """The performer's own time, which handlers use up: virtual time stands still while one runs."""

    def __init__(self, performer: object) -> None:
        self._world = performer._world  # type: ignore[attr-defined] # a performer
        self._spent = 0.0
        performer._world = self  # type: ignore[attr-defined] # for this script

    def monotonic(self) -> float:
        return self._world.monotonic() + self._spent  # type: ignore[no-any-return] # of a World

    def __getattr__(self, name: str) -> object:
        return getattr(self._world, name)

    def sleep(self, seconds: float) -> None:
        self._spent += seconds


def test_a_host_names_its_hottest_entities_and_shards() -> None:
    """S11: by the time that their turns take; later it names others."""

    class Hot(atoll.Entity):
        @atoll.command
        def work(self) -> None:
            clock.sleep(0.001)

        @atoll.command
        async def work_slowly(self) -> None:
            clock.sleep(0.01)

    async def script(s: Scenario) -> None:
        nonlocal clock
        host = await s.host(0, 1)
        cluster = await s.client("X")
        clock = Clock(host._performer)
        for id, times in (("a", 600), ("b", 200), ("c", 20)):
            await asyncio.gather(*(cluster.entity(Hot, id).work() for _ in range(times)))
        await asyncio.sleep(s.settings.load_report_s)
        hot = host.hot()
        assert [id for _, id, _ in hot.entities[:2]] == ["a", "b"]
        assert {shard for shard, _ in hot.shards} <= {0, 1}
        for _ in range(8):
            await asyncio.gather(*(cluster.entity(Hot, "d").work_slowly() for _ in range(100)))
            await asyncio.sleep(s.settings.load_report_s)
        assert host.hot().entities[0][:2] == ("Hot", "d")

    clock: Clock
    play(script, Hot, shards=2)
