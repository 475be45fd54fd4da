"""The connection shells on virtual time: coalescing, silence, slow readers, held peers, last words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from simulator.loop import Process
from simulator.simulation import Simulation
from wiring import EchoReceiver, Listener, call, hello_frame, join, make_server, raw_peer, trusted_raw_peer

from atoll.actors.errors import StoreUnavailable
from atoll.actors.settings import Settings
from atoll.cluster import server as server_module
from atoll.cluster.connection import LINGER_S
from atoll.cluster.handshake import Refusal
from atoll.cluster.link import Link
from atoll.cluster.network import Probe
from atoll.cluster.server import Server
from atoll.cluster.wire import Refused, encode_frame
from atoll.sharding.messages import Answer, Credit, Poke, Pong, TableUpdate


class Scene:
    """A host process with a server, and everything to reach it."""

    def __init__(self, simulation: Simulation, settings: Settings) -> None:
        self.simulation = simulation
        self.settings = settings
        self.receiver = EchoReceiver()
        self.host = simulation.process("host")
        self.server: Server = make_server(self.receiver, simulation.network, simulation.world("host"), settings)
        self.address = ""
        self.links = 0

    async def start(self) -> None:
        self.address = await self.host.run(self.server.listen("10.0.0.1", 7700))
        self.server.serve(7)

    async def link(self, process: Process | None = None, **more: Any) -> tuple[Link, Listener]:
        self.links += 1
        listener = Listener()
        joining = join(
            self.simulation.network,
            self.address,
            self.simulation.world(f"client {self.links}"),
            listener,
            **{"settings": self.settings, **more},
        )
        return await (process.run(joining) if process else joining), listener

    async def welcomed(self, process: Process | None = None, **more: Any) -> tuple[Link, Listener]:
        link, listener = await self.link(process, **more)
        await listener.until_welcome()
        return link, listener


def play(scenario: Callable[[Scene], Awaitable[None]], *, seed: int = 1, **settings: Any) -> None:
    async def main() -> None:
        await scene.start()
        await scenario(scene)

    with Simulation(seed) as simulation:
        scene = Scene(simulation, msgspec.structs.replace(Settings(), **settings))
        simulation.run(main())


def test_calls_are_answered_in_order() -> None:
    """The whole way: handshake, calls of several ticks, answers, an orderly end at both sides."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed(client=12, generation=3)
        for number in range(100):
            link.send(call(number))
            await asyncio.sleep(0)
        await listener.until(lambda: len(listener.messages) == 100)
        assert listener.messages == [Answer(n % 256, n, 0, b"x") for n in range(100)]
        link.close("done")
        assert await listener.until_closed() == "done"
        await asyncio.sleep(1)
        assert scene.receiver.events == [("connected", 12, 3), ("disconnected", 12, 3)]
        assert scene.server.connections == 0

    for seed in range(20):
        play(scenario, seed=seed)


def test_what_is_sent_in_one_tick_leaves_in_a_few_frames() -> None:
    """1,000 calls, sixteen frames, so that the peer begins before the last one is made; their answers the same."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed()
        for number in range(1000):
            link.send(call(number))
        await listener.until(lambda: len(listener.messages) == 1000)
        frames = [64] * 15 + [40]
        assert [len(frame) for frame in scene.receiver.frames] == frames
        assert [len(frame) for frame in listener.frames] == frames

    play(scenario)


def test_what_the_host_says_first_stands_behind_the_welcome() -> None:
    """A table and credit sent from `connected` are the first that a client hears."""

    async def scenario(scene: Scene) -> None:
        connected = scene.receiver.connected

        def greet(peer: Any) -> None:
            connected(peer)
            peer.send(TableUpdate(((1, 2, 3, "a:1"),)))
            peer.send(Credit(1, 2))

        scene.receiver.connected = greet  # type: ignore[method-assign] # this receiver talks
        _, listener = await scene.welcomed()
        await listener.until(lambda: len(listener.messages) == 2)
        assert listener.messages == [TableUpdate(((1, 2, 3, "a:1"),)), Credit(1, 2)]

    play(scenario)


def test_a_coordinator_pokes_and_may_do_nothing_else() -> None:
    """Its connection carries no session; a call on it breaks the protocol."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed(role="coordinator")
        link.send(Poke())
        await asyncio.sleep(0.1)
        assert scene.receiver.frames == [[Poke()]]
        assert scene.receiver.events == [("connected", 0, 0)]
        link.send(call(1))
        assert "protocol error" in await listener.until_closed()

    play(scenario)


