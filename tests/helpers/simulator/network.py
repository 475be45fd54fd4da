"""TCP as the simulation has it: what a program can see of it, on virtual time, with luck from the seed.

Each direction of a connection is a pipe:

    transport.write -> unsent (the sender's memory) -> flying (the kernels, a delay each) -> arrived -> data_received
                       counts for pause_writing        at most KERNEL_BYTES in both          waits while not read

Rules:
- Bytes of one direction arrive in order, cut anywhere. Delays are drawn from the seed.
- A killed process: its unsent bytes are gone, those in the kernel mostly still arrive; then the peer sees the end, as a
  close or a reset. New connections to it are refused.
- A paused process: the kernel goes on accepting and keeping, up to its buffers.
- Cut: nothing passes between two processes, no refusal and no end either, until `heal`; what was on its way then arrives.
- A vanished machine is a killed process behind a cut to everybody.
- `trace()` hashes all deliveries with their times: the same seed gives the same trace.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.cluster.network import Probe, ProtocolFactory, join_address, split_address

from .loop import Life, Process, VirtualTimeLoop, current_process, outside

KERNEL_BYTES = 256 * 1024
"""What both kernels together keep of one direction."""

_CHUNK_BYTES = 64 * 1024
_DEFAULT_HIGH = 64 * 1024


class SimListener:
    def __init__(self, network: SimNetwork, address: str, factory: ProtocolFactory, process: Process | None) -> None:
        self.factory = factory
        self.process = process
        self.context = contextvars.copy_context()
        self._network = network
        self._address = address

    @property
    def address(self) -> str:
        return self._address

    def close(self) -> None:
        self._network.unlisten(self)


class SimNetwork:
    """Implements `Network` (cluster/network.py) inside one loop. One for the whole simulation: the calling process is
    known from the context."""

    def __init__(self, loop: VirtualTimeLoop, *, delay_s: tuple[float, float] = (0.0001, 0.001)) -> None:
        self.delay_s = delay_s
        """Shortest and longest way of one chunk; may be changed at any time."""
        self._loop = loop
        self._luck = random.Random(f"{loop.seed}/network")
        self._listeners: dict[str, SimListener] = {}
        self._ports = 7000
        self._owners: dict[str, Process | None] = {}
        """address -> who listened there last: its kernel answers, also when it is dead."""
        self._cuts: set[frozenset[str]] = set()
        self._vanished: set[str] = set()
        self._transports: dict[SimTransport, None] = {}
        self._names = 0
        self._trace = hashlib.sha256()
        self.deliveries = 0
        self.bytes_delivered = 0
        loop.notes = self.note

    # ---- Network ---------------------------------------------------------------------------------------------

    async def listen(self, factory: ProtocolFactory, host: str, port: int) -> SimListener:
        if port == 0:
            self._ports += 1
            port = self._ports
        address = join_address(host, port)
        if address in self._listeners:
            raise OSError(98, f"address in use: {address}")
        process = current_process()
        listener = self._listeners[address] = SimListener(self, address, factory, process)
        self._owners[address] = process
        if process is not None:
            process.on_kill[listener.close] = None
        return listener

    async def connect(self, factory: ProtocolFactory, address: str) -> asyncio.BaseTransport:
        split_address(address)
        process = current_process()
        await self._path(process, address)
        listener = self._listeners.get(address)
        if listener is None:
            await asyncio.sleep(self.draw_delay())
            raise ConnectionRefusedError(111, f"nothing listens at {address}")
        self._names += 1
        name = f"{process.name if process else '-'}:{self._names}"
        ours = SimTransport(self, name, address, process, contextvars.copy_context())
        theirs = SimTransport(self, address, name, listener.process, listener.context)
        ours.peer, theirs.peer = theirs, ours
        self._loop.call_soon(theirs.accept, listener.factory, context=listener.context)
        try:
            await asyncio.sleep(self.draw_delay())
        except BaseException:
            ours.abort()  # who waited for it has left
            raise
        ours.accept(factory)
        return ours

    async def probe(self, address: str, timeout_s: float) -> Probe:
        try:
            async with asyncio.timeout(timeout_s):
                await self._path(current_process(), address)
                await asyncio.sleep(self.draw_delay())
        except TimeoutError:
            return Probe.UNKNOWN
        return Probe.ACCEPTED if address in self._listeners else Probe.REFUSED

    # ---- faults ----------------------------------------------------------------------------------------------

    def cut(self, one: Process, other: Process) -> None:
        """Nothing passes between the two any more."""
        self._cuts.add(frozenset((one.name, other.name)))
        self.note(f"cut {one.name} {other.name}")

    def heal(self, one: Process, other: Process) -> None:
        self._cuts.discard(frozenset((one.name, other.name)))
        self.note(f"heal {one.name} {other.name}")
        for transport in list(self._transports):
            transport.kick()

    def vanish(self, process: Process) -> None:
        """Its machine goes dark: nobody hears of its death, and nothing refuses."""
        self._vanished.add(process.name)
        process.kill()

    def passes(self, one: Process | None, other: Process | None) -> bool:
        if any(end is not None and end.name in self._vanished for end in (one, other)):
            return False
        return one is None or other is None or frozenset((one.name, other.name)) not in self._cuts

    # ---- trace -----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        self._trace.update(f"{self._loop.time():.9f} {text}\n".encode())

    def delivered(self, to: str, data: bytes) -> None:
        self.deliveries += 1
        self.bytes_delivered += len(data)
        self.note(f"to {to}: {len(data)}")
        self._trace.update(data)

    def trace(self) -> str:
        return self._trace.hexdigest()

    # ---- inside ----------------------------------------------------------------------------------------------

    async def _path(self, process: Process | None, address: str) -> None:
        """The way of a SYN, which the kernel repeats while nothing passes."""
        await asyncio.sleep(self.draw_delay())
        while not self.passes(process, self._owners.get(address)):  # noqa: ASYNC110 - nobody tells a kernel of a heal
            await asyncio.sleep(0.2)

    def unlisten(self, listener: SimListener) -> None:
        if self._listeners.get(listener.address) is listener:
            del self._listeners[listener.address]

    def draw_delay(self) -> float:
        return self._luck.uniform(*self.delay_s)

    def draw(self) -> float:
        return self._luck.random()

    def draw_cut(self, size: int) -> int:
        return self._luck.randint(1, size)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        self._loop.call_later(delay, callback, context=outside())

    def now(self) -> float:
        return self._loop.time()

    def soon(self, context: contextvars.Context, callback: Callable[..., Any], *args: Any) -> None:
        self._loop.call_soon(callback, *args, context=context)

    def add(self, transport: SimTransport) -> None:
        self._transports[transport] = None

    def remove(self, transport: SimTransport) -> None:
        self._transports.pop(transport, None)


class SimTransport(asyncio.Transport):
    """One end of a connection. Its methods run in its process; what the kernel does runs in none."""

    peer: SimTransport

    def __init__(
        self, network: SimNetwork, name: str, peer_name: str, process: Process | None, context: contextvars.Context
    ) -> None:
        super().__init__(extra={"peername": peer_name, "sockname": name})
        self.name = name
        self._network = network
        self._process = process
        self._context = context
        self._protocol: asyncio.Protocol | None = None
        self._high = _DEFAULT_HIGH
        self._low = _DEFAULT_HIGH // 4
        # outgoing
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._writing_paused = False
        self._eof_wanted = False
        self._eof_sent = False
        self._closing = False
        # incoming
        self._flying: deque[tuple[float, bytes | ConnectionResetError | None]] = deque()
        """On their way to this end, each with its time: bytes, None for the end of the stream, or a reset."""
        self._kernel_bytes = 0
        """Flying and arrived."""
        self._arrived: deque[bytes | None] = deque()
        self._reading = True
        self._delivering = False
        self._pump_at: float | None = None
        self._gone = False
        """connection_lost was called, or the process is dead."""

        if process is not None:
            process.on_kill[self._killed] = None
        network.add(self)

    def accept(self, factory: ProtocolFactory) -> None:
        if self._gone:
            return
        self._protocol = factory()
        self._protocol.connection_made(self)
        self.kick()

    # ---- the program's side ----------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._eof_wanted and not self._closing:
            raise RuntimeError("write after write_eof")
        if self._closing or self._gone or not data:
            return
        self._unsent.append(bytes(data))
        self._unsent_bytes += len(data)
        self._push()
        if self._unsent_bytes > self._high and not self._writing_paused and self._protocol is not None:
            self._writing_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = _DEFAULT_HIGH if high is None else high
        self._low = self._high // 4 if low is None else low

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_wanted = True
        self._push()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule_delivery()

    def is_reading(self) -> bool:
        return self._reading

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._eof_wanted = True
            self._reading = False
            self._push()

    def abort(self) -> None:
        if not self._gone:
            self._closing = True
            self._drop_outgoing()
            self._tell_peer(ConnectionResetError(104, "reset by the peer"))
            self._lose(None)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    # ---- the kernel's side, outgoing -------------------------------------------------------------------------

    def _push(self) -> None:
        """Move what fits from the program's memory into the kernel."""
        peer = self.peer
        while self._unsent and (peer._gone or peer._kernel_bytes < KERNEL_BYTES):
            data = self._unsent.popleft()
            room = _CHUNK_BYTES if peer._gone else min(KERNEL_BYTES - peer._kernel_bytes, _CHUNK_BYTES)
            if len(data) > room:
                self._unsent.appendleft(data[room:])
                data = data[:room]
            self._unsent_bytes -= len(data)
            self._tell_peer(data)
        if self._writing_paused and self._unsent_bytes <= self._low and not self._gone:
            self._writing_paused = False
            assert self._protocol is not None
            self._network.soon(self._context, self._protocol.resume_writing)
        if not self._unsent and self._eof_wanted and not self._eof_sent:
            self._eof_sent = True
            self._tell_peer(None)
        if self._closing and not self._unsent:
            self._lose(None)

    def _tell_peer(self, what: bytes | ConnectionResetError | None) -> None:
        peer = self.peer
        if isinstance(what, bytes):
            if peer._gone:
                # Nobody is there any more: its kernel answers with a reset.
                peer._tell_peer(ConnectionResetError(104, "reset by the peer"))
                return
            peer._kernel_bytes += len(what)
        due = self._network.now() + self._network.draw_delay()
        if peer._flying:
            due = max(due, peer._flying[-1][0])
        peer._flying.append((due, what))
        peer.kick()

    def _drop_outgoing(self) -> None:
        self._unsent.clear()
        self._unsent_bytes = 0

    def _killed(self) -> None:
        if self._gone:
            return
        self._vanish()
        # With unread bytes the kernel resets, else it closes in order: either may come, and a reset overtakes data.
        if self._network.draw() < 0.5:
            self.peer._flying.clear()
            self._tell_peer(ConnectionResetError(104, "reset by the peer"))
        elif not self._eof_sent:
            self._eof_sent = True
            self._tell_peer(None)

    # ---- the kernel's side, incoming -------------------------------------------------------------------------

    def kick(self) -> None:
        """See to it that what flies to this end lands when it is due."""
        if self._protocol is None or not self._flying or self._gone:
            return
        due = self._flying[0][0]
        if self._pump_at is None or self._pump_at > due:
            self._pump_at = due
            self._network.later(max(0.0, due - self._network.now()), self._pump)

    def _pump(self) -> None:
        self._pump_at = None
        if self._gone or not self._network.passes(self._process, self.peer._process):
            return  # `heal` kicks again
        while self._flying and self._flying[0][0] <= self._network.now() + 1e-9:
            _, what = self._flying.popleft()
            if isinstance(what, ConnectionResetError):
                self._arrived.clear()
                self._flying.clear()
                self._lose(what)
                return
            self._arrived.append(what)
        self._schedule_delivery()
        self.kick()

    def _schedule_delivery(self) -> None:
        if self._arrived and self._reading and not self._delivering and not self._gone:
            self._delivering = True
            self._network.soon(self._context, self._deliver)

    def _deliver(self) -> None:
        """Runs in the process: a paused one finds it on waking, a dead one never."""
        self._delivering = False
        if self._gone or not self._reading or not self._arrived:
            return
        assert self._protocol is not None
        if self._arrived[0] is None:
            self._arrived.popleft()
            if not self._protocol.eof_received():
                self.close()
            return
        pieces: list[bytes] = []
        while self._arrived and self._arrived[0] is not None:
            pieces.append(self._arrived.popleft())  # type: ignore[arg-type] # the end of the stream was looked for above
        data = b"".join(pieces)
        if self._network.draw() < 0.2:
            at = self._network.draw_cut(len(data))
            data, rest = data[:at], data[at:]
            if rest:
                self._arrived.appendleft(rest)
        self._kernel_bytes -= len(data)
        self._network.delivered(self.name, data)
        self._protocol.data_received(data)
        self._network.soon(outside(), self.peer._room)
        self._schedule_delivery()

    def _room(self) -> None:
        if not self._gone and (self._process is None or self._process.life is not Life.DEAD):
            self._push()

    def _lose(self, error: Exception | None) -> None:
        if not self._gone:
            self._vanish()
            if self._protocol is not None:
                self._network.soon(self._context, self._protocol.connection_lost, error)

    def _vanish(self) -> None:
        self._gone = True
        self._network.remove(self)
        self._drop_outgoing()
        if self._process is not None:
            self._process.on_kill.pop(self._killed, None)
        self._network.soon(outside(), self.peer._room)  # what the peer still sends meets nobody: it gets a reset
