"""The host's door: accepts connections, lets in who holds the token, and hands their calls to a `Receiver`.

    listen() --serve(incarnation)--> serving --close(reason)--> closed
       |
       +-- a peer that comes before `serve` is asked to come back: the address must be known to register in the store,
           and the incarnation is known only after that

Rules:
- What one peer sends wrong ends that peer's connection and touches no other.
- Everything is bounded: connections, unproved peers among them (the oldest gives way to the newest, so that peers that
  say nothing cannot lock others out), what each makes us keep (connection.py), and what all together do not take.
- The listener stays open while the process lives, at the limit too: a refused connection is proof of death (rule 16).
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import msgspec

from ..actors.errors import StoreError
from ..actors.outage import Outage
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.stripes import ONLY, Stripe
from ..sharding.messages import Answer, Call, Credit, Message, Moved, OutOfOrder, Peer
from .connection import UNSENT_BYTES, Connection
from .credits import Grant
from .handshake import End, HostHandshake, HostTerms, Refusal
from .network import Listener, Network
from .token import Token
from .wire import FROM_CLIENT, FROM_COORDINATOR, NONCE_BYTES, Hello, Welcome

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 10_000
"""Twice the 5,000 clients that a host must bear. An idle one costs a file descriptor and some 10 KB."""

UNPROVED_MAX = 1024
"""Peers that have not proved the token yet, of at most a handshake frame each: 4 MiB together. As many as the kernel
queues for us (network.BACKLOG), so that a whole cluster that comes back at once is not sent away."""


class Receiver(Protocol):
    """Who gets what trusted peers say. Called on the loop; must not block."""

    def connected(self, peer: Peer) -> None:
        """A peer is trusted: `peer.send` works. One with `client` 0 is a coordinator."""
        ...

    def received(self, peer: Peer, calls: list[Message]) -> None:
        """The messages of one frame, in order: Call from clients, Poke, StripeHosts from coordinators. None after
        `disconnected`."""
        ...

    def disconnected(self, peer: Peer) -> None:
        """Exactly once after each `connected`. A newer connection of the same client may have come before it."""
        ...

    async def admit(self, client: int) -> int | None:
        """Register a new client (0) and return its ID, or return `client` when its session is known, None when it has
        expired. Raises `StoreError` when the store does not answer: the client is asked to come back."""
        ...


class ServerConnection(Connection):
    """One client or coordinator, as the host sees it. Implements `Peer` (sharding/messages.py)."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.settings, server.world)
        self._server = server
        self._host_handshake = HostHandshake(server.terms, server.token, server.world.entropy(NONCE_BYTES))
        self._hello: Hello | None = None
        self._grant = Grant(Credit(0, 0), server.settings.window_commands, server.settings.window_bytes)
        self._client = 0
        self._told = False
        """The receiver knows of this peer."""
        self._held = False
        self._admitting = False
        self._lost = False
        self.name = "?"
        """Where it came from, for logs."""

    @property
    def client(self) -> int:
        return self._client

    @property
    def generation(self) -> int:
        return 0 if self._hello is None else self._hello.generation

    def reply(self, call: Call, message: Answer | Moved | OutOfOrder) -> None:
        self.send(message)
        if self._grant.give_back(len(call.arguments)):
            self.send(self._grant.credit())

    def forget(self, call: Call) -> None:
        if self._grant.give_back(len(call.arguments)):
            self.send(self._grant.credit())

    def narrow(self, share: float) -> None:
        """Grant only this share of the window from now on; 1: all. A host has all: a turn may wait for its asks."""
        if self._hello is not None and self._grant.narrow(1.0 if self._hello.role == "host" else share):
            self.send(self._grant.credit())

    @property
    def grant(self) -> Grant:
        """What it may send, and what of that is not answered yet."""
        return self._grant

    def hold(self) -> None:
        """Read nothing more from this peer until `release`: it is over its budget."""
        self._held = True
        self.steer()

    def release(self) -> None:
        self._held = False
        self.steer()

    def steer(self) -> None:
        """Read, or do not, as the server and this connection are held or not."""
        self._steer_reading()

    @property
    def unproved(self) -> bool:
        return not self._host_handshake.proved

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.name = str(transport.get_extra_info("peername"))
        full = self._server.arrived(self)
        if full:
            self.turn_away(full)
            if self._server.connections > CONNECTIONS_MAX + UNPROVED_MAX:
                self._transport.abort()  # a flood: not even the last words are waited for

    def turn_away(self, reason: str) -> None:
        """Refuse a handshake that is not over yet: not now."""
        self._perform(self._host_handshake.refuse(Refusal.BUSY, reason))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost = True
        self._leave()

    def _leave(self) -> None:
        # A connection whose session is still being looked up keeps its place: a stuck store must not let them pile up.
        if self._lost and not self._admitting:
            self._server.left(self)

    @property
    def _handshake(self) -> HostHandshake:
        return self._host_handshake

    def _unsent(self, waiting: int) -> None:
        self._server.unsent(self, waiting)

    def _wants_reading(self) -> bool:
        if self.unproved:
            return True  # its handshake goes on, and is bounded by itself
        if self._hello is not None and self._hello.role != "client":
            return not self._write_paused  # a turn waits for what a host asks: the rest would wait for that turn
        return not (self._write_paused or self._held or self._server.held)

    def _handshake_late(self) -> None:
        # A proved peer waits for the store, not we for it; its own time-out decides how long.
        if self.unproved:
            super()._handshake_late()

    def _admit(self, client: int) -> None:
        self._server.proved(self)
        self._admitting = True
        self._world.spawn(self._admitted(client), f"admit client {client or 'new'}")

    async def _admitted(self, client: int) -> None:
        try:
            effects = self._host_handshake.admitted(await self._server.receiver.admit(client))
            self._server.sessions.worked(self._world.monotonic(), "sessions are looked up again, after %.1f s")
        except StoreError as error:
            what = "%s: cannot look up the session of client %d: %s"
            self._server.sessions.failed(self._world.monotonic(), what, self.name, client, error)
            effects = self._host_handshake.refuse(Refusal.BUSY, "the store does not answer: try again")
        except Exception:  # noqa: BLE001 - logged, and the peer must not wait for ever for what will not come
            _log.exception("%s: looking up the session of client %d failed", self.name, client)
            effects = self._host_handshake.refuse(Refusal.BUSY, "the host met an unexpected error: see its log")
        finally:
            self._admitting = False
            self._leave()
        self._perform(effects)

    def _opened(self, welcome: Welcome) -> None:
        hello = self._host_handshake.hello
        assert hello is not None
        self._hello = hello
        self._client = welcome.client
        self._server.proved(self)
        coordinator = hello.role == "coordinator"
        self._trust(FROM_COORDINATOR if coordinator else FROM_CLIENT, hello.frame_bytes_max)
        self._told = True
        limits = Credit(welcome.window_commands, welcome.window_bytes)
        self._grant = Grant(limits, self._settings.window_commands, self._settings.window_bytes)
        self._server.receiver.connected(self)
        self.narrow(self._server.window_share)
        self.steer()  # the server may be held

    def _arrived(self, messages: list[Any]) -> None:
        sizes = [len(message.arguments) for message in messages if type(message) is Call]
        if sizes and not self._grant.take(len(sizes), sum(sizes), sizes[-1]):
            self.close(
                f"more was sent than the {self._grant.commands} calls and {self._grant.bytes} bytes of arguments that "
                f"were granted: nothing of the last {len(sizes)} calls ran; those before may have run"
            )
            return
        self._server.receiver.received(self, messages)

    def _refused(self, end: End) -> None:
        _log.info("%s: refused (%s): %r", self.name, end.refusal.name, end.reason)
        super()._refused(end)

    def _ended(self, reason: str) -> None:
        if self._told:
            _log.info("%s: client %d left: %r", self.name, self._client, reason)
            self._server.receiver.disconnected(self)