def test_a_silent_connection_is_kept_by_pings() -> None:
    """Ten minutes without a command: both ends still hold it."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed()
        await asyncio.sleep(600)
        link.send(call(1))
        await listener.until(lambda: bool(listener.messages))
        assert listener.reasons == []

    play(scenario)


@pytest.mark.parametrize("cut", [True, False])
def test_a_half_open_peer_is_dropped_after_three_unanswered_pings(cut: bool) -> None:
    """R05: a cut network or a stopped process says nothing; each end finds out by itself within five heartbeats."""

    async def scenario(scene: Scene) -> None:
        client = scene.simulation.process("client")
        _, listener = await scene.welcomed(client)
        start = scene.simulation.loop.time()
        if cut:
            scene.simulation.network.cut(client, scene.host)
        else:
            scene.host.pause()
        reason = await listener.until_closed()
        assert "no sign of life: 3 pings" in reason
        assert 3 <= scene.simulation.loop.time() - start <= 5.5
        if cut:
            await asyncio.sleep(5)
            assert scene.receiver.events[-1][0] == "disconnected"
            assert scene.server.connections == 0

    play(scenario)


def test_a_killed_host_is_noticed_at_once_and_refuses() -> None:
    """PR16: its kernel closes the connections within milliseconds, and refuses new ones: the proof of its death."""

    async def scenario(scene: Scene) -> None:
        _, listener = await scene.welcomed()
        start = scene.simulation.loop.time()
        assert await scene.simulation.network.probe(scene.address, 1.0) is Probe.ACCEPTED
        scene.host.kill()
        await listener.until_closed()
        assert scene.simulation.loop.time() - start < 0.02
        assert await scene.simulation.network.probe(scene.address, 1.0) is Probe.REFUSED
        with pytest.raises(ConnectionRefusedError):
            await scene.link()

    for seed in range(10):
        play(scenario, seed=seed)


def test_a_peer_that_does_not_read_is_not_read_from_and_then_dropped() -> None:
    """R05: a slow reader. What waits for it stays within the bound, and after it took nothing for some heartbeats it is
    let go; it comes back and asks again."""
    most = 0

    async def scenario(scene: Scene) -> None:
        nonlocal most
        peer = await trusted_raw_peer(scene.simulation.network, scene.address)
        peer.transport.pause_reading()
        big = bytes(60_000)
        connection: Any = scene.receiver.peers[0]
        for number in range(400):  # 24 MB of answers, of which 1 MiB and what the kernels hold may be made
            peer.transport.write(encode_frame([call(number, big)], 1 << 20))
            await asyncio.sleep(0.002)
            most = max(most, connection._transport.get_write_buffer_size())
        assert not connection._reading
        assert len(scene.receiver.frames) < 60
        await asyncio.sleep(6)
        assert scene.receiver.events[-1][0] == "disconnected"
        assert scene.server.connections == 0

    play(scenario)
    assert 1 << 20 < most < 2 << 20


def test_answers_that_overflow_the_outgoing_bound_end_the_connection() -> None:
    """R05: a host that goes on producing for a peer that does not read keeps at most window + frame bytes for it."""

    async def scenario(scene: Scene) -> None:
        peer = await trusted_raw_peer(scene.simulation.network, scene.address)
        peer.transport.pause_reading()
        (connection,) = scene.receiver.peers
        for number in range(100):
            connection.send(Answer(1, number, 0, bytes(100_000)))
            await asyncio.sleep(0.01)
        assert scene.receiver.events[-1][0] == "disconnected"
        assert scene.server.connections == 0

    play(scenario, window_bytes=1 << 20, frame_bytes_max=1 << 20)


def test_what_all_slow_readers_together_leave_unread_is_bounded() -> None:
    """R05: a little for each of many is much. Above the host's bound the slowest is dropped; who reads notices nothing."""
    most = 0

    async def scenario(scene: Scene) -> None:
        nonlocal most
        good, listener = await scene.welcomed(client=7)
        peers = [await trusted_raw_peer(scene.simulation.network, scene.address) for _ in range(20)]
        for peer in peers:
            peer.transport.pause_reading()
        connections: list[Any] = list(scene.receiver.peers[1:])
        for number in range(400):
            for connection in connections:
                connection.send(Answer(1, number, 0, bytes(1_000 if connection is connections[0] else 3_000)))
            if not number % 20:
                good.send(call(number))
            await asyncio.sleep(0.01)
            most = max(most, sum(connection.unsent_bytes for connection in connections if not connection._closing))
        await listener.until(lambda: len(listener.messages) == 20)
        gone = [connection for connection in connections if connection._closing]
        assert 5 < len(gone) < 20
        assert connections[0] not in gone, "it has the least"
        assert listener.reasons == []

    play(scenario, unsent_bytes_max=5_000_000, heartbeat_s=60.0)
    assert 4_000_000 < most < 5_200_000


