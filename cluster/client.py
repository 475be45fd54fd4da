"""The client: carries requests to the hosts that own their shards, and resends until each has one answer.

    call --> lane of its shard --> link to the owner --> Answer --> the caller
                 |   ^
                 |   `-- Moved / OutOfOrder / lost connection / full mailbox: the lane is held, then everything
                 |       unanswered in it is sent again, in order, before anything new
                 `------ deadline: given up; the error says whether it may have run

Owners are learned from table pushes and `Moved`; a wrong guess costs a redirect. All retries wait with jittered
exponential backoff and end with the deadlines of the commands. One client is one session: it speaks to each host over
one connection, and its numbers are its own, so a forked child must connect anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from ..actors.calls import Request, Status
from ..actors.codec import raise_for
from ..actors.errors import (
    AtollError,
    DeadlineExceeded,
    InvalidCommand,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    Unavailable,
)
from ..actors.settings import Settings
from ..actors.world import World
from ..sharding.hashing import shard_of
from ..sharding.messages import Answer, Message, Moved, OutOfOrder, TableUpdate
from ..sharding.table import ShardTable
from .handshake import Refusal
from .lanes import Lane, Outgoing
from .link import Link, open_link
from .network import Network
from .token import Token
from .wire import ANY_APP, Welcome

log = logging.getLogger("atoll.client")

Discover = Callable[[], Awaitable[Sequence[str]]]

DEADLINE_LOOK_S = 0.02
"""How exactly deadlines are kept: looking costs little, a timer per command would not."""
SESSION_EXPIRED = "the client's session expired while the command was under way"


class Client:
    """Implements `Caller` (actors/calls.py)."""

    def __init__(
        self,
        app_name: str,
        addresses: Sequence[str],
        *,
        token: Token,
        settings: Settings,
        world: World,
        network: Network,
        rejections: Mapping[str, type[Rejected]],
        software: str = "",
        discover: Discover | None = None,
    ) -> None:
        """`addresses`: hosts to begin with, `host:port`; more are learned from them. `discover`: asked for addresses
        when none of the known ones answers any more (Ray's list of actors, a name service)."""
        self._app_name = app_name
        self._seeds = list(addresses)
        self._discover = discover
        self._discovering = False
        self._token = token
        self._settings = settings
        self._world = world
        self._network = network
        self._rejections = rejections
        self._software = software
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._client = 0
        self._generation = 0
        self._shards = 0
        self._table = ShardTable()
        self._lanes: dict[int, Lane] = {}
        self._links: dict[str, Link] = {}
        """Welcomed ones, by address."""
        self._dialing: dict[str, asyncio.Task[None]] = {}
        self._registering = asyncio.Lock()
        self._handshakes: dict[Link, asyncio.Future[None]] = {}
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._blocked: OrderedDict[Lane, None] = OrderedDict()
        """Lanes with a backlog that wait for room in the client's own window."""
        self._deadlines: dict[int, deque[Outgoing]] = {}
        """By time-out (in looks, so that there are few), which keeps each in order of deadline."""
        self._look: asyncio.TimerHandle | None = None
        self._closed = False
        self._refused: AtollError | None = None
        """Why no host will ever let us in (wrong token, another app, another version)."""
        self._changed = asyncio.Event()

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def app_name(self) -> str:
        return self._app_name

    @property
    def table(self) -> ShardTable:
        return self._table

    @property
    def client_id(self) -> int:
        """The session's number; 0 before the first connection."""
        return self._client

    async def open(self, timeout_s: float) -> None:
        """Connect to the first host that answers. Raises `Unavailable` when none does in time, and the reason when one
        refuses for good (wrong token, another app)."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._links:
                    self._changed.clear()
                    self._seek_hosts()
                    if self._dialing:
                        await asyncio.wait(list(self._dialing.values()), return_when=asyncio.FIRST_COMPLETED)
                    if self._refused is not None:
                        raise self._refused
                    if not self._links:
                        await asyncio.sleep(self._pause(3))
        except TimeoutError:
            raise Unavailable(
                f"no host answers at {', '.join(self._seeds)} within {timeout_s:g} s: is the app running there?"
            ) from None

    async def close(self) -> None:
        """Close the connections. Commands still under way end with `OutcomeUnknown` (or `Unavailable`, never sent)."""
        self._closed = True
        for task in list(self._dialing.values()):
            task.cancel()
        if self._look is not None:
            self._look.cancel()
        for lane in self._lanes.values():
            if lane.retry is not None:
                lane.retry.cancel()
            for out in [*lane.unanswered.values(), *lane.backlog]:
                self._give_up(lane, out, "the client was closed")
        for link in list(self._links.values()):
            link.close("the client closes")

    async def table_complete(self) -> None:
        """Wait until an owner is known for every shard."""
        while not self._shards or len(self._table) < self._shards:
            self._changed.clear()
            await self._changed.wait()

    # ---- calls -----------------------------------------------------------------------------------------------------

    async def call(self, request: Request) -> bytes:
        settings = self._settings
        if len(request.arguments) > settings.arguments_bytes_max:
            raise InvalidCommand(
                f"the arguments have {len(request.arguments)} bytes, at most {settings.arguments_bytes_max} are allowed"
            )
        if self._closed or self._pid != os.getpid():
            raise Unavailable(
                "the client is closed"
                if self._closed
                else "this process was forked from the one that connected: connect here"
            )
        timeout_s = settings.command_timeout_s if request.timeout_s is None else request.timeout_s
        now = self._world.monotonic()
        out = Outgoing(request, now + timeout_s, self._loop.create_future())
        lane = self._lane(shard_of(request.id, self._shards))
        lane.backlog.append(out)
        if len(lane.backlog) == 1:
            self._admit(lane, now)
        if request.fail_fast and not out.number:
            lane.backlog.remove(out)
            raise Overloaded("the client's window is full", retry_after_s=self._settings.retry_max_s)
        self._watch(timeout_s, out)
        try:
            answer = await out.done
        except asyncio.CancelledError:
            self._forget(lane, out)
            raise
        if answer.status:  # everything but OK
            raise_for(Status(answer.status), answer.payload, self._rejections)
        return answer.payload

    def _lane(self, shard: int) -> Lane:
        lane = self._lanes.get(shard)
        if lane is None:
            lane = self._lanes[shard] = Lane(shard)
        return lane

    def _admit(self, lane: Lane, now: float) -> None:
        """Number and send what the windows have room for."""
        settings = self._settings
        backlog = lane.backlog
        while backlog:
            out = backlog[0]
            if not lane.room(out, settings.shard_window, settings.mailbox_commands_max):
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

    def _settle(self, lane: Lane, number: int) -> Outgoing | None:
        """It has its answer, or was given up: make room."""
        out = lane.settle(number)
        if out is None:
            return None
        self._unanswered -= 1
        self._unanswered_bytes -= len(out.request.arguments)
        if lane.backlog:
            self._blocked[lane] = None
        if self._blocked:
            now = self._world.monotonic()
            for _ in range(len(self._blocked)):
                if self._unanswered >= self._settings.window_commands:
                    break
                self._admit(self._blocked.popitem(last=False)[0], now)  # lane by lane: a busy one starves no other
        return out

    def _forget(self, lane: Lane, out: Outgoing) -> None:
        """Its caller no longer waits: the floor may pass it."""
        if out.number:
            self._settle(lane, out.number)
        elif out in lane.backlog:
            lane.backlog.remove(out)

    def _give_up(self, lane: Lane, out: Outgoing, why: str) -> None:
        self._forget(lane, out)
        if not out.done.done():
            out.done.set_exception(self._fate(out, why))

    def _fate(self, out: Outgoing, why: str) -> AtollError:
        request = out.request
        what = f"{request.kind}/{request.id}.{request.method}: {why}"
        if not out.outstanding:
            return Unavailable(f"{what}; it did not run")
        if request.query:
            return DeadlineExceeded(f"{what}; it was only a query")
        return OutcomeUnknown(f"{what}; it may have run: repeat it with the same command_id, or look at the entity")

    # ---- deadlines -------------------------------------------------------------------------------------------------

    def _watch(self, timeout_s: float, out: Outgoing) -> None:
        looks = int(timeout_s / DEADLINE_LOOK_S)
        queue = self._deadlines.get(looks)
        if queue is None:
            queue = self._deadlines[looks] = deque()
        while queue and queue[0].done.done():
            queue.popleft()
        queue.append(out)
        if self._look is None:
            self._look = self._loop.call_later(DEADLINE_LOOK_S, self._look_at_deadlines)

    def _look_at_deadlines(self) -> None:
        now = self._world.monotonic()
        for looks, queue in list(self._deadlines.items()):
            while queue and (queue[0].done.done() or queue[0].deadline <= now):
                out = queue.popleft()
                if not out.done.done():
                    lane = self._lane(shard_of(out.request.id, self._shards))
                    self._give_up(lane, out, f"no answer within {looks * DEADLINE_LOOK_S:g} s")
            if not queue:
                del self._deadlines[looks]
        self._look = None
        if self._deadlines and not self._closed:
            self._look = self._loop.call_later(DEADLINE_LOOK_S, self._look_at_deadlines)

    # ---- routes ----------------------------------------------------------------------------------------------------

    def _route(self, lane: Lane) -> None:
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

    def _hold(self, lane: Lane) -> None:
        """Send nothing in this lane until a pause is over (or news of its owner comes), then everything again."""
        lane.link = None
        if lane.retry is None:
            lane.retries += 1
            lane.retry = self._loop.call_later(self._pause(lane.retries), self._retry, lane)

    def _retry(self, lane: Lane) -> None:
        lane.retry = None
        self._route(lane)

    def _pause(self, retries: int) -> float:
        """Exponential backoff with full jitter (AWS Architecture Blog, 2015)."""
        settings = self._settings
        ceiling = min(settings.retry_max_s, settings.retry_first_s * 2.0 ** min(retries, 20))
        return self._world.random.uniform(0, ceiling)

    def _learn(self, entries: Sequence[tuple[int, int, int, str]]) -> None:
        for shard, _, _, address in self._table.merge(entries):
            lane = self._lanes.get(shard)
            if lane is not None and lane.unanswered and (lane.link is None or lane.link.address != address):
                self._route(lane)
            elif lane is not None and lane.link is not None and lane.link.address != address:
                lane.link = None
        self._changed.set()

    # ---- connections -----------------------------------------------------------------------------------------------

    def _dial(self, address: str) -> None:
        if not address or address in self._links or address in self._dialing or self._closed:
            return
        task = self._world.spawn(self._connect(address), f"atoll-dial-{address}")
        self._dialing[address] = task
        task.add_done_callback(lambda _: self._dialing.pop(address, None))

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
        link = await open_link(
            self._network,
            address,
            self,
            app=self._app_name,
            token=self._token,
            settings=self._settings,
            world=self._world,
            client=self._client,
            generation=self._generation,
            software=self._software,
        )
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

    # LinkListener

    def welcomed(self, link: Link, welcome: Welcome) -> None:
        self._client = welcome.client
        self._shards = welcome.shards
        if self._app_name == ANY_APP:
            self._app_name = welcome.app  # references are pickled under its real name
        self._settings = msgspec.structs.replace(  # the host's bounds, whatever this process was told
            self._settings,
            window_commands=welcome.window_commands,
            window_bytes=welcome.window_bytes,
            shard_window=welcome.shard_window,
            mailbox_commands_max=welcome.mailbox_commands_max,
            arguments_bytes_max=welcome.arguments_bytes_max,
        )
        self._links[link.address] = link
        self._handshake_over(link)
        self._changed.set()
        for lane in self._lanes.values():
            route = self._table.route(lane.shard)
            if route is not None and route.address == link.address and lane.unanswered:
                self._route(lane)

    def closed(self, link: Link, reason: str) -> None:
        self._handshake_over(link)
        if link.refusal is Refusal.SESSION_EXPIRED and link.client == self._client:
            self._begin_anew()  # said once: of several connections that are told so, the others come too late
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
        """The hosts forgot this client: what was sent has an unknown outcome, the rest gets new numbers."""
        log.warning("the session of client %d expired: registering anew", self._client)
        self._client = 0
        self._generation = 0
        lanes, self._lanes = self._lanes, {}
        self._blocked.clear()
        self._unanswered = self._unanswered_bytes = 0
        for link in list(self._links.values()):
            link.close("the session expired")
        for lane in lanes.values():
            if lane.retry is not None:
                lane.retry.cancel()
            again = self._lane(lane.shard)
            for out in lane.unanswered.values():
                if out.outstanding:
                    if not out.done.done():
                        out.done.set_exception(self._fate(out, SESSION_EXPIRED))
                else:
                    out.number = 0
                    again.backlog.append(out)
            again.backlog.extend(lane.backlog)
            self._admit(again, self._world.monotonic())

    def received(self, link: Link, messages: list[Message]) -> None:
        for message in messages:
            if type(message) is Answer:
                self._answer(link, message)
            elif type(message) is Moved or type(message) is OutOfOrder:
                self._bounced(link, message)
            elif type(message) is TableUpdate:
                self._learn(message.entries)

    def _answer(self, link: Link, answer: Answer) -> None:
        lane = self._lanes.get(answer.shard)
        out = lane.unanswered.get(answer.number) if lane is not None else None
        if lane is None or out is None:
            return  # a second answer, or one that came after the deadline
        if answer.status:  # everything but OK
            if answer.status == Status.OVERLOADED and (not out.request.fail_fast or out.outstanding > 1):
                out.outstanding -= 1  # with another copy under way it is not true that it did not run
                if lane.link is link:
                    self._hold(lane)
                return
            if answer.status == Status.BELOW_FLOOR:
                log.error("shard %d has a floor above unanswered number %d: please report this", lane.shard, out.number)
                self._give_up(lane, out, "the shard had forgotten its number")
                return
        lane.retries = 0
        self._settle(lane, answer.number)
        if not out.done.done():
            out.done.set_result(answer)

    def _bounced(self, link: Link, bounce: Moved | OutOfOrder) -> None:
        lane = self._lanes.get(bounce.shard)
        out = lane.unanswered.get(bounce.number) if lane is not None else None
        if lane is None or out is None:
            return
        out.outstanding -= 1
        if lane.link is link:
            self._hold(lane)
        if type(bounce) is Moved and bounce.address:
            self._learn(((bounce.shard, bounce.epoch, bounce.incarnation, bounce.address),))
