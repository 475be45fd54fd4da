"""What waits in a host's memory, in bytes, and what the host does about too much of it.

    up to half of the budget    everybody is read, and granted its window (cluster/credits.py)
    above half                  granted: a quarter. Not read: a peer with more than its share of that half. A noisy
                                client costs no other
    above the budget            granted: a sixteenth. Nobody is read; the kernels' buffers fill, then senders wait

What is granted less waits at its sender, who knows that it did not run; what is not read counts as sent. As the memory
of the process fills, less is granted and the budget is smaller (pressure.py).

Counted are the commands that wait for their turn and are nobody's but their senders', and what is staged and not
durable. (Accepted entries have bounds of their own and can leave memory.) The asks of handlers and the coordinator are
always read (cluster/server.py): a turn may wait for such an ask, and its entity's mailbox for the turn.

Waiting commands are counted by looking, after every `LOOK_SHARE` of the budget that arrived: an account of every way
into and out of a mailbox would be wrong one day, and then for ever.

A look also finds the commands whose deadline has passed: their senders hear now that they did not run, not when their
turn would have come. While the store is stuck no turn begins (commit.py), nor does such an answer leave. Then a look
gives commands back whose deadline is near.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ..actors.calls import Status
from ..actors.settings import Settings
from ..actors.world import World
from .messages import Peer
from .resident import Pending, Resident
from .shard import OwnedShard

COMMAND_BYTES = 1_000
"""What a waiting command costs beside its arguments: envelope, strings, its places in mailbox and window (measured)."""
LOOK_SHARE = 16
"""Looks per budget of arrivals: so far a bound may be passed, and so seldom is everything counted."""
LOOK_S = 0.1
"""Between two looks while something waits; and"""
LOOKING_MAX = 0.05
"""of a host's time, what looks may take: with so many waiting that one takes long, the next one comes later."""
RELEASE_AT = 0.75
"""Of a bound, under which it counts as kept again: some way below, so that it is not taken and given each time."""
ABOVE_HALF = 1 / 4
ABOVE_ALL = 1 / 16
"""Of the windows, what is granted above half of the budget and above all of it. Never nothing: who has no more than one
command under way is not what fills a host."""


NEAR_S = 0.15
"""A deadline that is nearer than this passes before the next look, and its answer takes a moment to arrive."""
_STORE_AWAY = b"the store did not answer before the deadline; it did not run"


def _give_back(resident: Resident, before: float) -> None:
    """Its number stays free, as after a full mailbox: neither a lease nor a record is needed to say so. Of a second
    sending, and of a command under an ID, another copy may be elsewhere: those wait on."""
    late = [
        pending
        for pending in resident.waiting()
        if pending.deadline < before and not pending.owed and pending.call.attempt == 1 and not pending.call.command_id
    ]
    for pending in late:
        resident.remove(pending)
        pending.send_back(Status.STORE_AWAY, _STORE_AWAY)


def _nobody(how: float) -> None:
    """Without a server there is nobody to hold, nor to grant less."""


class Budget:
    def __init__(
        self,
        shards: Mapping[int, OwnedShard],
        settings: Settings,
        world: World,
        uncommitted: Callable[[], int],
        stuck: Callable[[], bool],
        expired: Callable[[Resident, Pending], None],
    ) -> None:
        """`shards`: the host's own, kept by it. `uncommitted`: bytes that are staged and not durable. `stuck`: the
        store is, and no turn begins. `expired`: answers a command whose deadline passed before its turn."""
        self._shards = shards
        self._bytes_max = self._bytes_max_asked = settings.queued_bytes_max
        self._replies_max = settings.replies_bytes_max
        self._share = 1.0
        """Of the budget and the windows, what the memory of the process leaves."""
        self._world = world
        self._stuck = stuck
        self._expired = expired
        self._uncommitted = uncommitted
        self._arrived = 0
        """Bytes since the last look."""
        self._noisy: set[Peer] = set()
        """Those that are not read."""
        self._look: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.full = False
        """Nobody is read."""
        self.hold_all: Callable[[bool], None] = _nobody
        """Stop reading from everybody (True), or go on. Set by who has the connections."""
        self.narrow: Callable[[float], None] = _nobody
        """Grant this share of the windows from now on. Set by the same."""
        self._above_half = False
        self.replies_full = False
        """Recorded replies are at their bound: a client runs only the lowest number that it lacks (intake.py)."""

    @property
    def held(self) -> int:
        """Peers that are not read because of what they have waiting."""
        return len(self._noisy)

    def arrived(self, commands: int, argument_bytes: int) -> None:
        """So many commands came."""
        self._arrived += commands * COMMAND_BYTES + argument_bytes
        if self._arrived * LOOK_SHARE >= self._bytes_max:
            self.look()
        elif self._look is None:
            self._look = self._loop.call_later(LOOK_S, self.look)

    def shrink(self, share: float) -> None:
        """From now on only this share of what the settings allow may wait."""
        self._share = share
        self._bytes_max = int(self._bytes_max_asked * share)
        self.look()

    def forget(self, peer: Peer) -> None:
        """Its connection is gone."""
        self._noisy.discard(peer)

    def look(self) -> None:
        self._arrived = 0
        began = self._world.monotonic()
        shares = self._counted(began)
        waiting = sum(shares.values()) + self._uncommitted()
        half = self._bytes_max // 2
        full = waiting >= self._bytes_max * (RELEASE_AT if self.full else 1)
        self._above_half = waiting >= half * (RELEASE_AT if self._above_half else 1)
        if full is not self.full:
            self.full = full
            self.hold_all(full)
        self.narrow(self._share * (ABOVE_ALL if full else ABOVE_HALF if self._above_half else 1))
        replies = sum(shard.replies.bytes for shard in self._shards.values())
        self.replies_full = replies >= self._replies_max * self._share * (RELEASE_AT if self.replies_full else 1)
        noisy: set[Peer] = set()
        if waiting > half:
            noisy = {peer for peer, size in shares.items() if size * len(shares) > half}
        for peer in self._noisy - noisy:
            peer.release()
        for peer in noisy - self._noisy:
            peer.hold()
        self._noisy = noisy
        if self._look is not None:
            self._look.cancel()
        again = waiting or self.replies_full or self._stuck()
        took_s = self._world.monotonic() - began
        self._look = self._loop.call_later(max(LOOK_S, took_s / LOOKING_MAX), self.look) if again else None

    def _counted(self, now: float) -> dict[Peer, int]:
        """Bytes that wait, by whose they are."""
        shares: dict[Peer, int] = {}
        stuck = self._stuck()
        for shard in self._shards.values():
            for resident in list(shard.loaded):
                if not resident.mailbox and resident.backlog is None:
                    shard.loaded.pop(resident, None)  # an expired one's answer may have made us look
                    continue
                if stuck:
                    _give_back(resident, now + NEAR_S)
                else:
                    for pending in resident.take_expired(now):
                        self._expired(resident, pending)
                for pending in resident.waiting():
                    if not pending.owed:
                        size = COMMAND_BYTES + len(pending.call.arguments)
                        shares[pending.peer] = shares.get(pending.peer, 0) + size
        return shares
