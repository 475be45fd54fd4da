"""References: typed addresses that send, compare, and travel as three strings."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from typing import Any

import msgspec
import pytest

import atoll
from atoll.actors.calls import Mode, Request
from atoll.actors.kind import kind_of
from atoll.actors.reference import bind_caller, reference, unbind_caller


class Counter(atoll.Entity, kind="test-reference.counter"):
    value: int = 0

    @atoll.command
    def add(self, amount: int, note: str = "") -> int: ...

    @atoll.query
    def current(self) -> int: ...

    def helper(self) -> None: ...


class Recorder:
    """A caller that keeps the requests and answers 7."""

    def __init__(self, app_name: str = "counters") -> None:
        self.app_name = app_name
        self.requests: list[Request] = []

    async def call(self, request: Request) -> bytes:
        self.requests.append(request)
        return b"\x07" if request.mode is Mode.ASK else b""


def refer(caller: Any, id: str = "a") -> Counter:
    return reference(caller, kind_of(Counter), id)


async def test_asking_and_telling_make_requests() -> None:
    caller = Recorder()
    assert await refer(caller).add(1, note="x") == 7
    assert await refer(caller).add.tell(2) is None
    assert await refer(caller).current() == 7
    add, tell, current = caller.requests
    packed = msgspec.msgpack.encode({"amount": 1, "note": "x"})
    assert add == Request("test-reference.counter", "a", "add", packed)
    assert (tell.mode, msgspec.msgpack.decode(tell.arguments)) == (Mode.TELL, {"amount": 2})
    assert (current.query, current.method, current.mode) == (True, "current", Mode.ASK)


async def test_options_go_along_and_add_up() -> None:
    caller = Recorder()
    careful = refer(caller).add.using(command_id="order-17").using(timeout=2, fail_fast=True)
    await careful(1)
    await careful.tell(1)
    await refer(caller).current.using(timeout=0.5)()
    first, second, third = caller.requests
    for request in (first, second):
        assert (request.command_id, request.timeout_s, request.fail_fast) == ("order-17", 2.0, True)
    assert (third.command_id, third.timeout_s, third.fail_fast) == ("", 0.5, False)


@pytest.mark.parametrize(
    "options",
    [
        {"command_id": ""},
        {"command_id": 5},
        {"command_id": "é" * 200},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": "2"},
        {"timeout": True},
    ],
)
def test_options_that_cannot_be_are_refused(options: Any) -> None:
    with pytest.raises(atoll.InvalidCommand):
        refer(Recorder()).add.using(**options)


async def test_arguments_that_do_not_fit_are_not_sent() -> None:
    caller = Recorder()
    with pytest.raises(atoll.InvalidCommand, match=r"Counter\.add: argument amount"):
        await refer(caller).add("one")
    with pytest.raises(atoll.InvalidCommand, match="the argument amount is missing"):
        await refer(caller).add.tell()
    assert caller.requests == []


@pytest.mark.parametrize("id", ["", "x" * 256, "é" * 128, 5, None, b"a", "\ud800"])
def test_what_cannot_be_an_id_is_refused_at_once(id: Any) -> None:
    with pytest.raises(atoll.InvalidCommand, match="entity ID"):
        refer(Recorder(), id)


def test_a_reference_reads_no_state_and_says_what_to_do() -> None:
    ref = refer(Recorder())
    with pytest.raises(AttributeError, match=r"value is state, .* write an @atoll.query"):
        _ = ref.value
    with pytest.raises(AttributeError, match="holds no state: value cannot be set"):
        ref.value = 1
    with pytest.raises(AttributeError, match=r"has no handler helper; .*: add, current"):
        ref.helper()
    with pytest.raises(AttributeError, match="has no handler context"):
        _ = ref.context
    with pytest.raises(AttributeError):
        ref.current.tell()


def test_references_compare_by_app_kind_and_id() -> None:
    one = refer(Recorder())
    assert one == refer(Recorder())
    assert hash(one) == hash(refer(Recorder()))
    assert one != refer(Recorder(), "b")
    assert one != refer(Recorder("other"))
    assert one != "a"
    assert copy.copy(one) is copy.deepcopy(one) is one
    assert repr(one) == "<reference counters: test-reference.counter/a>"
    assert repr(one.add) == "<add of counters: test-reference.counter/a>"
    assert dir(one) == ["add", "current"]


async def test_an_unpickled_reference_uses_the_cluster_that_its_process_is_connected_to() -> None:
    """It travels as three strings, and binds when it is used first."""
    ref = refer(Recorder())
    pickled = pickle.dumps(ref)
    other = pickle.loads(pickled)
    assert other == ref
    with pytest.raises(atoll.Unavailable, match="not connected to a cluster of the app 'counters'"):
        await other.add(1)

    older, newer = Recorder(), Recorder()
    bind_caller(older)
    bind_caller(newer)
    assert await other.add(1) == 7
    unbind_caller(newer)
    assert await other.add(2) == 7
    unbind_caller(older)
    unbind_caller(older)
    assert (len(newer.requests), len(older.requests)) == (1, 1)
    with pytest.raises(atoll.Unavailable):
        await other.add(3)


async def test_a_forgotten_caller_is_not_kept_alive() -> None:
    caller = Recorder()
    ref = pickle.loads(pickle.dumps(refer(caller)))
    bind_caller(caller)
    del caller
    gc.collect()
    with pytest.raises(atoll.Unavailable):
        await ref.add(1)


def test_an_unpickled_reference_prefers_the_kind_of_its_own_app() -> None:
    """Two apps in one process may each have a kind of one name."""

    class First(atoll.Entity, kind="test-reference.shared"):
        @atoll.query
        def first(self) -> int: ...

    app = atoll.App("first-app", entities=[First])

    class Second(atoll.Entity, kind="test-reference.shared"):
        @atoll.query
        def second(self) -> int: ...

    kind = app.kinds["test-reference.shared"]
    assert pickle.loads(pickle.dumps(reference(Recorder("first-app"), kind, "a"))).first
    assert pickle.loads(pickle.dumps(reference(Recorder("no-app"), kind, "a"))).second


def test_a_reference_arrives_where_its_class_is_not_known() -> None:
    """Unpickling imports nothing of the user's; using it says what to import."""
    code = (
        "import pickle, sys, atoll\n"
        "ref = pickle.loads(sys.stdin.buffer.read())\n"
        "assert not any(name.startswith('test') for name in sys.modules)\n"
        "try: ref.add\n"
        "except atoll.Unavailable as error: print(error)\n"
    )
    pickled = pickle.dumps(refer(Recorder()))
    run = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, timeout=60, check=True)
    assert b"does not know the kind 'test-reference.counter'" in run.stdout