class Server:
    """The listener of one host, and its connections."""

    def __init__(
        self,
        receiver: Receiver,
        *,
        app: str,
        shards: int,
        stripe: Stripe = ONLY,
        token: Token,
        settings: Settings,
        network: Network,
        world: World,
        software: str = "",
    ) -> None:
        self.receiver = receiver
        self.token = token
        self.settings = settings
        self.world = world
        self.sessions = Outage(_log)
        """Whether those of new clients can be looked up."""
        self.terms = HostTerms(
            app=app,
            incarnation=0,
            shards=shards,
            stripe=stripe.index,
            stripes=stripe.count,
            window_commands=settings.window_commands,
            window_bytes=settings.window_bytes,
            shard_window=settings.shard_window,
            mailbox_commands_max=settings.mailbox_commands_max,
            arguments_bytes_max=settings.arguments_bytes_max,
            frame_bytes_max=settings.frame_bytes_max,
            software=software,
        )
        self._network = network
        self._listener: Listener | None = None
        # Dictionaries, for their order: what is done to all is done in the order in which they came.
        self._connections: dict[ServerConnection, None] = {}
        self._unproved: dict[ServerConnection, None] = {}
        self._slow: dict[ServerConnection, int] = {}
        """What waited for those that did not take all at once, when it was looked at last."""
        self._unsent_bytes = 0
        """Their sum: never less than what waits."""
        self.held = False
        """No client is read from."""
        self.window_share = 1.0
        """Of the window of each client, what is granted now."""

    async def listen(self, host: str, port: int) -> str:
        """Take the port (0: any free one) and return the address. Raises `OSError` when it cannot."""
        assert self._listener is None, "a server listens once"
        self._listener = await self._network.listen(lambda: ServerConnection(self), host, port)
        return self._listener.address

    def serve(self, incarnation: int) -> None:
        """From now on peers are let in, as guests of this incarnation."""
        self.terms = msgspec.structs.replace(self.terms, incarnation=incarnation)

    @property
    def connections(self) -> int:
        """Open sockets, those in their handshake included."""
        return len(self._connections)

    @property
    def unproved(self) -> int:
        """Those that have not proved the token yet."""
        return len(self._unproved)

    @property
    def unanswered(self) -> tuple[int, int]:
        """Calls that came over the open connections and are neither answered nor sent back, and the bytes of their
        arguments."""
        grants = [connection.grant for connection in self._connections]
        return sum(grant.held_commands for grant in grants), sum(grant.held_bytes for grant in grants)

    def hold(self, held: bool = True) -> None:
        """Stop reading from all clients: the host is over its budget. They notice by waiting. False: go on."""
        self.held = held
        for connection in self._connections:
            connection.steer()

    def narrow(self, share: float) -> None:
        """Grant every client only this share of its window from now on; 1: all of it."""
        if share == self.window_share:
            return
        self.window_share = share
        settings = self.settings
        self.terms = msgspec.structs.replace(
            self.terms,
            window_commands=max(1, int(settings.window_commands * share)),
            window_bytes=max(1, int(settings.window_bytes * share)),
        )
        for connection in self._connections:
            connection.narrow(share)

    def close(self, reason: str) -> None:
        """Say Goodbye to all, and stop listening. Only for a process that ends: see the rule above."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.turn_away(reason)
            connection.close(reason)

    # ---- what its connections tell it ------------------------------------------------------------------------

    def arrived(self, connection: ServerConnection) -> str:
        """A new connection. Return why it cannot stay, or nothing."""
        self._connections[connection] = None
        if len(self._connections) > CONNECTIONS_MAX:
            return f"this host has its {CONNECTIONS_MAX} connections: try another one, or later"
        self._unproved[connection] = None
        if len(self._unproved) > UNPROVED_MAX:
            oldest = next(iter(self._unproved))
            del self._unproved[oldest]
            oldest.turn_away("too many handshakes at once: try again")
        return ""

    def unsent(self, connection: ServerConnection, waiting: int) -> None:
        """So many bytes wait for a peer. Above the host's bound the one with the most is dropped; what it asked for is
        recorded, it comes back and asks again."""
        self._unsent_bytes += waiting - self._slow.get(connection, 0)
        self._slow[connection] = waiting
        if self._unsent_bytes > self.settings.unsent_bytes_max:
            self._count_unsent()
            while self._unsent_bytes > self.settings.unsent_bytes_max:
                slowest = max(self._slow, key=self._slow.__getitem__)
                self._unsent_bytes -= self._slow.pop(slowest)
                slowest.drop()

    def _count_unsent(self) -> None:
        """What waits now: the peers took some of it since it was written."""
        slow = {connection: connection.unsent_bytes for connection in self._slow}
        self._slow = {connection: size for connection, size in slow.items() if size > UNSENT_BYTES}
        self._unsent_bytes = sum(self._slow.values())

    def proved(self, connection: ServerConnection) -> None:
        self._unproved.pop(connection, None)

    def left(self, connection: ServerConnection) -> None:
        self._connections.pop(connection, None)
        self._unproved.pop(connection, None)
        self._unsent_bytes -= self._slow.pop(connection, 0)
