"""The courier on virtual time, against receivers that remember what they took over and check every call."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from receivers import Post
from scenario import until
from simulator.simulation import Simulation

from atoll.actors.calls import Status
from atoll.cluster.courier import WARNING_S, HostCourier
from atoll.persistence.records import outbox_number

SMALL = {"shards": 4, "stream_window": 8, "window_commands": 20, "mailbox_commands_max": 6}


def play(story: Callable[[Post], Awaitable[None]], seed: int | str = 0, **settings: Any) -> None:
    with Simulation(seed) as simulation:
        simulation.run(story(Post(simulation, **{**SMALL, **settings})))  # type: ignore[arg-type] # a coroutine function


async def all_arrived(post: Post, courier: HostCourier, count: int) -> None:
    await until(lambda: len(post.arrived[courier]) == count)


# ---- what is sent


def test_messages_keep_their_outbox_numbers_and_say_what_came_before() -> None:
    """PR24, M07: numbers with gaps go as they are; the floor is the stream's lowest unanswered number, `prev` the last
    unanswered one to the same entity. Other streams have their own."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        await asyncio.sleep(5)
        assert receiver.server.connections == 0, "it connects when there is something to carry"
        receiver.silent = True
        (a, b), (elsewhere,) = post.ids(1, 2), post.ids(2)
        n1, n2, n3, n4, n5 = (outbox_number(*at) for at in ((7, 0), (7, 2), (1000, 0), (1000, 1), (1000, 9)))
        for number, id in ((n1, a), (n2, elsewhere), (n3, b), (n4, a), (n5, a)):
            post.carry(courier, 3, number, id, epoch=6)
        await until(lambda: len(receiver.calls) == 5)
        seen = {call.number: call for call in receiver.calls}
        assert {call.sender for call in receiver.calls} == {4}
        assert {call.sender_epoch for call in receiver.calls} == {6}
        assert {n: (call.shard, call.floor, call.prev, call.attempt) for n, call in seen.items()} == {
            n1: (1, n1, 0, 1),
            n2: (2, n2, 0, 1),
            n3: (1, n1, 0, 1),
            n4: (1, n1, n1, 1),
            n5: (1, n1, n4, 1),
        }
        receiver.silent = False
        receiver.cut()
        await all_arrived(post, courier, 5)
        assert (post.delivered(a, 3), post.delivered(b, 3), post.delivered(elsewhere, 3)) == ([n1, n4, n5], [n3], [n2])
        assert all(call.attempt == 2 for call in receiver.calls[5:])

    play(story)


def test_an_empty_stream_is_forgotten_and_goes_on_behind_its_last_number() -> None:
    """PR24: memory is for what is on its way. The next message tells the receiver that everything before it is done."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        (a,) = post.ids(0)
        for number in (5, 90):
            post.carry(courier, 0, number, a)
            await until(lambda number=number: (0, number) in post.arrived[courier])
            assert not courier._lanes
        assert [(call.floor, call.prev) for call in receiver.calls] == [(5, 0), (90, 0)]
        assert post.unanswered() == (0, 0)

    play(story)


# ---- bounds


def test_windows_bound_what_is_under_way_and_the_rest_waits_in_order() -> None:
    """PR24: per stream, per entity and for the whole connection; what waits in one stream does not stop another."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        ids = {shard: post.ids(shard, 5) for shard in range(4)}
        counts = []
        for shard in range(4):
            for index in range(100):
                post.carry(courier, 0, outbox_number(shard + 1, index), ids[shard][index % 5])
            await asyncio.sleep(1)
            counts.append(len(receiver.calls))
        assert counts == [8, 16, 20, 20], "eight per stream, twenty in all"
        assert len(courier._lanes) == 4
        receiver.silent = False
        receiver.cut()
        await all_arrived(post, courier, 400)
        for id in (id for of_shard in ids.values() for id in of_shard):
            assert post.delivered(id) == sorted(post.delivered(id))
        assert not courier._lanes
        assert not any(courier._blocked.values())
        assert post.unanswered() == (0, 0)

    play(story)


def test_bytes_under_way_are_bounded_too() -> None:
    """One message always goes, however large; the next waits until there is room."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        for number in range(1, 4):
            (id,) = post.ids(number)
            post.carry(courier, 0, number, id, data=b"x" * 1200)
        await asyncio.sleep(1)
        assert [call.number for call in receiver.calls] == [1]
        receiver.silent = False
        receiver.cut()
        await all_arrived(post, courier, 3)
        assert post.unanswered() == (0, 0)

    play(story, window_bytes=1000)


def test_one_entitys_messages_keep_to_its_mailbox() -> None:
    """What would only be bounced from a full mailbox is not sent."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        (a,) = post.ids(0)
        for number in range(1, 20):
            post.carry(courier, 0, number, a)
        await asyncio.sleep(1)
        assert receiver.numbers(a) == [1, 2, 3, 4, 5, 6]

    play(story)