def test_a_slow_reader_that_takes_a_little_is_kept() -> None:
    """Progress counts, not speed: 64 KiB a second are enough, and everything arrives."""

    async def scenario(scene: Scene) -> None:
        peer = await trusted_raw_peer(scene.simulation.network, scene.address)
        (connection,) = scene.receiver.peers
        for number in range(40):
            connection.send(Answer(1, number, 0, bytes(50_000)))
        for _ in range(40):
            peer.transport.pause_reading()
            await asyncio.sleep(0.9)
            peer.transport.resume_reading()
            peer.transport.write(encode_frame([Pong()], 100))
            await asyncio.sleep(0.001)
        assert scene.receiver.events == [("connected", 41, 0)]
        peer.transport.resume_reading()
        await peer.until(lambda: len(peer.heard) > 40 * 50_000)

    play(scenario)


def test_a_held_host_reads_nothing_and_is_not_taken_for_dead() -> None:
    """A host over its budget stops reading; its clients wait as long as it takes, and lose nothing."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed()
        scene.server.hold()
        link.send(call(1))
        late, later = await scene.welcomed()  # handshakes go on
        late.send(call(2))
        await asyncio.sleep(60)
        assert scene.receiver.frames == []
        assert listener.reasons == later.reasons == []
        scene.server.hold(False)
        await listener.until(lambda: bool(listener.messages))
        await later.until(lambda: bool(later.messages))

    play(scenario)


def test_one_held_peer_leaves_the_others_alone() -> None:
    """Hold and release are per connection too, and do not undo each other's."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed(client=1)
        other, others = await scene.welcomed(client=2)
        held: Any = scene.receiver.peers[0]
        held.hold()
        scene.server.hold()
        scene.server.hold(False)
        link.send(call(1))
        other.send(call(2))
        await others.until(lambda: bool(others.messages))
        await asyncio.sleep(1)
        assert listener.messages == []
        held.release()
        await listener.until(lambda: bool(listener.messages))

    play(scenario)


# ---- credits


def test_who_sends_more_than_it_was_granted_is_closed_and_told_what_ran() -> None:
    """R03, M14: the window is the host's, not its peers'. Nothing of the frame that goes over acts."""

    async def scenario(scene: Scene) -> None:
        scene.receiver.answer = False
        link, listener = await scene.welcomed()
        for number in (1, 2, 3):
            link.send(call(number))
        await asyncio.sleep(1)
        assert scene.server.unanswered == (3, 3)
        link.send(call(4))
        link.send(call(5))
        reason = await listener.until_closed()
        assert reason == (
            "more was sent than the 3 calls and 1000000 bytes of arguments that were granted: "
            "nothing of the last 2 calls ran; those before may have run"
        )
        assert [call.number for frame in scene.receiver.frames for call in frame] == [1, 2, 3]

    play(scenario, window_commands=3, window_bytes=1_000_000)


