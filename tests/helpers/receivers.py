"""Receiving hosts for tests of the courier: real servers and connections, over an ideal memory of what was taken over.

What a host took over is durable and everybody's (`Streams`), so a test may move shards, cut connections and kill hosts
as it likes: what comes out at the end, and what the courier may never do meanwhile, is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulator.loop import Life, Process
from simulator.simulation import Simulation
from wiring import APP, TOKEN

from atoll.actors.calls import Mode, Status
from atoll.actors.settings import Settings
from atoll.actors.stored import StoredMessage
from atoll.cluster.courier import HostCourier
from atoll.cluster.link import Access
from atoll.cluster.server import Server
from atoll.sharding.hashing import shard_of
from atoll.sharding.messages import Answer, Call, Message, Moved, OutOfOrder, Peer, TableUpdate

Key = tuple[int, int]
"""(sending shard, receiving shard)"""


class StreamState:
    """What the receiving shard knows of one stream."""

    def __init__(self) -> None:
        self.epoch = 0
        self.floor = 0
        self.taken: set[int] = set()
        """All ever."""
        self.of_owner: set[int] = set()
        """Of the newest epoch: a new owner of the sending shard cannot know how wide the stream is already."""

    def known(self, number: int) -> bool:
        return number >= self.floor and number in self.taken


class Streams:
    """What all receivers share: who owns which shard, and what was taken over."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.owners: dict[int, tuple[int, Receiver]] = {}
        """shard -> (epoch, owner)"""
        self.unowned: set[int] = set()
        """Shards that nobody serves for the moment, and nobody knows who will."""
        self.states: dict[Key, StreamState] = {}
        self.delivered: dict[str, list[tuple[int, int]]] = {}
        """ID -> (sending shard, number) in the order taken over."""
        self.given: dict[Key, set[int]] = {}
        """What the courier was given."""
        self.sessions: set[int] = set()
        self.sessions_opened = 0

    def give(self, shard: int, receiver: Receiver) -> None:
        epoch = self.owners[shard][0] + 1 if shard in self.owners else 1
        self.owners[shard] = (epoch, receiver)

    def entry(self, shard: int) -> tuple[int, int, int, str]:
        epoch, owner = self.owners[shard]
        return shard, epoch, owner.incarnation, owner.address

    def owner_of(self, id: str) -> Receiver:
        return self.owners[shard_of(id, self.settings.shards)][1]


class Receiver:
    """Implements `Receiver` (cluster/server.py): one host."""

    def __init__(self, streams: Streams, incarnation: int) -> None:
        self.streams = streams
        self.incarnation = incarnation
        self.address = ""
        self.process: Process
        self.server: Server
        self.peers: list[Peer] = []
        self.calls: list[Call] = []
        """As they came."""
        self.answers_with: Callable[[Call], Status | None] = lambda _: None
        """A status instead of taking a message over."""
        self.silent = False
        """Messages come in and are not looked at."""
        self.cut_after: Callable[[Call], bool] = lambda _: False
        """The connection closes after this one was taken over, before its answer leaves."""
        self.late_epochs = 0

    # ---- Receiver

    def connected(self, peer: Peer) -> None:
        self.peers.append(peer)
        peer.send(TableUpdate(tuple(self.streams.entry(shard) for shard in self.streams.owners)))

    def disconnected(self, peer: Peer) -> None:
        if peer in self.peers:
            self.peers.remove(peer)

    async def admit(self, client: int) -> int | None:
        streams = self.streams
        if client:
            return client if client in streams.sessions else None
        streams.sessions_opened += 1
        streams.sessions.add(streams.sessions_opened)
        return streams.sessions_opened

    def received(self, peer: Peer, calls: list[Message]) -> None:
        for call in calls:
            if isinstance(call, Call):
                self.calls.append(call)
                if not self.silent and peer in self.peers:
                    self._take(peer, call)

    def _take(self, peer: Peer, call: Call) -> None:
        streams = self.streams
        assert (call.mode, call.remaining_ms) == (Mode.TELL, 0)
        assert call.floor <= call.number
        assert call.prev < call.number
        if call.shard in streams.unowned:
            peer.reply(call, Moved(call.shard, call.number, 0, 0, "", call.sender))
            return
        if streams.owners[call.shard][1] is not self:
            peer.reply(call, Moved(call.shard, call.number, *streams.entry(call.shard)[1:], call.sender))
            return
        key = (call.sender - 1, call.shard)
        state = streams.states.setdefault(key, StreamState())
        if call.sender_epoch < state.epoch:
            self.late_epochs += 1
            peer.forget(call)
            return
        if call.sender_epoch > state.epoch:
            state.epoch = call.sender_epoch
            state.of_owner.clear()
        lost = {number for number in streams.given[key] if number < call.floor} - state.taken
        assert not lost, f"the floor {call.floor} of stream {key} passes {lost}, which nobody took over"
        state.floor = max(state.floor, call.floor)
        if call.number < state.floor:
            self._answer(peer, call, Status.BELOW_FLOOR)
        elif state.known(call.number):
            self._answer(peer, call, Status.OK)
        elif call.prev >= state.floor and not state.known(call.prev):
            peer.reply(call, OutOfOrder(call.shard, call.number, call.sender))
        elif (status := self.answers_with(call)) is not None:
            self._answer(peer, call, status)
        else:
            remembered = sum(number >= state.floor for number in state.of_owner)
            assert remembered < streams.settings.stream_window, f"stream {key} is wider than its window"
            state.taken.add(call.number)
            state.of_owner.add(call.number)
            streams.delivered.setdefault(call.id, []).append((key[0], call.number))
            if self.cut_after(call):
                self.cut()
            else:
                self._answer(peer, call, Status.OK)

    def _answer(self, peer: Peer, call: Call, status: Status) -> None:
        peer.reply(call, Answer(call.shard, call.number, status, b"why" if status else b"", call.sender))

    # ---- the test's side

    def push(self) -> None:
        """Tell everybody connected who owns what."""
        for peer in self.peers:
            peer.send(TableUpdate(tuple(self.streams.entry(shard) for shard in self.streams.owners)))

    def cut(self) -> None:
        for peer in list(self.peers):
            self.peers.remove(peer)
            peer.close("the test cuts it")

    def numbers(self, id: str) -> list[int]:
        """Of all calls to one entity that came here, repeats included."""
        return [call.number for call in self.calls if call.id == id]