@pytest.mark.parametrize("stuck", [Status.OVERLOADED, Status.UNAVAILABLE, None], ids=["full", "failing", "not open"])
def test_receivers_that_are_stuck_leave_the_window_to_the_others(stuck: Status | None) -> None:
    """M14, PR24: what came back costs the receivers nothing and takes no room: eleven stuck streams, each with more
    messages than the whole window, do not stop the twelfth. Later they arrive, each in order."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(*range(12))
        courier = post.courier(receiver)
        ids = [id for shard in range(12) for id in post.ids(shard)]
        if stuck is None:
            post.streams.unowned.update(range(11))
        receiver.answers_with = lambda call: stuck if call.shard != 11 else None
        for index in range(30):
            for shard, id in enumerate(ids[:11]):
                post.carry(courier, shard, index + 1, id)
        await asyncio.sleep(2)
        for number in range(1, 101):
            post.carry(courier, 11, number, ids[11])
        await until(lambda: len(post.delivered(ids[11], 11)) == 100, timeout_s=1.0)
        assert not any(post.delivered(id, shard) for shard, id in enumerate(ids[:11]))
        receiver.answers_with = lambda _: None
        post.streams.unowned.clear()
        await all_arrived(post, courier, 100 + 11 * 30)
        assert all(post.delivered(id, shard) == list(range(1, 31)) for shard, id in enumerate(ids[:11]))
        assert post.unanswered() == (0, 0)

    play(story, shards=12)


def test_shards_that_stay_closed_are_not_stormed() -> None:
    """S18: what is sent again is a share of the traffic and ten calls a second, however much waits; the news that a shard
    opened ends the wait at once."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(*range(12))
        courier = post.courier(receiver)
        post.streams.unowned.update(range(12))
        ids = [id for shard in range(12) for id in post.ids(shard)]
        for index in range(30):
            for shard, id in enumerate(ids):
                post.carry(courier, shard, index + 1, id)
        await asyncio.sleep(20)
        assert 200 < len(receiver.calls) < 12 * 8 + 100 + 20 * 10 + 30
        post.streams.unowned.clear()
        receiver.push()
        await until(lambda: len(post.arrived[courier]) == 12 * 30, timeout_s=1.0)

    play(story, shards=12, window_commands=1000)


# ---- not taken over


def test_a_full_mailbox_holds_its_stream_and_nothing_overtakes() -> None:
    """PR24, M07: OVERLOADED is tried again, in order, without end and at a bounded rate, while messages to other entities
    of the stream go on arriving."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        full, other = post.ids(0, 2)
        receiver.answers_with = lambda call: Status.OVERLOADED if call.id == full else None
        post.carry(courier, 0, 1, full)
        post.carry(courier, 0, 2, full)
        for number in range(3, 303):
            post.carry(courier, 0, number, other)
            await asyncio.sleep(0.1)
        await until(lambda: post.delivered(other) == list(range(3, 303)))
        tries = receiver.numbers(full).count(1)
        assert 50 < tries < 200, "the pause grows to retry_max_s, also while others arrive"
        receiver.answers_with = lambda _: None
        await all_arrived(post, courier, 302)
        assert post.delivered(full) == [1, 2]

    play(story, stream_window=1000)


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.INVALID_COMMAND, Status.HANDLER_FAILED, 99])
def test_any_other_status_is_tried_again_and_warned_of_now_and_then(
    status: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """PR24: only who has a message durably may end its sending. The log is told at most every ten seconds."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        (a,) = post.ids(0)
        receiver.answers_with = lambda _: status
        post.carry(courier, 0, 1, a)
        post.carry(courier, 0, 2, a)
        await asyncio.sleep(3.5 * WARNING_S)
        assert receiver.numbers(a).count(1) > 50
        assert not post.arrived[courier]
        receiver.answers_with = lambda _: None
        await all_arrived(post, courier, 2)
        assert post.delivered(a) == [1, 2]

    with caplog.at_level(logging.WARNING, "atoll.client"):
        play(story)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 4
    assert "Box/e" in warnings[0]
    assert f"status {int(status)} why" in warnings[0]


