"""Intake: what a trusted connection brings, checked and put into mailboxes, or answered at once.

not mine, or not open        Moved
below the client's floor     dropped
waits for itself             CALL_CYCLE (the chain of those who wait for it names its own entity)
known number                 its recorded reply again; a pending one: its answer will go to the newer connection
unknown `prev`               OutOfOrder
does not fit the app         INVALID_COMMAND
mailbox full                 OVERLOADED (it did not run; its number stays free)
else                         into the mailbox
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..actors.calls import Mode, Status
from ..actors.errors import InvalidCommand
from ..actors.ids import checked_command_id, checked_entity_id, command_id_time_ms
from ..actors.kind import EntityKind, Handler
from ..actors.settings import Settings
from ..actors.world import World
from ..persistence.records import RecordedReply
from .gate import OutputGate
from .hashing import shard_of
from .messages import Answer, Call, Message, Moved, OutOfOrder, Peer, Ping, Poke, Pong
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
        settings: Settings,
        world: World,
        ready: Callable[[Resident], None],
        poked: Callable[[], None],
    ) -> None:
        """`shards`: the host's own, kept by it. `ready`: schedule a resident that has a command now."""
        self._kinds = kinds
        self._shards = shards
        self._table = table
        self._gate = gate
        self._settings = settings
        self._world = world
        self._ready = ready
        self._poked = poked
        self._peers: dict[int, Peer] = {}

    # ---- connections -----------------------------------------------------------------------------------------------

    def connected(self, peer: Peer) -> None:
        """A client speaks over its newest connection only: what lingers in an older one must not overtake it."""
        if not peer.client:
            return  # a coordinator: it pokes and is answered, it has no commands
        known = self._peers.get(peer.client)
        if known is not None and known.generation >= peer.generation:
            peer.close("a newer connection of this client is open")
            return
        self._peers[peer.client] = peer
        if known is not None:
            known.close("replaced by a newer connection of this client")

    def disconnected(self, peer: Peer) -> None:
        if self._peers.get(peer.client) is peer:
            del self._peers[peer.client]

    def peers(self) -> list[Peer]:
        return list(self._peers.values())

    # ---- messages --------------------------------------------------------------------------------------------------

    def received(self, peer: Peer, messages: Sequence[Message]) -> None:
        client = peer.client
        if client and self._peers.get(client) is not peer:
            return
        now = self._world.monotonic()
        for message in messages:
            if type(message) is Call and client:
                self._call(peer, client, message, now)
            elif type(message) is Poke:
                self._poked()
            elif type(message) is Ping:
                peer.send(Pong())

    def _call(self, peer: Peer, client: int, call: Call, now: float) -> None:
        shard = self._shards.get(call.shard)
        if shard is None or not (shard.phase is Phase.OPEN or self._holds_up_release(call, shard)):
            self.moved(peer, call)
            return
        window = shard.windows.get(client)
        if window is None:
            window = shard.window(client)
        if call.floor > window.floor:
            window.raise_floor(call.floor)
        verdict = window.admit(call.number, call.prev, self._settings.shard_window)
        if verdict is Verdict.NEW:
            self._admit(peer, client, call, shard, window, now)
        elif verdict is Verdict.ANSWERED:
            known = window.known(call.number)
            pending = Pending(call, _NO_HANDLER, peer.client, peer, window, 0.0)
            answer = Answer(call.shard, call.number, known.reply.status, known.reply.payload)
            # As a read, whatever it was: a reply without effect needs the lease again, the others lose nothing.
            self._gate.read(known.ticket, pending, answer)
        elif verdict is Verdict.PENDING:
            window.pending(call.number).peer = peer
        elif verdict is Verdict.OUT_OF_ORDER:
            peer.send(OutOfOrder(call.shard, call.number))
        elif verdict is Verdict.BELOW_FLOOR:
            peer.send(Answer(call.shard, call.number, Status.BELOW_FLOOR, b""))
        else:
            peer.close(f"number {call.number} runs more than {self._settings.shard_window} ahead of its floor")

    def _admit(
        self, peer: Peer, client: int, call: Call, shard: OwnedShard, window: Window[Pending], now: float
    ) -> None:
        kind = self._kinds.get(call.kind)
        handler = kind.handlers.get(call.method) if kind is not None else None
        if kind is None or handler is None:
            self._refuse(peer, call, window, self._unknown(call, kind))
            return
        key = (call.kind, call.id)
        if call.chain and f"{call.kind}/{call.id}" in call.chain:
            cycle = " -> ".join((*call.chain, f"{call.kind}/{call.id}"))
            self._refuse(peer, call, window, f"it would wait for itself: {cycle}", Status.CALL_CYCLE)
            return
        resident = shard.residents.get(key)
        if resident is None:
            fault = self._fault(call)
            if fault is not None:
                self._refuse(peer, call, window, fault)
                return
            resident = shard.residents[key] = Resident(kind, key, shard)
        elif len(call.arguments) > self._settings.arguments_bytes_max or call.command_id:
            fault = self._fault(call)
            if fault is not None:
                self._refuse(peer, call, window, fault)
                return
        if len(resident.mailbox) >= self._settings.mailbox_commands_max:
            message = f"the mailbox of {call.kind}/{call.id} is full ({self._settings.mailbox_commands_max})"
            peer.send(Answer(call.shard, call.number, Status.OVERLOADED, message.encode()))
            return
        pending = Pending(call, handler, client, peer, window, now + call.remaining_ms / 1000)
        window.begin(call.number, pending)
        resident.mailbox.append(pending)
        if not resident.scheduled:
            resident.scheduled = True
            self._ready(resident)

    def _holds_up_release(self, call: Call, shard: OwnedShard) -> bool:
        """A turn of this shard, which the release waits for, waits for this call: it has to be let in."""
        if shard.phase is not Phase.RELEASING:
            return False
        for waiting in call.chain:
            kind, _, id = waiting.partition("/")
            resident = shard.residents.get((kind, id))
            if resident is not None and resident.scheduled:
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
        self, peer: Peer, call: Call, window: Window[Pending], message: str, status: Status = Status.INVALID_COMMAND
    ) -> None:
        """It never runs. An answer without effect like any other."""
        reply = RecordedReply(status, message.encode(), 0)
        window.remember(call.number, reply, 0)
        pending = Pending(call, _NO_HANDLER, peer.client, peer, window, 0.0)
        self._gate.read(0, pending, Answer(call.shard, call.number, reply.status, reply.payload))

    def moved(self, peer: Peer, call: Call) -> None:
        route = self._table.route(call.shard)
        if route is None:
            peer.send(Moved(call.shard, call.number, 0, 0, ""))
        else:
            peer.send(Moved(call.shard, call.number, route.epoch, route.incarnation, route.address))


class _NoHandler:
    """Stands in a `Pending` that will never run."""

    name = ""
    is_query = False
    is_async = False


_NO_HANDLER: Handler = _NoHandler()  # type: ignore[assignment]  # never run: it only carries an answer to its peer
