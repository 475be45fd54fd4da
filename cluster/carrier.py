"""The carrier: what every sender of calls needs: it finds the hosts, and keeps each lane going until all is answered.

    backlog --room in the windows--> lane --> link to the shard's owner --> answer
                                      |   ^
                                      |   `-- the owner is known
                                      `------ Moved / OutOfOrder / lost connection / no route: the lane is held, then
                                              everything unanswered in it is sent again, in order, before anything new

Owners are learned from table pushes and `Moved`; a wrong guess costs a redirect. Retries wait with jittered exponential
backoff. One carrier is one session: it speaks to each host over one connection. What is sent, what an answer means and
when to give up is its subclasses' business: Client (client.py) and HostCourier (courier.py).
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
from ..sharding.messages import Answer, Message, Moved, OutOfOrder, Poke, TableUpdate
from ..sharding.retries import pause_s
from ..sharding.table import ShardTable
from .handshake import Refusal
from .lanes import Lane, lane_key
from .link import Access, Link
from .wire import ANY_APP, Welcome

log = logging.getLogger("atoll.client")

Discover = Callable[[], Awaitable[Sequence[str]]]

CLOSING = "the client closes"

L = TypeVar("L", bound=Lane[Any])


class Carrier(ABC, Generic[L]):
    def __init__(self, access: Access, addresses: Sequence[str], discover: Discover | None = None) -> None:
        """`addresses`: hosts to begin with, `host:port`; more are learned from them. `discover`: asked for addresses
        when none of the known ones answers any more (Ray's list of actors, a name service)."""
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
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._blocked: OrderedDict[L, None] = OrderedDict()
        """Lanes with a backlog that wait for room in the session's own window."""
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

    # ---- windows ---------------------------------------------------------------------------------------------------

    def _admit(self, lane: L, now: float) -> None:
        """Send from the backlog what the windows have room for."""
        settings = self._settings
        backlog = lane.backlog
        while backlog:
            out = backlog[0]
            if not lane.room(out, self._lane_width, settings.mailbox_commands_max):
                return  # the next answer in this lane looks again
            size = len(out.request.arguments)
            if self._unanswered >= settings.window_commands or (
                self._unanswered and self._unanswered_bytes + size > settings.window_bytes
            ):
                self._blocked[lane] = None
                return
            backlog.popleft()
            lane.enter(out)
            self._unanswered += 1
            self._unanswered_bytes += size
            link = lane.link
            if link is not None:
                link.send(lane.call(out, now, lane.newest_before(out)))
            elif lane.retry is None:
                self._route(lane)

    def _settle(self, lane: L, number: int) -> None:
        """It has its answer, or was given up: make room."""
        out = lane.settle(number)
        if out is None:
            return
        self._unanswered -= 1
        self._unanswered_bytes -= len(out.request.arguments)
        if lane.backlog:
            self._blocked[lane] = None
        if self._blocked:
            self._admit_blocked()

    def _admit_blocked(self) -> None:
        now = self._world.monotonic()
        for _ in range(len(self._blocked)):
            if self._unanswered >= self._settings.window_commands:
                break
            self._admit(self._blocked.popitem(last=False)[0], now)  # lane by lane: a busy one starves no other

    # ---- routes ----------------------------------------------------------------------------------------------------

    def _route(self, lane: L) -> None:
        """Find the lane's connection and send everything unanswered over it; hold the lane if there is none."""
        if lane.retry is not None:
            lane.retry.cancel()
            lane.retry = None
        if not lane.unanswered or self._closed:
            lane.link = None
            return
        route = self._table.route(lane.shard)
        link = self._links.get(route.address) if route is not None else None
        if link is None:
            lane.link = None
            if route is not None:
                self._dial(route.address)
            if not self._links:
                self._seek_hosts()  # nobody to learn the owner from
            self._hold(lane)
            return
        lane.link = link
        for call in lane.again(self._world.monotonic()):
            link.send(call)

    def _hold(self, lane: L) -> None:
        """Send nothing in this lane until a pause is over (or news of its owner comes), then everything again."""
        lane.link = None
        if lane.retry is None:
            lane.retries += 1
            lane.retry = self._loop.call_later(self._pause_s(lane.retries), self._retry, lane)

    def _retry(self, lane: L) -> None:
        lane.retry = None
        self._route(lane)

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
        for address in (*self._seeds, *self._table.addresses()):
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
        link = Link(self, address, self._access, client=self._client, generation=self._generation)
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
            lane.link = None
            if lane.retry is not None:
                lane.retry.cancel()
        for link in list(self._links.values()):
            link.close(CLOSING)

    # LinkListener

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        if self._closed:  # it was in its handshake meanwhile
            link.close(CLOSING)
            return
        self._client = welcome.client
        self._shards = welcome.shards
        settings = msgspec.structs.replace(  # the host's bounds, whatever this process was told
            self._settings,
            window_commands=welcome.window_commands,
            window_bytes=welcome.window_bytes,
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
            if route is not None and route.address == link.address and lane.unanswered:
                self._route(lane)

    def closed(self, link: Link, reason: str) -> None:
        self._handshake_over(link)
        if link.refusal is Refusal.SESSION_EXPIRED:
            if link.client == self._client:  # of several connections that are told so, the others come too late
                self._begin_anew()
        elif link.refusal is not None and not link.refusal.temporary:
            self._refused = Unavailable(f"{link.address} refuses: {reason}")
        if self._links.get(link.address) is link:
            del self._links[link.address]
            log.info("connection to %s closed: %s", link.address, reason)
        for lane in self._lanes.values():
            if lane.link is link:
                lane.link = None
                if lane.unanswered:
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
            elif type(message) is TableUpdate:
                self._learn(message.entries)
                self._opened_there(link, message.entries)
