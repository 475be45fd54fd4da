"""What the Python API says to calls and targets that cannot be: each one error, of the class that tells its fate."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import atoll
from atoll.actors.calls import Request
from atoll.cluster.api import Cluster
from atoll.cluster.host_process import HostSpec
from atoll.cluster.token import TokenError, make_token_file

LIMIT = 1000


class Note(atoll.Entity):
    text: str = ""

    @atoll.command
    def write(self, text: str, times: int = 1) -> int:
        self.text = text * times
        return len(self.text)

    @atoll.command
    def answer(self, size: int) -> str:
        self.text = "answered"
        return "x" * size

    @atoll.query
    def read(self) -> str:
        return self.text


class Wrote(msgspec.Struct):
    text: str


class Diary(atoll.EventSourced):
    pages: int = 0

    @atoll.command
    def write(self, size: int) -> int:
        self.emit(Wrote("x" * size))
        return self.pages

    @atoll.apply
    def _wrote(self, event: Wrote) -> None:
        self.pages += 1


class Stranger(atoll.Entity):
    """Not of the app."""

    n: int = 0

    @atoll.command
    def move(self) -> None: ...


SMALL = dict.fromkeys(("arguments_bytes_max", "reply_bytes_max", "event_bytes_max", "state_bytes_max"), LIMIT)
app = atoll.App("notes", entities=[Note, Diary], settings=SMALL)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with atoll.local(app) as connected:
        yield connected


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((5,), {}, "text"),
        (("x", "many"), {}, "times"),
        ((), {}, "text"),
        (("x", 1, 2), {}, "write"),
        (("x",), {"colour": "red"}, "colour"),
        (("x",), {"text": "y"}, "text"),
        ((object(),), {}, "text"),
    ],
    ids=["wrong type", "wrong type of the second", "missing", "one too many", "unknown", "twice", "no such type"],
)
async def test_arguments_that_do_not_fit(cluster: Cluster, args: tuple[Any, ...], kwargs: Any, said: str) -> None:
    """`InvalidCommand` names the parameter; the command never ran."""
    note = cluster.entity(Note, "a")
    with pytest.raises(atoll.InvalidCommand, match=said):
        await note.write(*args, **kwargs)
    assert await note.read() == ""


@pytest.mark.parametrize("id", ["", "x" * 256, "é" * 128, 5, None, b"bytes"])
async def test_an_id_that_cannot_be(cluster: Cluster, id: Any) -> None:
    """Empty, above 255 bytes, or no string."""
    with pytest.raises(atoll.InvalidCommand, match="ID"):
        cluster.entity(Note, id)


@pytest.mark.parametrize(
    ("kind", "method", "said"), [("Nobody", "write", "Nobody"), ("Note", "burn", "burn"), ("Note", "_private", "_private")]
)  # fmt: skip
async def test_a_kind_or_method_that_the_host_does_not_know(
    cluster: Cluster, kind: str, method: str, said: str
) -> None:
    """What a client of another version may send is refused by the host, which names it."""
    with pytest.raises(atoll.InvalidCommand, match=said):
        await cluster.client.call(Request(kind, "a", method, b"\x80"))


async def test_a_class_that_the_app_does_not_have(cluster: Cluster) -> None:
    with pytest.raises(atoll.InvalidCommand, match="Stranger"):
        await cluster.entity(Stranger, "a").move()


async def test_a_method_that_the_class_does_not_have(cluster: Cluster) -> None:
    with pytest.raises(AttributeError, match="burn"):
        await cluster.entity(Note, "a").burn()  # type: ignore[attr-defined]


async def test_values_over_their_limits(cluster: Cluster) -> None:
    """Arguments, state, reply and event: each refused by the name of its setting, and the entity is as before."""
    note, diary = cluster.entity(Note, "a"), cluster.entity(Diary, "a")
    await note.write("before")
    with pytest.raises(atoll.InvalidCommand, match=str(LIMIT)):
        await note.write("x" * (LIMIT + 1))
    with pytest.raises(atoll.HandlerFailed, match="state_bytes_max"):
        await note.write("x" * 100, 11)
    with pytest.raises(atoll.HandlerFailed, match="reply_bytes_max"):
        await note.answer(LIMIT + 1)
    assert await note.read() == "before"
    with pytest.raises(atoll.HandlerFailed, match="event_bytes_max"):
        await diary.write(LIMIT + 1)
    assert await diary.write(1) == 1


# ---- where to connect, and with what


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tcp://", "names no host: write tcp://host:port,host:port"),
        ("tcp://127.0.0.1", "is not an address: write host:port"),
        ("tcp://127.0.0.1:port", "is not an address: write host:port"),
        ("tcp://127.0.0.1:70000", "the port is above 65535"),
        ("tcp://::1:7700", r"write host:port, for IPv6 \[host\]:port"),
        ("http://127.0.0.1:7700", "is neither an app's name nor tcp://host:port"),
        ("127.0.0.1:7700", "is neither an app's name nor tcp://host:port"),
        ("", "is neither an app's name nor tcp://host:port"),
    ],
)
async def test_a_target_that_cannot_be(target: str, said: str) -> None:
    """`ValueError` that shows the form, before anything is looked for."""
    with pytest.raises(ValueError, match=said):
        async with atoll.connect(target, token="-" * 43):
            pass


async def test_a_token_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None given, not one, no file, a file that others can read: `TokenError` says what to do, and shows no token."""
    monkeypatch.delenv("ATOLL_TOKEN_FILE", raising=False)
    path = tmp_path / "token"
    secret = make_token_file(path, os.urandom(32)).reveal()
    path.chmod(0o644)
    for arguments, said in (
        ({}, "ATOLL_TOKEN_FILE"),
        ({"token": "secret"}, "this is no token: 6 characters where 43 are written"),
        ({"token_file": tmp_path / "nowhere"}, "No such file or directory; copy it from the machine"),
        ({"token_file": path}, "others can use it \\(mode 644\\); run: chmod 600"),
    ):
        with pytest.raises(TokenError, match=said) as caught:
            async with atoll.connect("tcp://127.0.0.1:7700", **arguments):  # type: ignore[arg-type]
                pass
        assert secret not in str(caught.value)


