"""What clients and hosts say to each other, once a connection is trusted (the handshake is in cluster/wire.py).

Structs are MessagePack arrays [tag, field, ...]; a field may only be appended, with a default. Both ends check the
protocol version in the handshake.

    client -> host         Call, Confirm, Ping
    host -> client         Answer, Moved, OutOfOrder, TableUpdate, StripeHosts, Credit, Pong
    coordinator -> host    Poke, StripeHosts, Ping
    host -> coordinator    Poke (the ownership rows changed), Load
    host -> host           as a client, and Poke
    either                 Goodbye (why the connection closes)
"""

from __future__ import annotations

from typing import Annotated, Protocol

import msgspec

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number as the wire may carry it. What no store could hold is refused while decoding, before anyone counts on it."""


class Call(msgspec.Struct, array_like=True, tag=1, gc=False):
    """One command or query in its envelope."""

    shard: Natural
    number: Natural
    """The client's number for it in this shard: 1, 2, 3 ..., the same in every attempt."""
    floor: Natural
    """The lowest number of this shard whose answer the client still lacks."""
    prev: Natural
    """The client's previous unanswered number to the same entity, 0 for none: keeps the order over reconnects."""
    attempt: Natural
    """1 for the first sending of this number."""
    mode: Natural
    """A `Mode`."""
    kind: str
    id: str
    method: str
    arguments: bytes
    remaining_ms: Natural
    """Time left of its deadline when it was sent."""
    command_id: str = ""
    chain: tuple[str, ...] = ()
    """The entities (`kind/id`) that wait for this call, outermost first."""
    sender: Natural = 0
    """0: a client's own command. Else 1 + the shard whose outbox this message is from; `number` is its outbox number,
    and `floor` and `prev` count within the stream from that shard to this one. It has no deadline."""
    sender_epoch: Natural = 0
    """The epoch at which that shard is owned by whoever sends: a former owner's copies are dropped."""
    priority: Natural = 0
    """A `Priority`; an unknown one counts as normal."""


class Answer(msgspec.Struct, array_like=True, tag=2, gc=False):
    shard: Natural
    number: Natural
    status: Natural
    """A `Status`."""
    payload: bytes
    sender: Natural = 0
    """As in the call; the same in Moved and OutOfOrder."""
    retry_after_ms: Natural = 0
    """With OVERLOADED: when there should be room again. 0: nobody knows."""


class Moved(msgspec.Struct, array_like=True, tag=3, gc=False):
    """Not mine, or not yet open: nothing was done. Resend all that is unanswered in that shard, in order."""

    shard: Natural
    number: Natural
    epoch: Natural
    incarnation: Natural
    """The owner as far as this host knows, 0 for unknown."""
    address: str
    sender: Natural = 0


class OutOfOrder(msgspec.Struct, array_like=True, tag=4, gc=False):
    """`prev` of this call is unknown here: nothing was done. Resend from the oldest unanswered one."""

    shard: Natural
    number: Natural
    sender: Natural = 0


class TableUpdate(msgspec.Struct, array_like=True, tag=5, gc=False):
    """(shard, epoch, incarnation, address): who serves what. An entry of a higher epoch wins."""

    entries: tuple[tuple[Natural, Natural, Natural, str], ...]


class Credit(msgspec.Struct, array_like=True, tag=6, gc=False):
    """How many calls, and how many bytes of arguments, may have been sent on this connection since it opened. Limits
    only rise (cluster/credits.py)."""

    commands: Natural
    bytes: Natural


class Goodbye(msgspec.Struct, array_like=True, tag=7, gc=False):
    reason: str


class Ping(msgspec.Struct, array_like=True, tag=8, gc=False):
    pass


class Pong(msgspec.Struct, array_like=True, tag=9, gc=False):
    pass


class Poke(msgspec.Struct, array_like=True, tag=10, gc=False):
    """The ownership rows changed: look at the store now. A hint; a host looks by itself from time to time."""

    assigned: tuple[tuple[Natural, Natural], ...] = ()
    """(shard, epoch) that the receiver may claim at once, without looking for them first: the store decides."""


class Load(msgspec.Struct, array_like=True, tag=11, gc=False):
    """How busy the shards of the host that says so were: a hint for who gives them to whom."""

    interval_ms: Natural
    shards: tuple[tuple[Natural, Natural], ...]
    """(shard, microseconds of CPU in that interval)"""


class Confirm(msgspec.Struct, array_like=True, tag=12, gc=False):
    """Floors of shards in which the client has nothing under way: no call will tell them for now, and the replies below
    them need not be remembered. A hint: what is lost is told by the next call."""

    floors: tuple[tuple[Natural, Natural], ...]
    """(shard, floor)"""


Address = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
"""`host:port`: no host name is longer than 255."""
HOSTS_MAX = 10_000
"""That anybody can make a process remember: 3 MB of the longest addresses, and more hosts than a client may have."""
STRIPES_MAX = 1024
"""Databases of one app, as many as a table of hosts can be told of."""


class StripeHosts(msgspec.Struct, array_like=True, tag=13, gc=False):
    """Where the hosts of each of the app's databases listen, in order of stripe. A hint, said to hosts and by them to
    their clients: each end knows only the hosts of its own database by itself."""

    addresses: Annotated[
        tuple[Annotated[tuple[Address, ...], msgspec.Meta(max_length=HOSTS_MAX)], ...],
        msgspec.Meta(max_length=STRIPES_MAX),
    ]


Message = (
    Call
    | Answer
    | Moved
    | OutOfOrder
    | TableUpdate
    | StripeHosts
    | Credit
    | Goodbye
    | Ping
    | Pong
    | Poke
    | Load
    | Confirm
)


class Peer(Protocol):
    """A trusted connection as the host sees it."""

    @property
    def client(self) -> int:
        """The session's client ID."""
        ...

    @property
    def generation(self) -> int:
        """Grows with each connection of that client, so that a late frame of an older one is known as such."""
        ...

    def send(self, message: Message) -> None:
        """Queue a message; those of one loop tick leave in one frame. After the connection closed: dropped."""
        ...

    def reply(self, call: Call, message: Answer | Moved | OutOfOrder) -> None:
        """Send what a call that came over this connection is told, once for each that came: what it took of the
        connection's credits is free again."""
        ...

    def forget(self, call: Call) -> None:
        """Nothing will be said to that call: its sender gave it up, or another copy has its place. It is free again."""
        ...

    def hold(self) -> None:
        """Read nothing more from it until `release`."""
        ...

    def release(self) -> None:
        """See `hold`."""
        ...

    def close(self, reason: str) -> None:
        """Say Goodbye with the reason, and close."""
        ...