def test_a_host_that_fills_grants_less_and_more_again_later() -> None:
    """R05, M14: to those that are connected and to those that come; but hosts' asks have the whole window always, since a
    turn may wait for one."""

    async def scenario(scene: Scene) -> None:
        scene.receiver.answer = False
        link, listener = await scene.welcomed(client=1)
        scene.server.narrow(1 / 4)
        late, later = await scene.welcomed(client=2)
        host, _ = await scene.welcomed(client=3, role="host")
        assert later.welcome is not None
        assert (later.welcome.window_commands, later.welcome.window_bytes) == (4, 250)
        await asyncio.sleep(1)
        granted = {peer.client: peer.grant.commands for peer in scene.receiver.peers}  # type: ignore[attr-defined] # as a host keeps it
        assert granted == {1: 16, 2: 4, 3: 16}
        for number in range(1, 17):
            link.send(call(number))
        await asyncio.sleep(1)
        assert listener.reasons == [], "what was granted stays granted"
        scene.server.narrow(1)
        await asyncio.sleep(1)
        assert late.allowance.room
        assert later.messages == [Credit(16, 1000)]
        assert host.allowance.room

    play(scenario, window_commands=16, window_bytes=1000)


def test_both_ends_flooding_each_other_do_not_lock_up() -> None:
    """Only hosts stop reading when they cannot write: a client goes on, so the two never wait for each other."""

    async def scenario(scene: Scene) -> None:
        link, listener = await scene.welcomed()
        for number in range(400):
            link.send(call(number, bytes(50_000)))
            await asyncio.sleep(0)  # a frame each: answers come while calls still wait to leave
        await listener.until(lambda: len(listener.messages) == 400)

    play(scenario)


def test_closing_sends_what_is_queued_and_then_the_reason() -> None:
    """The last answers of a host that goes down arrive, and the client learns why it went."""

    async def scenario(scene: Scene) -> None:
        _, listener = await scene.welcomed()
        (peer,) = scene.receiver.peers
        peer.send(Answer(1, 1, 0, b"last"))
        peer.close("this host is draining")
        peer.send(Answer(1, 2, 0, b"too late"))
        assert await listener.until_closed() == "this host is draining"
        assert listener.messages == [Answer(1, 1, 0, b"last")]
        await asyncio.sleep(0.1)
        assert scene.receiver.events[-1] == ("disconnected", 41, 0)

    for seed in range(10):
        play(scenario, seed=seed)


def test_a_peer_that_never_closes_is_cut_off_after_the_last_words() -> None:
    """Lingering is bounded: a peer that ignores the end of the stream does not keep our socket."""

    async def scenario(scene: Scene) -> None:
        peer = await trusted_raw_peer(scene.simulation.network, scene.address)
        peer.eof_received = lambda: True  # type: ignore[method-assign] # keeps its side open
        scene.receiver.peers[0].close("enough")
        await asyncio.sleep(LINGER_S / 2)
        assert scene.server.connections == 1
        await asyncio.sleep(LINGER_S)
        assert scene.server.connections == 0
        assert b"enough" in peer.heard

    play(scenario)


def test_a_message_too_long_for_the_peer_ends_the_connection_and_says_so() -> None:
    """A bound that does not fit is found here, and not by the peer as a broken frame."""

    async def scenario(scene: Scene) -> None:
        small = msgspec.structs.replace(scene.settings, frame_bytes_max=5000)
        link, listener = await scene.welcomed(settings=small)
        link.send(call(1, bytes(6000)))
        await listener.until_closed()
        await asyncio.sleep(0.1)
        assert scene.receiver.events[-1][0] == "disconnected"

    play(scenario)


def test_a_store_that_does_not_answer_asks_the_client_to_come_back() -> None:
    """`StoreError` in `admit`: refused for now, and the host lives on."""

    async def scenario(scene: Scene) -> None:
        def fail(_: int) -> int:
            raise StoreUnavailable("gone")

        scene.receiver.admit_as = fail
        link, listener = await scene.link()
        assert "the store does not answer" in await listener.until_closed()
        assert link.refusal is Refusal.BUSY
        scene.receiver.admit_as = lambda _: 5
        await scene.welcomed()

    play(scenario)


