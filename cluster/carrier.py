"""The carrier: what every sender of calls needs: it finds the hosts, and keeps each lane going until all is answered.

    backlog --room in its window--> lane --credits--> link to the shard's owner --> answer
                                      |   ^
                                      |   `-- the owner is known
                                      `------ Moved / lost connection / no route: the lane is held, then everything
                                              unanswered in it is sent again, in order, before anything new

Owners are learned from table pushes and `Moved`; a wrong guess costs a redirect. Retries wait with jittered exponential
backoff, and are a share of the traffic (retry_budget.py). A full mailbox holds its entity only (lanes.py). One carrier
is one session: it speaks to each host over one connection, and sends as much as that host grants (credits.py). What is
sent, what an answer means and when to give up is its subclasses' business: Client (client.py) and HostCourier
(courier.py).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from ..actors.errors import AtollError, Unavailable
from ..actors.settings import Settings
from ..persistence.stripes import Stripe
from ..sharding.messages import Answer, Credit, Message, Moved, OutOfOrder, Poke, StripeHosts, TableUpdate
from ..sharding.retries import pause_s
from ..sharding.table import ShardTable
from .handshake import Refusal
from .lanes import EntityKey, Lane, lane_key
from .link import Access, Link
from .retry_budget import RetryBudget
from .wire import ANY_APP, Role, Welcome

log = logging.getLogger("atoll.client")

Discover = Callable[[], Awaitable[Sequence[str]]]

CLOSING = "the client closes"

L = TypeVar("L", bound=Lane[Any])


class Carrier(ABC, Generic[L]):
    def __init__(
        self,
        access: Access,
        addresses: Sequence[str],
        discover: Discover | None = None,
        role: Role = "client",
        stripe: Stripe | None = None,
    ) -> None:
        """`addresses`: hosts to begin with, `host:port`; more are learned from them. `discover`: asked for addresses
        when none of the known ones answers any more (Ray's list of actors, a name service). `role`: as which it
        introduces itself. `stripe`: the only one whose hosts it speaks to; None: that of the first one who answers."""
        self._role: Role = role
        self._stripe = stripe
        self.stripe_hosts: Sequence[Sequence[str]] = ()
        """Where the hosts of each stripe listen, as a host said last."""
        self.heard_stripe_hosts: Callable[[Sequence[Sequence[str]]], None] | None = None
        """Told when one says so."""
        self._told: Sequence[str] = ()
        """Addresses that hosts of other stripes know of."""
        self._access = access
        self._settings = access.settings
        self._world = access.world
        self._seeds = list(addresses)
        self._discover = discover
        self._discovering = False
        self._loop = asyncio.get_running_loop()
        self._client = 0
        self._generation = 0
        self._shards = 0
        self._table = ShardTable()
        self._lanes: dict[int, L] = {}
        """By `lane_key`."""
        self._lane_width = self._width(access.settings)
        self._to_poke: dict[str, list[tuple[int, int]]] = {}
        """Hosts to be poked once there is a connection, and what they may claim."""
        self._links: dict[str, Link] = {}
        """Welcomed ones, by address."""
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._registering = asyncio.Lock()
        self._handshakes: dict[Link, asyncio.Future[None]] = {}
        self._blocked: dict[Link, OrderedDict[L, None]] = {}
        """Lanes that have something to send and wait for their host's credits."""
        self._retry_budget = RetryBudget(access.world.monotonic())
        self._closed = False
        self._refused: AtollError | None = None
        """Why no host will ever let us in (wrong token, another app, another version)."""
        self._changed = asyncio.Event()
        """Something was learned: an owner, or a host that lets us in."""

    # ---- what the two senders fill in ------------------------------------------------------------------------------

    @abstractmethod
    def _width(self, settings: Settings) -> int:
        """How many numbers of one lane may be at or above its floor."""

    @abstractmethod
    def _answered(self, link: Link, answer: Answer) -> None:
        """Settle what has its answer, or hold its lane. It may be an answer to what is no longer waited for."""

    @abstractmethod
    def _session_expired(self) -> None:
        """The hosts forgot this session, and what they knew of its numbers. The connections are closing, the next one
        registers anew; over that one lanes send what is unanswered again."""

    def _lost(self, lane: L) -> None:
        """Its connection closed, with commands under way. Matters to those whose callers are told what became of it."""

    def _resumes(self, lane: L, incarnation: int) -> None:
        """Everything unanswered in it is about to be sent again, to that host."""

    # ---- windows ---------------------------------------------------------------------------------------------------

    def _admit(self, lane: L, now: float) -> None:
        """Send what is to be sent again, then from the backlog, as the lane's window and the host's credits allow."""
        link = lane.link
        if link is None:
            if lane.retry is None:
                self._route(lane)
            return  # first what came back, over the new connection
        while lane.resend and (out := lane.next_again()) is not None:
            if not link.allowance.room:
                self._block(lane)
                return
            lane.resend.popleft()
            self._send(lane, out, now)
        mailbox_max = self._settings.mailbox_commands_max
        while True:
            queue = lane.next(self._lane_width, mailbox_max, now)
            if queue is None:
                return  # the next answer in this lane looks again
            if not link.allowance.room:
                self._block(lane)
                return
            out = queue.popleft()
            lane.enter(out)
            self._retry_budget.earn()
            if not lane.held or (out.request.kind, out.request.id) not in lane.held:
                self._send(lane, out, now)

    def _send(self, lane: L, out: Any, now: float) -> None:
        out.under_way = True
        lane.link.carry(lane.call(out, now, lane.prev(out)))

    def _block(self, lane: L) -> None:
        """It has something to send: the next credit of its host looks again."""
        self._blocked.setdefault(lane.link, OrderedDict())[lane] = None

    def _credited(self, link: Link, credit: Credit) -> None:
        link.allowance.granted(credit)
        blocked = self._blocked.get(link)
        if blocked is None:
            return
        now = self._world.monotonic()
        for _ in range(len(blocked)):
            if not link.allowance.room:
                return
            self._admit(blocked.popitem(last=False)[0], now)  # lane by lane: a busy one starves no other

    def _settle(self, lane: L, number: int, *, answered: bool = False) -> None:
        """It has its answer, or was given up: make room."""
        out = lane.settle(number)
        if out is None:
            return
        if answered and lane.held:
            self._release_entity(lane, (out.request.kind, out.request.id))
        if lane.waits:
            self._admit(lane, self._world.monotonic())

    # ---- routes ----------------------------------------------------------------------------------------------------

    def _route(self, lane: L) -> None:
        """Find the lane's connection; send everything unanswered over it, then what is new. Hold the lane if there is
        none."""
        if lane.retry is not None:
            lane.retry.cancel()
            lane.retry = None
        if self._closed or not (lane.unanswered or lane.waits):
            self._detach(lane)
            return
        route = self._table.route(lane.shard)
        link = self._links.get(route.address) if route is not None else None
        if link is None:
            self._detach(lane)
            if route is not None:
                self._dial(route.address)
            if not self._links:
                self._seek_hosts()  # nobody to learn the owner from
            self._hold(lane)
            return
        self._detach(lane)  # from the connection so far, if it has one
        lane.link = link
        assert route is not None
        self._resumes(lane, route.incarnation)
        lane.all_again()
        self._admit(lane, self._world.monotonic())

    def _detach(self, lane: L) -> None:
        """It has no connection: nothing of it is under way."""
        if lane.link is None:
            return
        blocked = self._blocked.get(lane.link)
        if blocked is not None:
            blocked.pop(lane, None)
        lane.link = None
        lane.resend.clear()
        for out in lane.unanswered.values():
            out.under_way = False

    def _hold(self, lane: L) -> None:
        """Send nothing in this lane until a pause is over (or news of its owner comes), then everything again."""
        self._detach(lane)
        if lane.retry is None:
            lane.retries += 1
            lane.retry = self._loop.call_later(self._pause_s(lane.retries), self._retry, lane)

    def _retry(self, lane: L) -> None:
        lane.retry = None
        if self._retry_budget.spend(len(lane.unanswered), self._world.monotonic()):
            self._route(lane)
        else:
            lane.retry = self._loop.call_later(self._pause_s(lane.retries), self._retry, lane)

    # ---- full mailboxes --------------------------------------------------------------------------------------------

    def _hold_entity(self, lane: L, out: Any, *, out_of_order: bool = False) -> None:
        """It came back, and nothing is wrong with the lane: send nothing to its entity until a pause is over."""
        held = lane.hold(out, out_of_order=out_of_order)
        key = (out.request.kind, out.request.id)
        for later in lane.from_held(key):
            later.under_way = False
        if held.retry is None:
            held.retries += 1
            held.retry = self._loop.call_later(self._pause_s(held.retries), self._retry_entity, lane, key)

    def _retry_entity(self, lane: L, key: EntityKey) -> None:
        """Try the oldest that was bounced; with no connection, the lane does so when it has one."""
        held = lane.held[key]
        held.retry = None
        if lane.link is None:
            return
        now = self._world.monotonic()
        if self._retry_budget.spend(1, now):
            lane.resend.append(lane.from_held(key)[0])
            self._admit(lane, now)
        else:
            held.retry = self._loop.call_later(self._pause_s(held.retries), self._retry_entity, lane, key)

    def _release_entity(self, lane: L, key: EntityKey) -> None:
        """The entity gave an answer: its mailbox has room again. Send what is held, in order, before anything new."""
        held = lane.held.get(key)
        if held is None:
            return
        held.cancel()
        rest = lane.from_held(key)
        del lane.held[key]
        if lane.link is not None:
            lane.resend.extend(rest)

    def _pause_s(self, retries: int) -> float:
        return pause_s(self._world, self._settings.retry_first_s, self._settings.retry_max_s, retries)

    def _learn(self, entries: Sequence[tuple[int, int, int, str]]) -> None:
        news = {shard: address for shard, _, _, address in self._table.merge(entries)}
        if news:
            for lane in self._lanes.values():
                address = news.get(lane.shard)
                if address is None or (lane.link is not None and lane.link.address == address):
                    continue
                self._route(lane)
        self._changed.set()

    def _opened_there(self, link: Link, entries: Sequence[tuple[int, int, int, str]]) -> None:
        """A host names itself only for what it serves now. That it would was known before, perhaps, and what was sent
        to it too early came back: no reason to wait any longer."""
        serves = {shard for shard, _, _, address in entries if address == link.address}
        if serves:
            for lane in self._lanes.values():
                if lane.retry is not None and lane.shard in serves:
                    self._route(lane)

    def _bounced(self, link: Link, bounce: Moved | OutOfOrder) -> None:
        lane = self._lanes.get(lane_key(bounce.sender, bounce.shard))
        out = lane.unanswered.get(bounce.number) if lane is not None else None
        if lane is None or out is None:
            return
        out.outstanding -= 1
        if lane.link is link:
            if type(bounce) is OutOfOrder:
                self._hold_entity(lane, out, out_of_order=True)
            else:
                self._hold(lane)
        if type(bounce) is Moved and bounce.address:
            self._learn(((bounce.shard, bounce.epoch, bounce.incarnation, bounce.address),))

    # ---- connections -----------------------------------------------------------------------------------------------

    def _dial(self, address: str) -> None:
        if not address or address in self._links or address in self._dialing or self._closed:
            return
        task = self._world.spawn(self._connect(address), f"atoll-dial-{address}")
        self._dialing[address] = task
        task.add_done_callback(lambda _: self._dialing.pop(address, None))

    def seek(self) -> None:
        """Have a connection to begin with."""
        if not self._links:
            self._seek_hosts()

    def seek_at(self, addresses: Sequence[str]) -> None:
        """Its stripe has hosts there: look for them there, too, from now on, and not where it was told before."""
        self._told = addresses
        if not self._links and self._lanes:
            self._seek_hosts()

    def connect_to(self, address: str) -> None:
        """Have a connection there, if there can be one."""
        self._dial(address)

    def poke(self, address: str, assigned: Sequence[tuple[int, int]] = ()) -> None:
        """Let a host look at the store now, and claim these. A hint: nothing is lost when it does not arrive."""
        link = self._links.get(address)
        if link is not None:
            link.send(Poke(tuple(assigned)))
        elif not self._closed:
            self._to_poke.setdefault(address, []).extend(assigned)
            self._dial(address)

    def _seek_hosts(self) -> None:
        """Dial every address there is any reason to believe in."""
        for address in (*self._seeds, *self._told, *self._table.addresses()):
            self._dial(address)
        if self._discover is not None and not self._discovering:
            self._discovering = True
            self._world.spawn(self._discovered(self._discover), "atoll-discover")

    async def _discovered(self, discover: Discover) -> None:
        try:
            for address in await discover():
                self._dial(address)
        except (AtollError, OSError) as error:
            log.info("no hosts were discovered: %s", error)
        finally:
            self._discovering = False

    async def _connect(self, address: str) -> None:
        try:
            if not self._client:
                async with self._registering:  # the first connection brings the client ID that all others name
                    if not self._client:
                        await self._open_link(address)
                        return
            await self._open_link(address)
        except (OSError, ValueError) as error:
            log.debug("no connection to %s: %s", address, error)

    async def _open_link(self, address: str) -> None:
        self._generation += 1
        link = Link(
            self,
            address,
            self._access,
            role=self._role,
            client=self._client,
            generation=self._generation,
            stripe=None if self._stripe is None else self._stripe.index,
        )
        await link.open()
        if self._links.get(address) is link or link.closing:
            return  # the handshake was over before this task came back
        over = self._handshakes[link] = self._loop.create_future()
        try:
            await over
        finally:
            del self._handshakes[link]

    def _handshake_over(self, link: Link) -> None:
        over = self._handshakes.get(link)
        if over is not None and not over.done():
            over.set_result(None)

    def _hang_up(self) -> None:
        """Close the connections and let nothing leave any more."""
        self._closed = True
        for task in list(self._dialing.values()):
            task.cancel()
        for lane in self._lanes.values():
            self._quiet(lane)
        for link in list(self._links.values()):
            link.close(CLOSING)

    def _quiet(self, lane: L) -> None:
        """Send nothing of that lane by itself any more."""
        self._detach(lane)
        if lane.retry is not None:
            lane.retry.cancel()
        for held in lane.held.values():
            held.cancel()

    # LinkListener

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        if self._closed:  # it was in its handshake meanwhile
            link.close(CLOSING)
            return
        self._client = welcome.client
        self._shards = welcome.shards
        self._stripe = Stripe(welcome.stripe, welcome.stripes)
        settings = msgspec.structs.replace(  # the host's bounds, whatever this process was told
            self._settings,
            shard_window=welcome.shard_window,
            mailbox_commands_max=welcome.mailbox_commands_max,
            arguments_bytes_max=welcome.arguments_bytes_max,
        )
        access = self._access
        # References are pickled under the app's real name.
        app_name = welcome.app if access.app_name == ANY_APP else access.app_name
        self._access = msgspec.structs.replace(access, app_name=app_name, settings=settings)
        self._settings = settings
        self._lane_width = self._width(settings)
        self._links[link.address] = link
        self._handshake_over(link)
        self._changed.set()
        assigned = self._to_poke.pop(link.address, None)
        if assigned is not None:
            link.send(Poke(tuple(assigned)))
        for lane in self._lanes.values():
            route = self._table.route(lane.shard)
            if route is not None and route.address == link.address and (lane.unanswered or lane.waits):
                self._route(lane)

    def closed(self, link: Link, reason: str) -> None:
        self._handshake_over(link)
        if link.refusal is Refusal.SESSION_EXPIRED:
            if link.client == self._client:  # of several connections that are told so, the others come too late
                self._begin_anew()
        elif link.refusal is Refusal.STRIPE:
            log.info("not looked for at %s any more: %s", link.address, reason)
            self._seeds = [address for address in self._seeds if address != link.address]
        elif link.refusal is not None and not link.refusal.temporary:
            self._refused = Unavailable(f"{link.address} refuses: {reason}")
        self._blocked.pop(link, None)
        if self._links.get(link.address) is link:
            del self._links[link.address]
            log.info("connection to %s closed: %s", link.address, reason)
        for lane in self._lanes.values():
            if lane.link is link:
                self._lost(lane)
                self._detach(lane)
                if lane.unanswered or lane.waits:
                    self._hold(lane)
        if not self._closed and not self._links and link.refusal is None:
            self._seek_hosts()  # to hear of the new owners as soon as there are any

    def _begin_anew(self) -> None:
        log.warning("the session of client %d expired: registering anew", self._client)
        self._client = 0
        self._generation = 0
        for link in list(self._links.values()):
            link.close("the session expired")
        self._session_expired()

    def received(self, link: Link, messages: list[Message]) -> None:
        for message in messages:
            if type(message) is Answer:
                self._answered(link, message)
            elif type(message) is Moved or type(message) is OutOfOrder:
                self._bounced(link, message)
            elif type(message) is Credit:
                self._credited(link, message)
            elif type(message) is TableUpdate:
                self._learn(message.entries)
                self._opened_there(link, message.entries)
            elif type(message) is StripeHosts:
                self.stripe_hosts = message.addresses
                if self.heard_stripe_hosts is not None:
                    self.heard_stripe_hosts(message.addresses)