class Post:
    """Receiving hosts, and couriers that each live in a process of their own."""

    def __init__(self, simulation: Simulation, **settings: Any) -> None:
        self.simulation = simulation
        self.settings = Settings(**settings)
        self.streams = Streams(self.settings)
        self.receivers: list[Receiver] = []
        self.processes: dict[HostCourier, Process] = {}
        self.arrived: dict[HostCourier, list[tuple[int, int]]] = {}
        """Per courier (sending shard, number), in the order reported."""

    async def start_receiver(self, *shards: int) -> Receiver:
        incarnation = len(self.receivers) + 1
        name = f"receiver-{incarnation}"
        receiver = Receiver(self.streams, incarnation)
        receiver.process = self.simulation.process(name)
        receiver.server = Server(
            receiver,
            app=APP,
            shards=self.settings.shards,
            token=TOKEN,
            settings=self.settings,
            network=self.simulation.network,
            world=self.simulation.world(name),
        )
        receiver.address = await receiver.process.run(receiver.server.listen("10.0.0.1", 0))
        receiver.server.serve(incarnation)
        self.receivers.append(receiver)
        for shard in shards:
            self.streams.give(shard, receiver)
        return receiver

    def courier(self, *seeds: Receiver) -> HostCourier:
        name = f"courier-{len(self.processes) + 1}"
        process = self.simulation.process(name)
        access = Access(
            app_name=APP,
            token=TOKEN,
            settings=self.settings,
            world=self.simulation.world(name),
            network=self.simulation.network,
        )
        courier: HostCourier = process.context.copy().run(HostCourier, access, [seed.address for seed in seeds])
        self.processes[courier] = process
        self.arrived[courier] = []
        return courier

    def carry(
        self,
        courier: HostCourier,
        sending_shard: int,
        number: int,
        id: str,
        epoch: int = 1,
        data: bytes = b"x",
        arrived: Callable[[int], None] | None = None,
    ) -> None:
        """Hand a message over in the courier's process. Without `arrived` it is noted in `self.arrived`."""
        key = (sending_shard, shard_of(id, self.settings.shards))
        self.streams.given.setdefault(key, set()).add(number)

        def noted(number: int) -> None:
            assert (sending_shard, number) not in self.arrived[courier], "reported twice"
            self.arrived[courier].append((sending_shard, number))

        message = StoredMessage("Box", id, "put", data)
        self.processes[courier].context.copy().run(
            courier.carry, sending_shard, epoch, number, message, arrived or noted
        )

    def unanswered(self) -> tuple[int, int]:
        """Of all living receivers: calls and bytes that take room in a window."""
        servers = [receiver.server for receiver in self.receivers if receiver.process.life is Life.RUNNING]
        commands, sizes = zip(*(server.unanswered for server in servers), strict=True)
        return sum(commands), sum(sizes)

    def ids(self, shard: int, count: int = 1) -> list[str]:
        """So many entities of one receiving shard."""
        found: list[str] = []
        number = 0
        while len(found) < count:
            number += 1
            if shard_of(f"e{number}", self.settings.shards) == shard:
                found.append(f"e{number}")
        return found

    def delivered(self, id: str, sending_shard: int = 0) -> list[int]:
        return [number for sender, number in self.streams.delivered.get(id, []) if sender == sending_shard]
