"""The simulator itself: what rests on it is only as true as its time, its processes and its network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from simulator.loop import Process, Stuck, current_process
from simulator.simulation import Simulation
from wiring import EchoReceiver, Listener, call, join, make_server


def test_an_hour_passes_at_once() -> None:
    """Waiting is a jump: timers, `sleep` and `timeout` need no time of ours."""

    async def main() -> float:
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(3000)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(500):
                await asyncio.get_running_loop().create_future()
        return asyncio.get_running_loop().time() - begun

    started = time.perf_counter()
    with Simulation(1) as simulation:
        assert simulation.run(main()) == pytest.approx(3500)
    assert time.perf_counter() - started < 5


def test_timers_of_one_instant_run_in_the_order_of_the_seed() -> None:
    """The same seed, the same order; over the seeds every order comes."""

    def order(seed: int) -> tuple[int, ...]:
        ran: list[int] = []

        async def main() -> None:
            due = asyncio.get_running_loop().time() + 1
            for n in range(3):
                asyncio.get_running_loop().call_at(due, ran.append, n)
            await asyncio.sleep(2)

        with Simulation(seed) as simulation:
            simulation.run(main())
        return tuple(ran)

    orders = [order(seed) for seed in range(60)]
    assert len(set(orders)) == 6
    assert orders == [order(seed) for seed in range(60)]


def test_callbacks_keep_their_order() -> None:
    """`call_soon` is first in, first out on every loop; real code may rest on that."""
    ran: list[int] = []

    async def main() -> None:
        for n in range(100):
            asyncio.get_running_loop().call_soon(ran.append, n)
        await asyncio.sleep(0)

    with Simulation(1) as simulation:
        simulation.run(main())
    assert ran == list(range(100))


class Ticker:
    """Ticks once a second in a process, and writes down when."""

    def __init__(self, simulation: Simulation) -> None:
        self.loop = simulation.loop
        self.ticks: list[float] = []
        self.cleaned_up = False

    async def tick(self) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                self.ticks.append(round(self.loop.time(), 3))
        finally:
            self.cleaned_up = True


def test_a_killed_process_does_nothing_more() -> None:
    """No tick, no `finally`, no child task: as under SIGKILL."""
    with Simulation(1) as simulation:
        ticker, child = Ticker(simulation), Ticker(simulation)
        process = simulation.process("p")

        async def work() -> None:
            asyncio.get_running_loop().create_task(child.tick())
            assert current_process() is process
            await ticker.tick()

        async def main() -> None:
            process.run(work())
            await asyncio.sleep(3.5)
            process.kill()
            await asyncio.sleep(100)
            assert (ticker.ticks, ticker.cleaned_up) == ([1001, 1002, 1003], False)
            assert len(child.ticks) == 3

        simulation.run(main())


def test_a_process_that_kills_itself_gets_to_its_next_await() -> None:
    """A fenced host ends itself: nothing runs behind that."""
    ran: list[str] = []

    async def work(process: Process) -> None:
        process.kill()
        ran.append("same step")
        await asyncio.sleep(0)
        ran.append("next step")

    async def main() -> None:
        process = simulation.process("p")
        process.run(work(process))
        await asyncio.sleep(1)

    with Simulation(1) as simulation:
        simulation.run(main())
    assert ran == ["same step"]


def test_a_paused_process_catches_up_when_it_is_resumed() -> None:
    """SIGSTOP and SIGCONT: what was due meanwhile runs on waking, and time has gone on."""
    with Simulation(1) as simulation:
        ticker = Ticker(simulation)
        process = simulation.process("p")

        async def main() -> None:
            process.run(ticker.tick())
            await asyncio.sleep(2.5)
            process.pause()
            await asyncio.sleep(10)
            assert ticker.ticks == [1001, 1002]
            process.resume()
            await asyncio.sleep(2)
            assert ticker.ticks == [1001, 1002, 1012.5, 1013.5, 1014.5][: len(ticker.ticks)]
            assert len(ticker.ticks) >= 4

        simulation.run(main())


def test_a_process_killed_while_paused_never_wakes() -> None:
    """What was parked is gone."""
    with Simulation(1) as simulation:
        ticker = Ticker(simulation)
        process = simulation.process("p")

        async def main() -> None:
            process.run(ticker.tick())
            process.pause()
            await asyncio.sleep(5)
            process.kill()
            process.resume()
            await asyncio.sleep(5)
            assert ticker.ticks == []

        simulation.run(main())


def test_a_deadlock_is_an_error_that_names_who_waits() -> None:
    """Nothing is scheduled and the main task waits: said at once, with the line it hangs in."""

    async def hang_here() -> None:
        await asyncio.get_running_loop().create_future()

    with Simulation(1) as simulation, pytest.raises(Stuck, match=r"deadlock at 1000.*\n(.*\n)*.*hang_here"):
        simulation.run(hang_here())


def test_a_livelock_is_an_error() -> None:
    """Time that stands still because something calls itself for ever."""

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - the very mistake
            await asyncio.sleep(0)

    with Simulation(1) as simulation, pytest.raises(Stuck, match="time stands still"):
        simulation.run(spin())


def test_a_simulation_over_its_limit_is_an_error() -> None:
    """Heartbeats go on for ever: a deadlock behind them is found by the limit."""
    with Simulation(1, limit_s=60) as simulation, pytest.raises(Stuck, match="not done after the limit"):
        simulation.run(Ticker(simulation).tick())


def test_an_error_in_the_background_fails_the_simulation() -> None:
    """What a task of a world raises, and what a callback raises: neither gets lost."""

    async def fail() -> None:
        raise ZeroDivisionError

    async def spawning() -> None:
        simulation.world("w").spawn(fail(), "failing")
        await asyncio.sleep(1)

    async def calling() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(1)

    for main in (spawning, calling):
        with Simulation(1) as simulation, pytest.raises(BaseExceptionGroup, match="seed 1") as caught:
            simulation.run(main())
        assert caught.group_contains(ZeroDivisionError)


def test_threads_are_refused() -> None:
    """A thread would bring its own order into a run that the seed decides."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="no threads"):
            await asyncio.to_thread(print)

    with Simulation(1) as simulation:
        simulation.run(main())