def test_a_message_below_its_receivers_floor_has_arrived() -> None:
    """PR24: the answer got lost, and a later call (of a former owner of the sending shard, say) had raised the floor."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier, former = post.courier(receiver), post.courier(receiver)
        (a,) = post.ids(0)
        for number in (1, 2):
            post.carry(former, 0, number, a)
            await all_arrived(post, former, number)
        post.carry(courier, 0, 1, a, epoch=2)
        await all_arrived(post, courier, 1)
        assert post.delivered(a) == [1, 2]

    play(story)


# ---- moves, connections, sessions


def test_a_moved_shard_is_followed() -> None:
    """PR24, PR22: Moved names the new owner, which gets all that is unanswered, in order, before anything new."""

    async def story(post: Post) -> None:
        first = await post.start_receiver(0, 1, 2, 3)
        second = await post.start_receiver()
        courier = post.courier(first)
        a, b = post.ids(2, 2)
        first.silent = True
        for number in range(1, 5):
            post.carry(courier, 0, number, (a, b)[number % 2])
        await until(lambda: len(first.calls) == 4)
        first.silent = False
        post.streams.give(2, second)
        post.carry(courier, 0, 5, a)
        await all_arrived(post, courier, 5)
        assert (post.delivered(a), post.delivered(b)) == ([2, 4, 5], [1, 3])
        assert [call.number for call in second.calls][:5] == [1, 2, 3, 4, 5]

    play(story)


def test_a_shard_that_nobody_serves_yet_is_waited_for_and_news_of_its_owner_end_the_wait() -> None:
    """PR24: Moved to nobody holds the stream. Its owner's first push starts it again, however long the pause would be."""

    async def story(post: Post) -> None:
        first = await post.start_receiver(0, 1, 2, 3)
        second = await post.start_receiver()
        courier = post.courier(first)
        (warm,), (a,) = post.ids(0), post.ids(2)
        post.carry(courier, 0, 1, warm)
        await until(lambda: first.calls)
        post.streams.unowned.add(2)
        for number in (2, 3):
            post.carry(courier, 0, number, a)
        await until(lambda: first.numbers(a) == [2, 3])
        post.streams.unowned.clear()
        post.streams.give(2, second)
        await asyncio.sleep(1)
        assert first.numbers(a) == [2, 3], "it is not being waited"
        first.push()
        await until(lambda: post.delivered(a) == [2, 3], timeout_s=0.1)

    play(story, retry_first_s=1000.0, retry_max_s=1000.0)