# ---- a host that is there


@pytest.fixture
def host_spec(tmp_path: Path) -> HostSpec:
    make_token_file(tmp_path / "token", os.urandom(32))
    (tmp_path / "notes.py").write_text(
        "import atoll\nclass Note(atoll.Entity):\n    n: int = 0\napp = atoll.App('notes', entities=[Note])\n"
    )
    return HostSpec(
        app="notes:app", app_dir=str(tmp_path), store=f"sqlite:{tmp_path}/store", token_file=str(tmp_path / "token")
    )


def start_host(spec: HostSpec) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "atoll.cluster.host_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(spec))
    process.stdin.close()
    process.stdin = None
    return process


@pytest.fixture
def address(host_spec: HostSpec) -> Iterator[str]:
    """Of a host of the app, in a process of its own."""
    process = start_host(host_spec)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.communicate()


async def test_a_wrong_token_is_refused_at_once(address: str) -> None:
    """R04: `Unavailable` names the host and the reason, without waiting for the time-out."""
    async with asyncio.timeout(50):
        with pytest.raises(atoll.Unavailable, match=f"{address} refuses: .*token"):
            async with atoll.connect(f"tcp://{address}", token=atoll.Token(bytes(32)), timeout=60):
                pass


async def test_nobody_listens_at_any_address(address: str, tmp_path: Path) -> None:
    """`Unavailable` after the time-out names the addresses; one that answers among others that do not is enough."""
    port = int(address.rpartition(":")[2])
    with pytest.raises(atoll.Unavailable, match=r"no host answers at 127\.0\.0\.1:1 within 0\.5 s"):
        async with atoll.connect("tcp://127.0.0.1:1", token_file=tmp_path / "token", timeout=0.5):
            pass
    target = f"tcp://127.0.0.1:1,127.0.0.1:{port}"
    async with atoll.connect(target, token_file=tmp_path / "token", timeout=60) as cluster:
        assert cluster.app_name == "notes"


def test_a_second_host_at_the_same_port_ends_with_one_line(address: str, host_spec: HostSpec) -> None:
    """A port in use: status 1, the reason on standard error, nothing registered."""
    second = start_host(msgspec.structs.replace(host_spec, port=int(address.rpartition(":")[2])))
    output, said = second.communicate(timeout=60)
    assert second.returncode == 1
    assert output == b""
    lines = said.decode().splitlines()
    assert len(lines) == 1, lines
    assert "address already in use" in lines[0]