# ---- the network


class Ear(asyncio.Protocol):
    """Hears, and can be waited for."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.events: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(type(exc).__name__ if exc else "lost")

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")


async def pair(simulation: Simulation, host: Process, client: Process | None = None) -> tuple[Ear, Ear]:
    """(the client's end, the host's end)"""
    theirs = Ear()
    listener = await host.run(simulation.network.listen(lambda: theirs, "10.0.0.1", 0))
    ours = Ear()
    connecting = simulation.network.connect(lambda: ours, listener.address)
    await (client.run(connecting) if client else connecting)
    return ours, theirs


@pytest.mark.parametrize("seed", range(5))
def test_bytes_arrive_whole_and_in_order(seed: int) -> None:
    """Both ways, in pieces of any size, also more than the kernels hold, and before the end of the stream."""

    async def main() -> None:
        ours, theirs = await pair(simulation, simulation.process("host"))
        sent = bytearray()
        for n in range(300):
            piece = n.to_bytes(4) * (n + 1)
            sent += piece
            ours.transport.write(piece)
            theirs.transport.write(piece)
            if n % 10 == 0:
                await asyncio.sleep(0.0003)
        ours.transport.close()
        await asyncio.sleep(1)
        assert theirs.heard == sent
        assert theirs.events[-2:] == ["eof", "lost"]

    with Simulation(seed) as simulation:
        simulation.run(main())


def test_a_reader_that_stops_stops_the_writer() -> None:
    """Backpressure as the kernel makes it: its buffers, then the writer's own, then `pause_writing`; and back."""

    async def main() -> None:
        ours, theirs = await pair(simulation, simulation.process("host"))
        await asyncio.sleep(0.01)
        theirs.transport.pause_reading()
        ours.transport.write(bytes(1_000_000))
        await asyncio.sleep(1)
        assert ours.events == ["made", "pause"]
        assert len(theirs.heard) == 0
        assert 700_000 < ours.transport.get_write_buffer_size() < 1_000_000
        theirs.transport.resume_reading()
        await asyncio.sleep(1)
        assert ours.events == ["made", "pause", "resume"]
        assert len(theirs.heard) == 1_000_000

    with Simulation(1) as simulation:
        simulation.run(main())


def test_a_killed_process_closes_or_resets_and_refuses() -> None:
    """What its kernel still had mostly arrives, then the end; a new connection is refused."""
    ends = set()
    for seed in range(20):
        with Simulation(seed) as simulation:
            host = simulation.process("host")

            async def main() -> None:
                ours, theirs = await pair(simulation, host)  # noqa: B023 - used within this round
                address = ours.transport.get_extra_info("peername")
                await asyncio.sleep(0.1)
                theirs.transport.write(b"last")
                host.kill()  # noqa: B023
                await asyncio.sleep(0.1)
                ends.add((bytes(ours.heard), *ours.events[1:]))
                with pytest.raises(ConnectionRefusedError):
                    await simulation.network.connect(Ear, address)

            simulation.run(main())
    assert ends == {(b"last", "eof", "lost"), (b"", "ConnectionResetError")}