def test_a_bounced_message_is_sent_again_without_any_news() -> None:
    """PR24, PR22: the shard was only not open yet."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        (a,) = post.ids(2)
        post.streams.unowned.add(2)
        for number in (1, 2):
            post.carry(courier, 0, number, a)
        await until(lambda: len(receiver.calls) > 10)
        post.streams.unowned.clear()
        await all_arrived(post, courier, 2)
        assert post.delivered(a) == [1, 2]

    play(story)


def test_what_a_dead_host_took_over_is_not_delivered_again() -> None:
    """PR24, M06: its answers were lost with it; the new owner knows the numbers, and answers for it."""

    async def story(post: Post) -> None:
        first = await post.start_receiver(0, 1)
        second = await post.start_receiver(2, 3)
        courier = post.courier(second)
        (a,) = post.ids(0)
        first.cut_after = lambda call: call.number == 3
        for number in range(1, 7):
            post.carry(courier, 0, number, a)
        await until(lambda: post.delivered(a)[-1:] == [3])
        first.process.kill()
        post.streams.give(0, second)
        second.push()
        await all_arrived(post, courier, 6)
        assert post.delivered(a) == [1, 2, 3, 4, 5, 6]
        assert 3 in second.numbers(a)

    play(story)


def test_a_forgotten_session_changes_nothing_for_the_streams() -> None:
    """PR24, PR27: the hosts expired the courier's session. It registers anew, and every stream goes on with its numbers:
    nothing is doubled, nothing is lost, nobody hears of it."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        a, b = post.ids(0, 2)
        receiver.cut_after = lambda call: call.number == 40
        for number in (10, 20, 30, 40, 50, 60):
            post.carry(courier, 0, number, (a, b)[number % 20 // 10])
        await until(lambda: 40 in post.delivered(a))
        post.streams.sessions.clear()
        await all_arrived(post, courier, 6)
        assert post.streams.sessions_opened == 2
        assert post.delivered(a) == [20, 40, 60]
        assert post.delivered(b) == [10, 30, 50]
        last = receiver.calls[-1]
        assert (last.number, last.attempt) == (60, 2)

    play(story)


# ---- the sending shard's life


def test_a_dropped_shard_is_carried_no_further_and_makes_room() -> None:
    """PR24: it is another host's now. Its late answers call nobody, but they make room: what waited behind it for the
    window goes on."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        mine = [id for shard in (0, 1, 2) for id in post.ids(shard, 2)]
        for number in range(1, 61):
            post.carry(courier, 7, number, mine[number % 6])
        post.carry(courier, 8, 1, mine[0])
        await asyncio.sleep(1)
        sent = len(receiver.calls)
        assert {call.sender for call in receiver.calls} == {8}
        courier.drop(7)
        courier.drop(6)
        receiver.silent = False
        (peer,) = receiver.peers
        receiver.received(peer, receiver.calls[:sent])
        await all_arrived(post, courier, 1)
        assert {call.sender for call in receiver.calls[2 * sent :]} == {9}
        assert post.arrived[courier] == [(8, 1)]
        assert not courier._lanes
        assert not any(courier._blocked.values())
        assert post.unanswered() == (0, 0)

    play(story)


@pytest.mark.parametrize("status", [Status.OVERLOADED, Status.UNAVAILABLE])
def test_a_dropped_shard_is_not_tried_again_either(status: Status) -> None:
    """PR24: its streams, or entities in them, may be held at that moment, waiting for their next try."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        courier = post.courier(receiver)
        (a,) = post.ids(0)
        receiver.answers_with = lambda _: status
        post.carry(courier, 0, 1, a)
        await until(lambda: any(stream.retry or stream.held for stream in courier._lanes.values()))
        courier.drop(0)
        tries = len(receiver.calls)
        await asyncio.sleep(10)
        assert len(receiver.calls) == tries

    play(story)


def test_a_shard_that_comes_back_is_carried_under_its_new_epoch() -> None:
    """PR24: another host owned it meanwhile, and what is sent late under the old epoch is dropped there. Back here, all
    that is pending is handed over again."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier, between = post.courier(receiver), post.courier(receiver)
        (a,) = post.ids(0)
        for number in (1, 2, 3):
            post.carry(courier, 0, number, a, epoch=1)
        await until(lambda: len(receiver.calls) == 3)
        receiver.silent = False
        post.carry(between, 0, 1, a, epoch=2)
        await all_arrived(post, between, 1)
        receiver.cut()
        await until(lambda: receiver.late_epochs == 3)
        courier.drop(0)
        between.drop(0)
        for number in (1, 2, 3, 4):
            post.carry(courier, 0, number, a, epoch=3)
        await all_arrived(post, courier, 4)
        assert post.delivered(a) == [1, 2, 3, 4]

    play(story)


def test_a_new_epoch_of_a_shard_that_stayed_takes_what_is_under_way_along() -> None:
    """PR24: a receiver that knows the new epoch drops copies of the old one without a word, so they are sent again."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        a, b = post.ids(0, 2)
        post.carry(courier, 0, 1, a, epoch=1)
        await until(lambda: len(receiver.calls) == 1)
        receiver.silent = False
        post.carry(courier, 0, 2, b, epoch=2)
        await all_arrived(post, courier, 2)
        assert [(call.number, call.sender_epoch) for call in receiver.calls] == [(1, 1), (1, 2), (2, 2)]

    play(story)


def test_numbers_of_a_stream_only_grow() -> None:
    """A broken invariant stops the shard with its story: floor and `prev` would lie."""

    async def story(post: Post) -> None:
        courier = post.courier(await post.start_receiver(0, 1, 2, 3))
        (a,) = post.ids(0)
        post.carry(courier, 0, 5, a)
        with pytest.raises(AssertionError, match="message 5 of shard 0 comes after 5"):
            post.carry(courier, 0, 5, a)

    play(story)


def test_a_closed_courier_carries_nothing_and_calls_nobody() -> None:
    """Its host stops: the connections close, and what is left is the next owner's."""

    async def story(post: Post) -> None:
        receiver = await post.start_receiver(0, 1, 2, 3)
        receiver.silent = True
        courier = post.courier(receiver)
        (a,) = post.ids(0)
        post.carry(courier, 0, 1, a)
        await until(lambda: len(receiver.calls) == 1)
        receiver.silent = False
        courier.close()
        post.carry(courier, 0, 2, a)
        await asyncio.sleep(30)
        assert receiver.server.connections == 0
        assert (len(receiver.calls), post.arrived[courier], dict(courier._lanes)) == (1, [], {})

    play(story)


# ---- everything at once


class Storm:
    """Messages of three sending shards through everything that can go wrong, until all have arrived."""

    def __init__(self, post: Post, luck: random.Random) -> None:
        self.post = post
        self.luck = luck
        self.faults: dict[str, int] = {}
        self.calm = False
        self.pending: dict[int, dict[int, str]] = {shard: {} for shard in range(3)}
        """Sending shard -> number -> ID: what its owner's outbox holds."""
        self.sent: dict[tuple[int, str], list[int]] = {}
        self.epochs = dict.fromkeys(range(3), 1)
        self.owners: dict[int, HostCourier] = {}
        self.drops: dict[tuple[HostCourier, int], asyncio.TimerHandle] = {}
        """Former owners that do not know it yet, and when they will."""

    def bites(self, fault: str, chance: float) -> bool:
        if self.calm or self.luck.random() >= chance:
            return False
        self.faults[fault] = self.faults.get(fault, 0) + 1
        return True

    async def run(self) -> None:
        post = self.post
        hosts = [await post.start_receiver(), await post.start_receiver(), await post.start_receiver()]
        for shard in range(4):
            post.streams.give(shard, hosts[shard % 2])
        for host in hosts:
            host.answers_with = self._answers_with
            host.cut_after = lambda _: self.bites("lost answer", 0.03)
        couriers = [post.courier(*hosts), post.courier(*hosts)]
        self.owners = dict.fromkeys(range(3), couriers[0])
        sending = [asyncio.ensure_future(self._send(shard)) for shard in range(3)]
        while not all(task.done() for task in sending):
            await asyncio.sleep(self.luck.uniform(0, 0.1))
            shard = self.luck.randrange(4)
            if self.bites("receiver's shard moves", 0.3):
                post.streams.give(shard, self.luck.choice(hosts))
                if self.luck.random() < 0.5:
                    self.luck.choice(hosts).push()
            if self.bites("connections die", 0.1):
                self.luck.choice(hosts).cut()
            if self.bites("sessions expire", 0.05):
                post.streams.sessions.clear()
            if self.bites("sender's shard moves", 0.1):
                self._take_over(self.luck.randrange(3), couriers)
        self.calm = True
        for task in sending:
            task.result()
        await until(lambda: not any(self.pending.values()) and not self.drops, timeout_s=600)
        assert post.unanswered() == (0, 0)

    def _answers_with(self, _: Any) -> Status | None:
        if self.bites("full mailbox", 0.05):
            return Status.OVERLOADED
        return Status.UNAVAILABLE if self.bites("not now", 0.02) else None

    async def _send(self, shard: int) -> None:
        number = 0
        ids = [id for receiving in range(4) for id in self.post.ids(receiving, 2)]
        for _ in range(200):
            number += self.luck.choice((1, 1, 7, 1 << 16, 1 << 40))
            id = self.luck.choice(ids)
            self.pending[shard][number] = id
            self.sent.setdefault((shard, id), []).append(number)
            self._hand_over(shard, number)
            if self.luck.random() < 0.3:
                await asyncio.sleep(self.luck.uniform(0, 0.3))

    def _hand_over(self, shard: int, number: int) -> None:
        epoch, courier = self.epochs[shard], self.owners[shard]

        def arrived(number: int) -> None:
            if epoch == self.epochs[shard]:  # what a former owner hears means nothing: it cannot commit it
                del self.pending[shard][number]

        id = self.pending[shard][number]
        self.post.carry(courier, shard, number, id, epoch, arrived=arrived)

    def _take_over(self, shard: int, couriers: list[HostCourier]) -> None:
        """The other host owns it now; the former owner hears of it later, and goes on sending until then."""
        former = self.owners[shard]
        owner = self.owners[shard] = couriers[1 - couriers.index(former)]
        self.epochs[shard] += 1
        if (owner, shard) in self.drops:
            self.drops.pop((owner, shard)).cancel()
            owner.drop(shard)
        drop = asyncio.get_running_loop().call_later(self.luck.uniform(0, 3), self._drop, former, shard)
        self.drops[former, shard] = drop
        for number in self.pending[shard]:
            self._hand_over(shard, number)

    def _drop(self, courier: HostCourier, shard: int) -> None:
        del self.drops[courier, shard]
        courier.drop(shard)


@pytest.mark.parametrize("seed", range(12))
def test_each_message_arrives_once_and_in_order_per_entity_through_everything(seed: int) -> None:
    """PR24, M06, M07: lost answers, moves at both ends, dying connections, full mailboxes and expiring sessions."""
    with Simulation(seed) as simulation:
        post = Post(simulation, **SMALL)
        storm = Storm(post, random.Random(f"{seed}/storm"))
        simulation.run(storm.run())
    for (shard, id), numbers in storm.sent.items():
        assert post.delivered(id, shard) == numbers, f"from {shard} to {id}"
    assert len(storm.faults) == 7, f"a fault did not bite: {storm.faults}"
    assert post.streams.sessions_opened > 2, "no session was registered anew"
