"""Dead letters on request: replayed into their entity's mailbox, or dropped. (owed.py buries them.)

The two are commands like any other (`REPLAY`, `DROP`, with the letter's number), so they go through the owner of the
shard, exactly once, and a replay takes the letter away in the record that accepts the command again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from ..actors.calls import Status
from ..actors.errors import CorruptRecord
from ..actors.kind import EntityKind
from ..actors.world import World
from ..persistence.pending import PendingView
from ..persistence.records import Accepted, DeadLetterRow, Delivery, MailboxRow, RecordedReply
from ..persistence.spi import Store
from .accepting import Accepting, owed
from .commit import CommitPath
from .gate import OutputGate
from .messages import Answer, OutOfOrder
from .resident import Pending, Resident
from .retries import until_done
from .shard import OwnedShard, Phase

REPLAY = "atoll:replay"
DROP = "atoll:drop"
NOTHING = msgspec.msgpack.encode(None)
_numbers = msgspec.msgpack.Decoder(dict[str, int])


class Letters:
    def __init__(
        self,
        *,
        store: Store,
        kinds: Mapping[str, EntityKind],
        commits: CommitPath,
        accepting: Accepting,
        gate: OutputGate,
        world: World,
        schedule: Callable[[Resident], None],
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._commits = commits
        self._accepting = accepting
        self._gate = gate
        self._world = world
        self._schedule = schedule
        self._one_at_a_time = asyncio.Lock()

    def ask(self, shard: OwnedShard, pending: Pending) -> None:
        """Replay or drop, and answer; `pending` has its number in the window."""
        self._world.spawn(self._operate(shard, pending), f"atoll-letter-{shard.shard}")

    async def _operate(self, shard: OwnedShard, pending: Pending) -> None:
        call = pending.call
        try:
            number = _numbers.decode(call.arguments)["number"]
        except (msgspec.DecodeError, KeyError) as error:
            self._refuse(pending, f"{call.method} takes the number of a dead letter: {error}")
            return
        if not 0 < number <= shard.position:
            self._refuse(pending, f"{call.kind}/{call.id} has no dead letter {number}")
            return
        async with self._one_at_a_time:
            await self._commits.settled(shard.ticket)  # the overlay holds committed records only
            view = PendingView(shard.overlay)
            read = partial(self._store.read_dead_letters, shard.shard, number - 1, 1)
            try:
                row = view.dead_letter(number, await until_done(self._world, read))
            except CorruptRecord as error:
                self._refuse(pending, str(error), Status.UNAVAILABLE)
                return
            if shard.phase is not Phase.OPEN:
                pending.window.bounce(call.number)
                pending.reply(OutOfOrder(call.shard, call.number))  # sent again, it finds the new owner
                return
            if row is None or (row.kind, row.id) != (call.kind, call.id):
                self._refuse(pending, f"{call.kind}/{call.id} has no dead letter {number}")
            elif call.method == DROP:
                self._accepting.answered(shard, pending, Delivery(letter_gone=number), NOTHING)
            else:
                self._replay(shard, pending, row)

    def _replay(self, shard: OwnedShard, pending: Pending, row: DeadLetterRow) -> None:
        letter = row.letter
        kind = self._kinds.get(row.kind)
        handler = kind.handlers.get(letter.method) if kind is not None else None
        if kind is None or handler is None or handler.is_query:
            self._refuse(pending, f"this app has no command {row.kind}.{letter.method}: it could not run")
            return
        accepted = Accepted(letter.method, letter.arguments, letter.client, letter.number, letter.command_id)
        resident = shard.resident(kind, (row.kind, row.id))
        entry = shard.position + 1
        delivery = Delivery(accepted=accepted, letter_gone=row.number)
        resident.ticket = self._accepting.answered(shard, pending, delivery, NOTHING)
        again = owed(shard, MailboxRow(row.kind, row.id, entry, accepted), handler)
        self._accepting.adopt(resident, again)
        self._schedule(resident)

    def _refuse(self, pending: Pending, message: str, status: Status = Status.INVALID_COMMAND) -> None:
        call = pending.call
        reply = RecordedReply(status, message.encode(), 0)
        pending.window.remember(call.number, reply, 0)
        self._gate.read(0, pending, Answer(call.shard, call.number, reply.status, reply.payload))