def test_a_paused_process_still_accepts() -> None:
    """Its kernel takes the connection and the bytes; the process finds both when it wakes."""

    async def main() -> None:
        host = simulation.process("host")
        theirs = Ear()
        listener = await host.run(simulation.network.listen(lambda: theirs, "10.0.0.1", 0))
        host.pause()
        ours = Ear()
        await simulation.network.connect(lambda: ours, listener.address)
        ours.transport.write(b"hello")
        await asyncio.sleep(100)
        assert (ours.events, theirs.events) == (["made"], [])
        host.resume()
        await asyncio.sleep(0.1)
        assert (theirs.events, theirs.heard) == (["made"], b"hello")

    with Simulation(1) as simulation:
        simulation.run(main())


def test_a_cut_holds_everything_back_until_it_heals() -> None:
    """Bytes, ends and refusals: neither side learns anything, and nothing is lost."""

    async def main() -> None:
        host, client = simulation.process("host"), simulation.process("client")
        ours, theirs = await pair(simulation, host, client)
        address = ours.transport.get_extra_info("peername")
        simulation.network.cut(host, client)
        ours.transport.write(b"through the cut")
        with pytest.raises(TimeoutError):
            await client.run(_within(5, simulation.network.connect(Ear, address)))
        assert theirs.heard == b""
        simulation.network.heal(host, client)
        await asyncio.sleep(1)
        assert theirs.heard == b"through the cut"
        simulation.network.cut(host, client)
        host.kill()
        await asyncio.sleep(60)
        assert ours.events == ["made"]
        simulation.network.heal(host, client)
        await asyncio.sleep(1)
        assert ours.events[-1] in ("lost", "ConnectionResetError")

    with Simulation(1) as simulation:
        simulation.run(main())


def test_a_vanished_machine_neither_ends_nor_refuses() -> None:
    """No kernel answers: only silence."""

    async def main() -> None:
        host = simulation.process("host")
        ours, _ = await pair(simulation, host)
        address = ours.transport.get_extra_info("peername")
        simulation.network.vanish(host)
        await asyncio.sleep(60)
        assert ours.events == ["made"]
        assert await simulation.network.probe(address, 5.0) == "unknown"

    with Simulation(1) as simulation:
        simulation.run(main())


async def _within(seconds: float, work: Any) -> Any:
    async with asyncio.timeout(seconds):
        return await work


# ---- determinism


def eventful(seed: int) -> str:
    """Clients come, call and go; hosts are paused, cut and killed. Returns the trace of all deliveries."""

    async def client(n: int, address: str) -> None:
        world = simulation.world(f"client {n}")
        for generation in range(5):
            listener = Listener()
            with contextlib.suppress(OSError):
                link = await join(simulation.network, address, world, listener, client=n + 1, generation=generation)
                await listener.until(lambda: listener.welcome is not None or bool(listener.reasons))  # noqa: B023
                for number in range(50):
                    link.send(call(number, world.random.randbytes(200)))
                    await asyncio.sleep(world.random.uniform(0, 0.1))
                link.close("next")
            await asyncio.sleep(world.random.uniform(0, 1))

    async def main() -> None:
        host = simulation.process("host")
        server = make_server(EchoReceiver(), simulation.network, simulation.world("host"))
        address = await host.run(server.listen("10.0.0.1", 7700))
        server.serve(1)
        processes = [simulation.process(f"client {n}") for n in range(8)]
        clients = [process.run(client(n, address)) for n, process in enumerate(processes)]
        luck = simulation.world("faults").random
        for _ in range(10):
            await asyncio.sleep(luck.uniform(0, 2))
            victim = luck.choice(processes[1:])
            simulation.network.cut(host, victim)
            host.pause()
            await asyncio.sleep(luck.uniform(0, 2))
            host.resume()
            simulation.network.heal(host, victim)
        processes[1].kill()
        await asyncio.wait([task for n, task in enumerate(clients) if n != 1])
        host.kill()
        await asyncio.sleep(1)

    with Simulation(seed) as simulation:
        simulation.run(main())
        assert simulation.network.deliveries > 500
        return simulation.network.trace()


def test_the_same_seed_gives_the_same_trace() -> None:
    """Twice here, and in processes with other hash seeds; another seed gives another one."""
    expected = eventful(5)
    assert eventful(5) == expected
    assert eventful(6) != expected
    folder = Path(__file__).parent
    code = f"import sys; sys.path[:0] = {[str(folder), *(p for p in sys.path if 'helpers' in p)]!r}; import test_virtual_time; print(test_virtual_time.eventful(5))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
