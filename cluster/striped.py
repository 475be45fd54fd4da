"""Senders to an app that lies in several databases: one client, or courier, per stripe behind the one that is called.

    call, message --> stripe of its shard --> Client / HostCourier of that stripe --> hosts of that stripe

Each stripe is a cluster of its own, with sessions, hosts and owners of its own; so each sender here has one session.
What goes to a stripe whose hosts nobody knows yet waits, as it does where there is no owner; the rest goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from ..actors.calls import Request
from ..actors.stored import StoredMessage
from ..persistence.stripes import stripe_of
from ..sharding.hashing import shard_of
from ..sharding.table import Route
from .client import Client
from .courier import HostCourier


class StripedClient:
    """Implements `Caller` (actors/calls.py)."""

    def __init__(self, clients: Sequence[Client], shards: int) -> None:
        """`clients`: one per stripe, in order, all of which know theirs. `shards`: of the app."""
        self._clients = clients
        self._shards = shards
        for client in clients:
            client.heard_stripe_hosts = self.tell
        self.tell(max((client.stripe_hosts for client in clients), key=len))

    @classmethod
    def beside(cls, first: Client, addresses: Sequence[str]) -> StripedClient:
        """With a client that is open; the others are made, and find their hosts at these `addresses` or are told."""
        own, shards = first.stripe, first.shards
        clients = [first if index == own.index else first.of_stripe(index, addresses) for index in range(own.count)]
        for client in clients:
            client.seek()  # what is asked of it first need not wait for a connection
        return cls(clients, shards)

    def tell(self, addresses: Sequence[Sequence[str]]) -> None:
        """Where the hosts of each stripe listen."""
        for client, hosts in zip(self._clients, addresses, strict=False):  # nothing was heard yet: none
            client.seek_at(hosts)

    @property
    def app_name(self) -> str:
        return self._clients[0].app_name

    def route(self, shard: int) -> Route | None:
        """Where that shard is served, as far as is known here."""
        return self._clients[stripe_of(shard, len(self._clients))].route(shard)

    async def call(self, request: Request) -> bytes:
        shard = shard_of(request.id, self._shards)
        return await self._clients[stripe_of(shard, len(self._clients))].call(request)

    async def table_complete(self) -> None:
        """Wait until an owner is known for every shard."""
        await asyncio.gather(*(client.table_complete() for client in self._clients))

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class StripedCourier:
    """Implements `Courier` (sharding/outbox.py)."""

    def __init__(self, couriers: Sequence[HostCourier], own: int, shards: int) -> None:
        """`couriers`: one per stripe, in order; `own`: the stripe of the host. `shards`: of the app."""
        self._couriers = couriers
        self._own = couriers[own]
        self._shards = shards

    def tell(self, addresses: Sequence[Sequence[str]]) -> None:
        """Where the hosts of each stripe listen."""
        for courier, hosts in zip(self._couriers, addresses, strict=False):
            courier.seek_at(hosts)

    def carry(
        self,
        sending_shard: int,
        epoch: int,
        number: int,
        message: StoredMessage,
        arrived: Callable[[int], None],
        again: bool = False,
    ) -> None:
        courier = self._couriers[stripe_of(shard_of(message.id, self._shards), len(self._couriers))]
        courier.carry(sending_shard, epoch, number, message, arrived, again)

    def drop(self, sending_shard: int) -> None:
        for courier in self._couriers:
            courier.drop(sending_shard)

    def connect_to(self, address: str) -> None:
        self._own.connect_to(address)

    def poke(self, address: str, assigned: Sequence[tuple[int, int]] = ()) -> None:
        self._own.poke(address, assigned)

    def close(self) -> None:
        for courier in self._couriers:
            courier.close()
