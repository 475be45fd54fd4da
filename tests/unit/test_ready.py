"""Which entity's turn is next: shares of the lanes, and senders one after the other."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from atoll.sharding.ready import ReadyQueue

INTERACTIVE, NORMAL, BACKGROUND = 0, 1, 2


def entity(name: str, sender: int = 1, lane: int = NORMAL) -> Any:
    return SimpleNamespace(name=name, mailbox=deque([SimpleNamespace(client=sender)]), lane=lane, in_lane=None)


def popped(queue: ReadyQueue, count: int) -> list[str]:
    found = []
    for _ in range(count):
        resident: Any = queue.pop()
        found.append(resident.name)
    return found


def test_one_sender_is_served_in_order() -> None:
    queue = ReadyQueue()
    for number in range(10):
        queue.push(entity(f"{number}"))
    assert popped(queue, 10) == [f"{number}" for number in range(10)]
    assert queue.pop() is None


def test_a_sender_with_one_entity_waits_for_one_of_another_that_has_a_thousand() -> None:
    """M14: a noisy client does not ruin the others' time."""
    queue = ReadyQueue()
    for number in range(1000):
        queue.push(entity(f"noisy {number}", sender=1))
    queue.push(entity("quiet", sender=2))
    assert "quiet" in popped(queue, 2)


def test_lanes_share_sixteen_to_four_to_one_and_none_starves() -> None:
    """Each served one becomes ready again: all three lanes always have work."""
    queue, turns = ReadyQueue(), Counter[str]()
    for lane, name in ((INTERACTIVE, "interactive"), (NORMAL, "normal"), (BACKGROUND, "background")):
        for sender in range(3):
            queue.push(entity(name, sender, lane))
    for _ in range(2100):
        resident: Any = queue.pop()
        turns[resident.name] += 1
        queue.push(resident)
    assert abs(turns["interactive"] - 1600) <= 2
    assert abs(turns["normal"] - 400) <= 2
    assert abs(turns["background"] - 100) <= 2


def test_a_lane_that_was_empty_has_saved_nothing_up() -> None:
    queue = ReadyQueue()
    busy = entity("background", lane=BACKGROUND)
    for _ in range(1000):
        queue.push(busy)
        queue.pop()
    queue.push(busy)
    for number in range(40):
        queue.push(entity(f"interactive {number}", lane=INTERACTIVE))
    assert "background" in popped(queue, 20)


def test_one_that_stands_in_a_worse_lane_leaves_its_place_for_a_better_one() -> None:
    """It is served once."""
    queue = ReadyQueue()
    promoted = entity("promoted", lane=BACKGROUND)
    queue.push(promoted)
    queue.push(entity("background", lane=BACKGROUND))
    promoted.lane = INTERACTIVE
    queue.push(promoted)
    assert popped(queue, 2) == ["promoted", "background"]
    assert queue.pop() is None
    assert len(queue) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)) | st.none(), max_size=200))
def test_whatever_comes_each_is_served_once_and_a_sender_in_order(script: list[tuple[int, int] | None]) -> None:
    """A pair: an entity of that lane and sender becomes ready. None: one is served."""
    queue, served = ReadyQueue(), []
    pushed = 0
    for step in script:
        if step is None:
            served.append(queue.pop())
        else:
            queue.push(entity(f"{pushed}", sender=step[1], lane=step[0]))
            pushed += 1
    while (resident := queue.pop()) is not None:
        served.append(resident)
    found: list[Any] = [resident for resident in served if resident is not None]
    assert sorted(int(resident.name) for resident in found) == list(range(pushed))
    for lane in range(3):
        for sender in range(5):
            own = [int(r.name) for r in found if (r.lane, r.mailbox[0].client) == (lane, sender)]
            assert own == sorted(own)
