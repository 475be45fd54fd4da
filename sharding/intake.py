"""Intake: what a trusted connection brings, checked and put into mailboxes, or answered at once.

not mine, or not open        Moved
below the client's floor     dropped
waits for itself             CALL_CYCLE (the chain of those who wait for it names its own entity)
known number                 its recorded reply again; a pending one: its answer will go to the newer connection
unknown `prev`               OutOfOrder
does not fit the app         INVALID_COMMAND
replies at their bound       OVERLOADED, unless it is the lowest number that its client lacks, or a query
mailbox full                 a tell goes straight to the store; else OVERLOADED (it did not run, its number stays free)
else                         into the mailbox
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ..actors.calls import Mode, Status
from ..actors.errors import InvalidCommand
from ..actors.ids import checked_command_id, checked_entity_id, command_id_time_ms
from ..actors.kind import EntityKind
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.records import RecordedReply, stream_of
from .accepting import NO_HANDLER, Accepting
from .budget import Budget
from .gate import OutputGate
from .hashing import shard_of
from .letters import DROP, REPLAY, Letters
from .messages import Answer, Call, Confirm, Message, Moved, OutOfOrder, Peer, Ping, Poke, Pong, StripeHosts
from .owed import Owed
from .resident import Pending, Resident
from .shard import OwnedShard, Phase
from .table import ShardTable
from .window import Verdict, Window


class Intake:
    def __init__(
        self,
        *,
        kinds: Mapping[str, EntityKind],
        shards: Mapping[int, OwnedShard],
        table: ShardTable,
        gate: OutputGate,
        accepting: Accepting,
        owed: Owed,
        letters: Letters,
        settings: Settings,
        world: World,
        budget: Budget,
        schedule: Callable[[Resident], None],
        poked: Callable[[Sequence[tuple[int, int]]], None],
        told_hosts: Callable[[StripeHosts], None],
    ) -> None:
        """`shards`: the host's own, kept by it. `schedule`: see to a resident that has a command now. `poked`,
        `told_hosts`: what coordinators say."""
        self._kinds = kinds
        self._shards = shards
        self._table = table
        self._gate = gate
        self._accepting = accepting
        self._owed = owed
        self._letters = letters
        self._settings = settings
        self._world = world
        self._budget = budget
        self._schedule = schedule
        self._poked = poked
        self._told_hosts = told_hosts
        self._peers: dict[int, Peer] = {}
        self._coordinators: dict[Peer, None] = {}

    # ---- connections -----------------------------------------------------------------------------------------------

    def connected(self, peer: Peer) -> None:
        """A client speaks over its newest connection only: what lingers in an older one must not overtake it."""
        if not peer.client:  # it pokes and is told things, it has no commands
            self._coordinators[peer] = None
            return
        known = self._peers.get(peer.client)
        if known is not None and known.generation >= peer.generation:
            peer.close("a newer connection of this client is open")
            return
        self._peers[peer.client] = peer
        if known is not None:
            known.close("replaced by a newer connection of this client")

    def disconnected(self, peer: Peer) -> None:
        self._coordinators.pop(peer, None)
        self._budget.forget(peer)
        if self._peers.get(peer.client) is peer:
            del self._peers[peer.client]

    def peers(self) -> list[Peer]:
        """The clients."""
        return list(self._peers.values())

    def coordinators(self) -> list[Peer]:
        return list(self._coordinators)

    # ---- messages --------------------------------------------------------------------------------------------------

    def received(self, peer: Peer, messages: Sequence[Message]) -> None:
        client = peer.client
        if client and self._peers.get(client) is not peer:
            return
        now = self._world.monotonic()
        calls = argument_bytes = 0
        for message in messages:
            if type(message) is Call and client:
                self._call(peer, client, message, now)
                calls += 1
                argument_bytes += len(message.arguments)
            elif type(message) is Confirm:
                self._confirmed(client, message)
            elif type(message) is Poke:
                self._poked(message.assigned)
            elif type(message) is StripeHosts:
                self._told_hosts(message)
            elif type(message) is Ping:
                peer.send(Pong())
        self._budget.arrived(calls, argument_bytes)

    def _confirmed(self, client: int, confirm: Confirm) -> None:
        for number, floor in confirm.floors:
            shard = self._shards.get(number)
            window = shard.windows.get(client) if shard is not None else None
            if window is not None:
                window.raise_floor(floor)

    def _call(self, peer: Peer, client: int, call: Call, now: float) -> None:
        shard = self._shards.get(call.shard)
        if shard is None or not (shard.phase is Phase.OPEN or self._holds_up_release(call, shard)):
            self.moved(peer, call)
            return
        if call.sender:
            client = stream_of(call.sender - 1)
        window = shard.windows.get(client)
        if window is None:
            window = shard.window(client)
        if call.sender and not self._is_from_owner(peer, call, window):
            return
        if call.floor > window.floor:
            window.raise_floor(call.floor)
        verdict = window.admit(call.number, call.prev, self._settings.shard_window)
        if verdict is Verdict.NEW:
            self._admit(peer, client, call, shard, window, now)
        elif verdict is Verdict.ANSWERED:
            known = window.known(call.number)
            pending = Pending(call, NO_HANDLER, peer.client, peer, window, 0.0)
            answer = Answer(call.shard, call.number, known.reply.status, known.reply.payload, call.sender)
            # As a read, whatever it was: a reply without effect needs the lease again, the others lose nothing.
            self._gate.read(known.ticket, pending, answer)
        elif verdict is Verdict.PENDING:
            pending = window.pending(call.number)
            pending.given_up()  # the copy before: the reply goes to where the newest came from
            pending.peer = peer
        elif verdict is Verdict.OUT_OF_ORDER:
            peer.reply(call, OutOfOrder(call.shard, call.number, call.sender))
        elif verdict is Verdict.BELOW_FLOOR:
            peer.reply(call, Answer(call.shard, call.number, Status.BELOW_FLOOR, b"", call.sender))
        elif call.sender:
            message = f"{self._settings.shard_window} messages above the floor of their stream are remembered here"
            peer.reply(call, Answer(call.shard, call.number, Status.OVERLOADED, message.encode(), call.sender))
        else:
            peer.close(f"number {call.number} runs more than {self._settings.shard_window} ahead of its floor")

    def _is_from_owner(self, peer: Peer, call: Call, window: Window[Pending]) -> bool:
        """A message of the newest owner of its shard that this one has heard of. A former one's copies go unanswered:
        their answers would be the owner's."""
        if call.sender > self._settings.shards or call.mode != Mode.TELL:
            peer.close(f"no message comes from shard {call.sender - 1} with mode {call.mode}")
            return False
        if call.sender_epoch < window.generation:
            peer.forget(call)
            return False
        window.generation = call.sender_epoch
        return True

    def _admit(
        self, peer: Peer, client: int, call: Call, shard: OwnedShard, window: Window[Pending], now: float
    ) -> None:
        kind = self._kinds.get(call.kind)
        handler = kind.handlers.get(call.method) if kind is not None else None
        if call.method in (REPLAY, DROP):
            self._letter(peer, client, call, shard, window)
            return
        if kind is None or handler is None:
            self._refuse(peer, client, call, shard, window, self._unknown(call, kind))
            return
        key = (kind.name, call.id)  # not the call's own string: an entity's key lives long
        told = call.mode == Mode.TELL
        if call.chain and not told and f"{call.kind}/{call.id}" in call.chain:
            cycle = " -> ".join((*call.chain, f"{call.kind}/{call.id}"))
            self._refuse(peer, client, call, shard, window, f"it would wait for itself: {cycle}", Status.CALL_CYCLE)
            return
        resident = shard.residents.get(key)
        if resident is None or told or call.command_id or len(call.arguments) > self._settings.arguments_bytes_max:
            fault = self._fault(call)
            if fault is None and told:
                fault = "a query has no tell" if handler.is_query else handler.misfit(call.arguments)
            if fault is not None:
                self._refuse(peer, client, call, shard, window, fault)
                return
            if resident is None:
                resident = shard.resident(kind, key)
        if self._budget.replies_full and not (handler.is_query or call.sender or call.number == window.floor):
            message = "this host remembers all the replies that it may: go on when the oldest command is answered"
            peer.reply(call, Answer(call.shard, call.number, Status.OVERLOADED, message.encode()))
            return
        deadline = math.inf if call.sender else now + call.remaining_ms / 1000
        pending = Pending(call, handler, client, peer, window, deadline, suspect=told and call.attempt > 1)
        settings = self._settings
        if not resident.has_room(len(call.arguments), settings.mailbox_commands_max, settings.mailbox_bytes_max):
            if told and self._accepting.store(resident, pending):
                return
            message = (
                f"the mailbox of {call.kind}/{call.id} is full "
                f"({settings.mailbox_commands_max} commands or {settings.mailbox_bytes_max} bytes)"
            )
            wait_ms = int(1000 * resident.half_emptied_s(now))
            peer.reply(call, Answer(call.shard, call.number, Status.OVERLOADED, message.encode(), call.sender, wait_ms))
            return
        window.begin(call.number, pending)
        resident.put(pending)
        if told:
            self._accepting.arrived(resident, now)
        self._schedule(resident)

    def _letter(self, peer: Peer, client: int, call: Call, shard: OwnedShard, window: Window[Pending]) -> None:
        """A dead letter is to be replayed or dropped."""
        fault = self._fault(call)
        if fault is not None:
            self._refuse(peer, client, call, shard, window, fault)
            return
        pending = Pending(call, NO_HANDLER, client, peer, window, math.inf)
        window.begin(call.number, pending)
        self._letters.ask(shard, pending)

    def _holds_up_release(self, call: Call, shard: OwnedShard) -> bool:
        """A turn of this shard, which the release waits for, waits for this call: it has to be let in."""
        if shard.phase is not Phase.RELEASING:
            return False
        for waiting in call.chain:
            kind, _, id = waiting.partition("/")
            resident = shard.residents.get((kind, id))
            if resident is not None and resident.running is not None:
                return True
        return False

    def _unknown(self, call: Call, kind: EntityKind | None) -> str:
        if kind is None:
            return f"this app has no kind {call.kind!r}; it has {', '.join(sorted(self._kinds))}"
        return f"{call.kind} has no handler {call.method!r}; it has {', '.join(sorted(kind.handlers))}"

    def _fault(self, call: Call) -> str | None:
        """What is wrong with the envelope of a command, None for nothing."""
        settings = self._settings
        if len(call.arguments) > settings.arguments_bytes_max:
            return f"the arguments have {len(call.arguments)} bytes, at most {settings.arguments_bytes_max} are allowed"
        if call.mode not in (Mode.ASK, Mode.TELL):
            return f"unknown mode {call.mode}"
        try:
            checked_entity_id(call.id)
            if call.command_id:
                checked_command_id(call.command_id)
        except InvalidCommand as error:
            return str(error)
        if shard_of(call.id, settings.shards) != call.shard:
            return f"the ID {call.id!r} does not belong to shard {call.shard} of {settings.shards}"
        born_ms = command_id_time_ms(call.command_id) if call.command_id else None
        if born_ms is not None and self._world.wall_ms() - born_ms > settings.command_id_retention_s * 1000:
            return (
                f"command ID {call.command_id} is older than {settings.command_id_retention_s:.0f} s: whether it ran "
                "is forgotten, so it will not run; look at the entity, then use a new ID"
            )
        return None

    def _refuse(
        self,
        peer: Peer,
        client: int,
        call: Call,
        shard: OwnedShard,
        window: Window[Pending],
        message: str,
        status: Status = Status.INVALID_COMMAND,
    ) -> None:
        """It never runs. An answer without effect like any other; of a message, whose sender can do nothing about it,
        a dead letter is left."""
        pending = Pending(call, NO_HANDLER, client, peer, window, 0.0)
        if call.sender:
            if self._owed.may_bury(shard):
                self._owed.bury_arrived(shard, pending, "invalid", message)
            else:
                peer.reply(call, Answer(call.shard, call.number, Status.OVERLOADED, message.encode(), call.sender))
            return
        reply = RecordedReply(status, message.encode(), 0)
        window.remember(call.number, reply, 0)
        self._gate.read(0, pending, Answer(call.shard, call.number, reply.status, reply.payload))

    def moved(self, peer: Peer, call: Call) -> None:
        route = self._table.route(call.shard)
        if route is None:
            peer.reply(call, Moved(call.shard, call.number, 0, 0, "", call.sender))
        else:
            peer.reply(call, Moved(call.shard, call.number, route.epoch, route.incarnation, route.address, call.sender))
