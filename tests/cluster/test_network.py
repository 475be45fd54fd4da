"""Real sockets on the loopback: addresses, connections, and what a probe proves."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys

import pytest

from atoll.cluster.network import Probe, TcpNetwork, join_address, split_address


@pytest.mark.parametrize(
    ("address", "parts"), [("a:1", ("a", 1)), ("10.0.0.1:65535", ("10.0.0.1", 65535)), ("[::1]:7", ("::1", 7))]
)
def test_an_address_in_two_and_back(address: str, parts: tuple[str, int]) -> None:
    """Both forms, and IPv6 in brackets."""
    assert split_address(address) == parts
    assert join_address(*parts) == address


@pytest.mark.parametrize("address", ["", "a", "a:", ":1", "a:b", "::1:7", "a:-1", "a:65536", "a:1 ", "a:²"])
def test_what_is_no_address_is_refused_with_its_form(address: str) -> None:
    """The message shows what was given."""
    with pytest.raises(ValueError, match="is not an address"):
        split_address(address)


async def test_a_connection_has_no_delay_and_is_kept_alive() -> None:
    """Small frames leave at once, and the kernel finds a peer that vanished."""
    accepted: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)  # type: ignore[arg-type]

    network = TcpNetwork()
    listener = await network.listen(Accepted, "127.0.0.1", 0)
    ours = await network.connect(asyncio.Protocol, listener.address)
    for transport in (ours, await accepted):
        end = transport.get_extra_info("socket")
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5
        transport.close()
    listener.close()


async def test_a_port_in_use_is_an_error() -> None:
    """A second process cannot share the port and take half of the connections."""
    network = TcpNetwork()
    listener = await network.listen(asyncio.Protocol, "127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        await network.listen(asyncio.Protocol, *split_address(listener.address))
    listener.close()


async def test_a_probe_tells_a_living_a_stopped_and_a_dead_process_apart() -> None:
    """PR16: a stopped process still accepts; only when it is gone does a live kernel refuse."""
    code = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); time.sleep(60)"
    child = subprocess.Popen(  # noqa: ASYNC220 - started before anything runs on this loop
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        address = f"127.0.0.1:{int(child.stdout.readline())}"
        network = TcpNetwork()
        assert await network.probe(address, 5.0) is Probe.ACCEPTED
        os.kill(child.pid, signal.SIGSTOP)
        assert await network.probe(address, 5.0) is Probe.ACCEPTED
    finally:
        child.kill()
        child.wait()
    assert await network.probe(address, 5.0) is Probe.REFUSED


async def test_a_refused_name_proves_nothing() -> None:
    """PR16: a name may lead to another machine by now, whose kernel refuses with full right."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert await TcpNetwork().probe(f"localhost:{port}", 5.0) is Probe.UNKNOWN
    assert await TcpNetwork().probe(f"127.0.0.1:{port}", 5.0) is Probe.REFUSED


async def test_a_silent_network_proves_nothing() -> None:
    """PR16: a full backlog drops the SYN as a dark machine does; the probe gives up in time and claims nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        port = listening.getsockname()[1]
        assert await TcpNetwork().probe(f"127.0.0.1:{port}", 0.3) is Probe.UNKNOWN
        for one in fill:
            one.close()
