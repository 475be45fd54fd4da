"""Which entity's turn comes next: three lanes, and in each lane the senders one after the other. Pure.

    interactive   16 shares     a lane with something to run gets its part of the turns, whatever stands in the others:
    normal         4            none starves
    background     1

Inside a lane each sender (a client, a stream of messages) has a queue of the entities whose next command is its own,
and the queues take turns: one with a thousand entities waiting delays another by one turn, not by a thousand.

Lanes share by stride scheduling (Waldspurger and Weihl, 1995): each turn moves its lane's pass on by its stride, and
the lane with the lowest pass is next. One that was empty begins where the others are: idleness is not saved up.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from .resident import Resident

STRIDES = (1 / 16, 1 / 4, 1.0)
"""By lane: what a turn costs."""


class _Lane:
    __slots__ = ("index", "passed", "queues", "stride")

    def __init__(self, index: int, stride: float) -> None:
        self.index = index
        self.stride = stride
        self.passed = 0.0
        self.queues: OrderedDict[int, deque[Resident]] = OrderedDict()
        """By sender, who is next first."""


class ReadyQueue:
    def __init__(self) -> None:
        self._lanes = tuple(_Lane(index, stride) for index, stride in enumerate(STRIDES))
        self._passed = 0.0
        """Of the lane that was served last."""
        self._count = 0

    def __len__(self) -> int:
        """Entities, and places that one left for a better lane."""
        return self._count

    def push(self, resident: Resident) -> None:
        """It has something to run. One that stands here already leaves its place for one in a better lane."""
        lane = self._lanes[resident.lane]
        resident.in_lane = resident.lane
        mailbox = resident.mailbox
        sender = mailbox[0].client if mailbox else 0
        if not lane.queues:
            lane.passed = max(lane.passed, self._passed)
        queue = lane.queues.get(sender)
        if queue is None:
            lane.queues[sender] = deque((resident,))
        else:
            queue.append(resident)
        self._count += 1

    def pop(self) -> Resident | None:
        while self._count:
            lane = self._next_lane()
            queues = lane.queues
            sender = next(iter(queues))
            queue = queues[sender]
            resident = queue.popleft()
            self._count -= 1
            if not queue:
                del queues[sender]
            elif len(queues) > 1:
                queues.move_to_end(sender)
            if resident.in_lane == lane.index:
                resident.in_lane = None
                self._passed = lane.passed
                lane.passed += lane.stride
                return resident
        return None

    def _next_lane(self) -> _Lane:
        """Of those with something to run, the one with the lowest pass."""
        best: _Lane | None = None
        for lane in self._lanes:
            if lane.queues and (best is None or lane.passed < best.passed):
                best = lane
        assert best is not None
        return best

    def clear(self) -> None:
        for lane in self._lanes:
            lane.queues.clear()
        self._count = 0
