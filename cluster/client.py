"""The client: carries requests to the hosts that own their shards, and resends until each has one answer.

    call --> lane of its shard --> link to the owner --> Answer --> the caller
                 |   ^
                 |   `-- bounced: the lane is held and sent again; a full mailbox: its entity (carrier.py)
                 `------ deadline: what never left is given up; for the rest its host says what became of it, soon: the
                         call ends at the latest `verdict_s` after its deadline (the time-out once more, if shorter)

All retries end with the deadlines of the commands. One client is one session, whose numbers are its own: a forked child
must connect anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence

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
from ..actors.logs import about
from ..actors.settings import Settings
from ..persistence.stripes import ONLY, Stripe
from ..sharding.hashing import shard_of
from ..sharding.messages import Answer, Confirm
from ..sharding.table import Route, ShardTable
from .carrier import Carrier, Discover, log
from .deadlines import LOOK_S, Deadlines
from .lanes import CommandLane, OutgoingCommand
from .link import Access, Link
from .wire import Role

CONFIRM_S = 1.0
"""Between two looks for shards whose host does not know yet that all is answered, and that no further call tells."""

SESSION_EXPIRED = "the client's session expired while the command was under way"


class Client(Carrier[CommandLane]):
    """Implements `Caller` (actors/calls.py)."""

    def __init__(
        self,
        access: Access,
        addresses: Sequence[str],
        *,
        rejections: Mapping[str, type[Rejected]],
        discover: Discover | None = None,
        role: Role = "client",
        stripe: Stripe | None = None,
    ) -> None:
        """`addresses`, `discover`, `role`, `stripe`: as of the carrier. `rejections`: the app's own, raised by their
        names. With a `stripe` it may be called without having been opened: it connects with the first call, as an app
        of `access.settings.shards` shards."""
        super().__init__(access, addresses, discover, role, stripe)
        if stripe is not None:
            self._shards = access.settings.shards
        self._rejections = rejections
        self._pid = os.getpid()
        self._deadlines = Deadlines(access.world, self._late)
        self._confirming: asyncio.TimerHandle | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    @property
    def app_name(self) -> str:
        return self._access.app_name

    @property
    def table(self) -> ShardTable:
        return self._table

    def route(self, shard: int) -> Route | None:
        """Where that shard is served, as far as is known here."""
        return self._table.route(shard)

    @property
    def client_id(self) -> int:
        """The session's number; 0 before the first connection."""
        return self._client

    @property
    def shards(self) -> int:
        """Of the app; known once it is open."""
        return self._shards

    @property
    def stripe(self) -> Stripe:
        """Whose hosts it speaks to; known once it is open."""
        return self._stripe or ONLY

    def of_stripe(self, index: int, addresses: Sequence[str]) -> Client:
        """Another client of the same app, for another stripe, of an open one. `addresses`: as of the carrier."""
        access = self._access
        settings = msgspec.structs.replace(self._settings, shards=self._shards)
        return Client(
            msgspec.structs.replace(access, settings=settings),
            addresses,
            rejections=self._rejections,
            discover=self._discover,
            role=self._role,
            stripe=Stripe(index, self.stripe.count),
        )

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
                        await asyncio.sleep(self._pause_s(3))
        except TimeoutError:
            raise Unavailable(
                f"no host answers at {', '.join(self._seeds)} within {timeout_s:g} s: is the app running there?"
            ) from None

    async def close(self) -> None:
        """Close the connections. Commands still under way end with `OutcomeUnknown` (or `Unavailable`, never sent)."""
        self._hang_up()
        self._deadlines.stop()
        if self._confirming is not None:
            self._confirming.cancel()
        for lane in self._lanes.values():
            for out in [*lane.unanswered.values(), *lane.waiting()]:
                self._give_up(lane, out, "the client was closed")

    async def table_complete(self) -> None:
        """Wait until an owner is known for every shard of its stripe."""
        while self._stripe is None or len(self._table) < len(self._stripe.shards(self._shards)):
            self._changed.clear()
            self.seek()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(3)):
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
        deadline = now + timeout_s
        out = OutgoingCommand(request, deadline=deadline, gives_up=deadline, done=self._loop.create_future())
        lane = self._lane(shard_of(request.id, self._shards))
        lane.backlog.append(out)
        if len(lane.backlog) == 1:
            self._admit(lane, now)
            if lane.refused:
                self._refuse(lane)
        if request.fail_fast and not (out.number or out.done.done()) and lane.link is not None:
            lane.withdraw(out)
            raise Overloaded("the client's window is full", retry_after_s=self._settings.retry_max_s)
        self._deadlines.watch(timeout_s, out)
        try:
            answer = await out.done
        except asyncio.CancelledError:
            self._forget(lane, out)
            raise
        if answer.status == Status.OVERLOADED and answer.retry_after_ms:
            raise Overloaded(answer.payload.decode("utf-8", "replace"), answer.retry_after_ms / 1000)
        if answer.status:  # everything but OK
            raise_for(Status(answer.status), answer.payload, self._rejections)
        return answer.payload

    def _lane(self, shard: int) -> CommandLane:
        lane = self._lanes.get(shard)  # the shard is the lane's key (lanes.py)
        if lane is None:
            lane = self._lanes[shard] = CommandLane(shard, self._deadlines.lag)
        return lane

    def _width(self, settings: Settings) -> int:
        return settings.shard_window

    def _refuse(self, lane: CommandLane) -> None:
        """Tell callers that theirs were not sent, since there is not time enough."""
        while lane.refused:
            out, wait_s = lane.refused.pop()
            if not out.done.done():
                what = f"{out.request.kind}/{out.request.id}.{out.request.method}"
                message = f"{what}: an answer takes {wait_s:.2f} s now, which is more than is left; it did not run"
                out.done.set_exception(Overloaded(message, retry_after_s=wait_s))

    def _answered(self, link: Link, answer: Answer) -> None:
        lane = self._lanes.get(answer.shard)
        out = lane.unanswered.get(answer.number) if lane is not None else None
        if lane is None or out is None:
            return  # a second answer, or one that came after the deadline
        if answer.status:  # everything but OK
            if answer.status == Status.OVERLOADED and (not out.request.fail_fast or out.outstanding > 1):
                out.outstanding -= 1  # with another copy under way it is not true that it did not run
                if lane.link is link:
                    self._hold_entity(lane, out)
                return
            if answer.status == Status.STORE_AWAY:
                out.outstanding -= 1
                if out.outstanding:
                    return  # another copy may run: only the deadline ends that
            if answer.status == Status.BELOW_FLOOR:
                log.error(
                    "shard %d has a floor above unanswered number %d: please report this",
                    lane.shard,
                    out.number,
                    extra=about(shard=lane.shard, kind=out.request.kind, id=out.request.id),
                )
                self._give_up(lane, out, "the shard had forgotten its number")
                return
        lane.retries = 0
        if lane.busy and answer.status != Status.DEADLINE_EXCEEDED:  # that says nothing of how many it can do
            lane.answered(out, self._world.monotonic())
        self._settle(lane, answer.number, answered=answer.status != Status.OVERLOADED)
        if lane.refused:
            self._refuse(lane)
        if self._confirming is None:
            self._confirm_later()
        if not out.done.done():
            out.done.set_result(answer)

    def _confirm(self) -> None:
        """Tell hosts what they need not remember any more. A busy shard's calls say it; looks end with the traffic."""
        self._confirming = None
        floors: dict[Link, list[tuple[int, int]]] = {}
        for lane in self._lanes.values():
            if lane.unconfirmed and lane.link is not None:
                lane.confirmed = lane.floor
                floors.setdefault(lane.link, []).append((lane.shard, lane.floor))
        for link, confirmed in floors.items():
            link.send(Confirm(tuple(confirmed)))
        if any(lane.unanswered for lane in self._lanes.values()):
            self._confirm_later()

    def _confirm_later(self) -> None:
        self._confirming = self._loop.call_later(CONFIRM_S, self._confirm)

    # ---- giving up -------------------------------------------------------------------------------------------------

    def _forget(self, lane: CommandLane, out: OutgoingCommand) -> None:
        """Its caller no longer waits: the floor may pass it."""
        if out.number:
            self._settle(lane, out.number)
        else:
            lane.withdraw(out)

    def _lost(self, lane: CommandLane) -> None:
        route = self._table.route(lane.shard)
        if route is not None:
            for out in lane.unanswered.values():
                if out.under_way:
                    out.lost_at = route.incarnation

    def _resumes(self, lane: CommandLane, incarnation: int) -> None:
        """A command that ends its host must not take one after another: give up what lost too many."""
        for out in list(lane.unanswered.values()):
            if out.lost_at not in (0, incarnation):
                out.lost_at = 0
                out.hosts_lost += 1
                if out.hosts_lost >= self._settings.hosts_lost_max:
                    self._give_up(lane, out, f"{out.hosts_lost} hosts were lost while it was under way (by it?)")

    def _give_up(self, lane: CommandLane, out: OutgoingCommand, why: str) -> None:
        self._forget(lane, out)
        if not out.done.done():
            out.done.set_exception(self._fate(out, why))

    def _fate(self, out: OutgoingCommand, why: str) -> AtollError:
        request = out.request
        what = f"{request.kind}/{request.id}.{request.method}: {why}"
        if not out.outstanding:
            return Unavailable(f"{what}; it did not run")
        if request.query:
            return DeadlineExceeded(f"{what}; it was only a query")
        return OutcomeUnknown(f"{what}; it may have run: repeat it with the same command_id, or look at the entity")

    def _late(self, out: OutgoingCommand) -> None:
        """Its deadline passed. What was sent may have run or not: whoever knows is given a moment to say it."""
        request, now = out.request, self._world.monotonic()
        timeout_s = self._settings.command_timeout_s if request.timeout_s is None else request.timeout_s
        if out.outstanding and not request.query and out.gives_up == out.deadline:
            verdict_s = min(self._settings.verdict_s, timeout_s)
            # A loop that is late itself first reads what has come.
            out.gives_up = max(out.deadline + verdict_s, now + LOOK_S)
            self._deadlines.watch(verdict_s, out)
        else:
            self._give_up(self._lane(shard_of(request.id, self._shards)), out, f"no answer within {timeout_s:g} s")

    def _session_expired(self) -> None:
        """What was sent has an unknown outcome, the rest gets new numbers."""
        lanes, self._lanes = self._lanes, {}
        self._blocked.clear()
        for lane in lanes.values():
            self._quiet(lane)
            again = self._lane(lane.shard)
            for out in lane.unanswered.values():
                if out.outstanding:
                    if not out.done.done():
                        out.done.set_exception(self._fate(out, SESSION_EXPIRED))
                else:
                    out.number = 0
                    again.backlog.append(out)
            again.backlog.extend(lane.waiting())
            self._admit(again, self._world.monotonic())