def test_a_store_that_hangs_keeps_the_place_of_those_who_wait_for_it() -> None:
    """A client gives up by its own time-out; its place is free only when the store has answered, so that admissions
    cannot pile up behind a stuck store."""

    async def scenario(scene: Scene) -> None:
        scene.receiver.admission.clear()
        link, listener = await scene.link()
        assert "within 5 s" in await listener.until_closed()
        assert link.refusal is Refusal.TIMEOUT
        await asyncio.sleep(5)
        assert scene.server.connections == 1
        scene.receiver.admission.set()
        await asyncio.sleep(0.1)
        assert scene.server.connections == 0
        assert scene.receiver.events == []

    play(scenario)


def test_an_expired_session_is_told_to_the_client() -> None:
    """The link says which refusal it was, so that the client can register anew."""

    async def scenario(scene: Scene) -> None:
        scene.receiver.admit_as = lambda _: None
        link, listener = await scene.link(client=9)
        assert "session has expired" in await listener.until_closed()
        assert link.refusal is Refusal.SESSION_EXPIRED

    play(scenario)


def test_a_host_that_listens_before_it_is_registered_asks_to_come_back() -> None:
    """The address is known before the incarnation."""

    async def scenario(scene: Scene) -> None:
        early = make_server(EchoReceiver(), scene.simulation.network, scene.simulation.world("early"))
        scene.address = await early.listen("10.0.0.2", 0)
        link, listener = await scene.link()
        assert await listener.until_closed() == "this host is starting: try again"
        assert link.refusal is Refusal.BUSY
        early.serve(8)
        await scene.welcomed()

    play(scenario)


def test_silent_strangers_are_dropped_in_time() -> None:
    """R05: who says nothing has `handshake_timeout_s`, and is told."""

    async def scenario(scene: Scene) -> None:
        peer = await raw_peer(scene.simulation.network, scene.address)
        await peer.until_closed()
        assert peer.messages() == [Refused(Refusal.TIMEOUT, "the handshake was not done within 5 s")]
        await asyncio.sleep(2)
        assert scene.server.connections == 0

    play(scenario)


def test_silent_strangers_cannot_lock_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """R05: with all places of the unproved taken, the oldest gives way to the newest."""
    monkeypatch.setattr(server_module, "UNPROVED_MAX", 5)

    async def scenario(scene: Scene) -> None:
        strangers = [await raw_peer(scene.simulation.network, scene.address) for _ in range(12)]
        link, listener = await scene.welcomed()
        assert sum(bool(stranger.messages()) for stranger in strangers) >= 7
        assert scene.server.unproved <= 5
        link.send(call(1))
        await listener.until(lambda: bool(listener.messages))

    play(scenario)


def test_a_full_host_says_so_and_goes_on_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """R05: at the limit a client is asked to try elsewhere. A refused connection would count as proof of death."""
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 3)

    async def scenario(scene: Scene) -> None:
        links = [await scene.welcomed() for _ in range(3)]
        link, listener = await scene.link()
        assert "has its 3 connections" in await listener.until_closed()
        assert link.refusal is Refusal.BUSY
        assert await scene.simulation.network.probe(scene.address, 1.0) is Probe.ACCEPTED
        links[0][0].close("bye")
        await asyncio.sleep(2)
        await scene.welcomed()

    play(scenario)


def test_a_closing_server_says_goodbye_to_all() -> None:
    """Those in their handshake too."""

    async def scenario(scene: Scene) -> None:
        _, listener = await scene.welcomed()
        stranger = await raw_peer(scene.simulation.network, scene.address, hello_frame())
        await stranger.until(lambda: bool(stranger.messages()))
        scene.server.close("the app was stopped")
        assert await listener.until_closed() == "the app was stopped"
        await stranger.until_closed()
        assert stranger.messages()[-1] == Refused(Refusal.BUSY, "the app was stopped")

    play(scenario)


def test_a_link_that_could_not_be_opened_is_never_heard_of() -> None:
    """`open` raised: its listener is left alone, also when the connection came about too late."""

    async def scenario(scene: Scene) -> None:
        client = scene.simulation.process("client")
        scene.simulation.network.cut(client, scene.host)
        listener = Listener()
        with pytest.raises(TimeoutError):
            await client.run(join(scene.simulation.network, scene.address, scene.simulation.world("c"), listener))
        scene.simulation.network.heal(client, scene.host)
        await asyncio.sleep(10)
        assert listener.reasons == []

    play(scenario)
