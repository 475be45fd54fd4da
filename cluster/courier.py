"""The courier: carries what the outboxes of this host's shards hold to the hosts of the receivers.

    carry --> stream (sending shard -> receiving shard) --> link to the owner --> OK / below its floor --> arrived
                |   ^
                |   `-- a full mailbox holds its entity, anything else the stream: what is held is sent again in order
                |       (carrier.py), for as long as it takes
                `------ drop: the sending shard is not this host's any more

It has connections and a session of its own, so that what receivers cannot take yet never holds up the asks of handlers.
The session only names a connection: numbers, floors and generations of a stream are those of its sending shard, and
outlive session and host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..actors.calls import Status
from ..actors.logs import about
from ..actors.settings import Settings
from ..actors.stored import StoredMessage
from ..persistence.stripes import Stripe
from ..sharding.hashing import shard_of
from ..sharding.messages import Answer
from .carrier import Carrier, log
from .lanes import OutgoingMessage, Stream, lane_key
from .link import Access, Link

WARNING_S = 10.0
"""Between two warnings about messages that were not taken over: they are tried again all the time."""
_TAKEN_OVER = frozenset((Status.OK, Status.BELOW_FLOOR))
"""Below the floor: the receiver was told before that we know of its having it."""


class HostCourier(Carrier[Stream]):
    """Implements `Courier` (sharding/outbox.py). Connects when the first message comes."""

    def __init__(self, access: Access, addresses: Sequence[str], stripe: Stripe | None = None) -> None:
        """`addresses`: hosts to learn the others from. `stripe`: that of the receivers."""
        super().__init__(access, addresses, stripe=stripe)
        self._shards = access.settings.shards  # a host knows it without being told by another one
        self._warned = float("-inf")
        self._refusals = 0
        """Since the last warning."""

    def carry(
        self,
        sending_shard: int,
        epoch: int,
        number: int,
        message: StoredMessage,
        arrived: Callable[[int], None],
        again: bool = False,
    ) -> None:
        if self._closed:
            return
        stream = self._stream(sending_shard + 1, shard_of(message.id, self._shards), epoch)
        backlog = stream.backlog
        newest = backlog[-1].number if backlog else stream.next_number - 1
        assert number > newest, f"message {number} of shard {sending_shard} comes after {newest}"
        backlog.append(OutgoingMessage(message, number, attempts=int(again), arrived=arrived))
        if len(backlog) == 1:
            self._admit(stream, self._world.monotonic())

    def drop(self, sending_shard: int) -> None:
        sender = sending_shard + 1
        for stream in [stream for stream in self._lanes.values() if stream.sender == sender]:
            self._forget(stream)

    def close(self) -> None:
        """Close the connections, and call nobody any more."""
        self._hang_up()
        self._lanes.clear()
        self._blocked.clear()

    def _stream(self, sender: int, shard: int, epoch: int) -> Stream:
        key = lane_key(sender, shard)
        stream = self._lanes.get(key)
        if stream is None:
            stream = self._lanes[key] = Stream(shard, sender, epoch)
        elif stream.epoch < epoch:
            stream.epoch = epoch
            self._route(stream)  # again, under the new epoch: copies of the old one may be dropped as a former owner's
        return stream

    def _forget(self, stream: Stream) -> None:
        self._quiet(stream)
        del self._lanes[lane_key(stream.sender, stream.shard)]

    def _width(self, settings: Settings) -> int:
        return settings.stream_window

    def _answered(self, link: Link, answer: Answer) -> None:
        stream = self._lanes.get(lane_key(answer.sender, answer.shard))
        out = stream.unanswered.get(answer.number) if stream is not None else None
        if stream is None or out is None:
            return  # a second answer, or the shard was dropped meanwhile
        if answer.status not in _TAKEN_OVER:
            if answer.status == Status.OVERLOADED:
                if stream.link is link:
                    self._hold_entity(stream, out)
                return
            if stream.link is link:
                self._hold(stream)
            self._warn(out, answer)
            return
        if answer.number == stream.floor:
            stream.retries = 0  # while the oldest is not taken, what passes it by is no progress: keep backing off
        self._settle(stream, answer.number, answered=True)
        if not stream.unanswered and not stream.backlog:
            self._forget(stream)
        out.arrived(answer.number)

    def _session_expired(self) -> None:
        """The streams go on: their numbers are the shards', and those who knew the session know the streams by them."""

    def _warn(self, out: OutgoingMessage, answer: Answer) -> None:
        self._refusals += 1
        now = self._world.monotonic()
        if now - self._warned < WARNING_S:
            return
        log.warning(
            "%d messages were not taken over and are sent again; the last, to %s/%s.%s: status %d %s",
            self._refusals,
            out.request.kind,
            out.request.id,
            out.request.method,
            answer.status,
            answer.payload[:200].decode(errors="replace") if answer.status != Status.REJECTED else "",  # users' data
            extra=about(shard=answer.shard, kind=out.request.kind, id=out.request.id),
        )
        self._warned, self._refusals = now, 0
