"""`async def` handlers: asyncio's own tools work inside them, and no failure or cancellation spoils what comes after."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

import atoll
from atoll.actors.activation import Activation
from atoll.actors.calls import Status
from atoll.actors.kind import kind_of
from atoll.actors.stored import StoredEntity
from atoll.actors.turn import Turn, TurnResult


class Worker(atoll.Entity):
    done: list[str] = atoll.field(default_factory=list)

    @atoll.command
    async def work(self, how: str) -> list[str]:
        self.done.append(how)
        await getattr(self, f"_{how}")()
        return self.done

    @atoll.command
    async def quick(self) -> int:
        self.done.append("quick")
        return len(self.done)

    @atoll.query
    async def count(self) -> int:
        await asyncio.sleep(0)
        return len(self.done)

    async def _timeout_inside(self) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            self.done.append("timed out")

    async def _timeout_escapes(self) -> None:
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()

    async def _group(self) -> None:
        async def child(name: str) -> None:
            await asyncio.sleep(0)
            self.done.append(name)

        async with asyncio.TaskGroup() as group:
            group.create_task(child("left"))
            group.create_task(child("right"))

    async def _group_fails(self) -> None:
        async def child() -> None:
            await asyncio.sleep(0)
            raise ValueError("child")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            group.create_task(asyncio.Event().wait())

    async def _current_task(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.done.append(task.get_name())

    async def _cancels_itself(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def _cancels_itself_and_returns(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def _swallows(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.done.append("swallowed")

    async def _awaits_the_cancelled(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def _waits(self) -> None:
        if self.context.resources is not None:
            self.context.resources.set()
        await asyncio.Event().wait()

    async def _exits(self) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt


def activation(begun: asyncio.Event | None = None) -> Activation:
    return Activation(kind_of(Worker), "w", StoredEntity(), atoll.Settings(), resources=begun)


async def run(it: Activation, name: str, *args: Any) -> TurnResult:
    handler = it.kind.handlers[name]
    return await it.run_async(handler, handler.encode_arguments(args, {}), Turn(0, 1.0))


def value(result: TurnResult) -> Any:
    assert result.status is Status.OK, result.payload
    return msgspec.msgpack.decode(result.payload)


@pytest.mark.parametrize(
    ("how", "done"),
    [
        ("timeout_inside", ["timeout_inside", "timed out"]),
        ("group", ["group", "left", "right"]),
        ("current_task", ["current_task", "runner"]),
        ("swallows", ["swallows", "swallowed"]),
        ("cancels_itself_and_returns", ["cancels_itself_and_returns"]),
    ],
)
async def test_what_asyncio_offers_works_inside_a_handler(how: str, done: list[str]) -> None:
    """M18: `asyncio.timeout`, `TaskGroup`, `current_task`; a cancellation that the handler dealt with is over."""
    it = activation()

    async def runner() -> None:
        assert value(await run(it, "work", how)) == done
        await asyncio.sleep(0)  # a cancellation left behind would arrive here
        assert value(await run(it, "work", "group"))[-2:] == ["left", "right"]

    await asyncio.create_task(runner(), name="runner")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("timeout_escapes", "TimeoutError"),
        ("group_fails", "ExceptionGroup"),
        ("cancels_itself", "CancelledError"),
        ("awaits_the_cancelled", "CancelledError"),
    ],
)
async def test_a_wait_that_fails_leaves_entity_and_task_usable(how: str, said: str) -> None:
    """M18, M09: nothing is kept, and the task that ran it runs the next handlers as if nothing had been."""
    it = activation()
    result = await run(it, "work", how)
    assert result.status is Status.HANDLER_FAILED
    assert f"Worker.work raised {said}" in result.payload.decode()
    assert it.fields() == {"done": []}
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    assert value(await run(it, "work", "timeout_inside"))[-1] == "timed out"
    assert value(await run(it, "work", "group"))[-1] == "right"


async def test_a_task_cancelled_from_outside_fails_its_handler_and_goes_on() -> None:
    """M18: who runs handlers ends its tasks by other means; a cancellation ends the wait, not the runner."""
    begun, went_on = asyncio.Event(), asyncio.Event()
    it = activation(begun)

    async def runner() -> TurnResult:
        result = await run(it, "work", "waits")
        await asyncio.sleep(0)
        went_on.set()
        return result

    task = asyncio.create_task(runner())
    await begun.wait()
    task.cancel()
    result = await task
    assert went_on.is_set()
    assert result.status is Status.HANDLER_FAILED
    assert value(await run(it, "quick")) == 1


async def test_a_dropped_turn_is_undone() -> None:
    """The event loop went away under it: the coroutine is closed, and the state is as before."""
    it = activation()
    handler = it.kind.handlers["work"]
    turn = it.run_async(handler, handler.encode_arguments(("waits",), {}), Turn(0, 1.0))
    turn.send(None)
    assert it._entity.done == ["waits"]
    turn.close()
    assert it.fields() == {"done": []}
    assert value(await run(it, "quick")) == 1


async def test_an_interrupt_goes_through_and_leaves_no_trace() -> None:
    it = activation()
    turn = it.run_async(it.kind.handlers["work"], it.kind.handlers["work"].encode_arguments(("exits",), {}), Turn(0, 1))
    turn.send(None)
    with pytest.raises(KeyboardInterrupt):
        turn.send(None)
    assert it.fields() == {"done": []}


async def test_async_queries_read() -> None:
    it = activation()
    await run(it, "quick")
    assert value(await run(it, "count")) == 1
    assert it.seq == 1


async def test_a_forgotten_await_is_said_to_be_one() -> None:
    class Careless(atoll.Entity):
        @atoll.command
        def go(self) -> int:
            return self._later()

        async def _later(self) -> int:
            return 1

    it = Activation(kind_of(Careless), "c", StoredEntity(), atoll.Settings())
    result = it.run(it.kind.handlers["go"], b"\x80", Turn(0, 1.0))
    assert "returned a coroutine" in result.payload.decode()


# ---- hooks


class Hooked(atoll.Entity):
    count: int = 0

    async def on_activate(self) -> None:
        self._log = [f"up {self.context.id}"]
        await asyncio.sleep(0)
        how = self.context.resources
        if how == "raise":
            raise ValueError("no pool")
        if how == "change":
            self.count = 5
        if how == "delete":
            self.context.delete()
        if how == "cancel":
            raise asyncio.CancelledError

    async def on_passivate(self) -> None:
        self._log.append("down")
        if self.context.resources == "late":
            self.count = 5

    @atoll.query
    def log(self) -> list[str]:
        return self._log


def hooked(resources: str) -> Activation:
    return Activation(kind_of(Hooked), "h", StoredEntity(), atoll.Settings(), resources)


async def test_hooks_run_with_a_context() -> None:
    it = hooked("")
    await it.on_activate(Turn(0, 1.0))
    await it.on_passivate(Turn(0, 1.0))
    assert value(it.run(it.kind.handlers["log"], b"\x80", Turn(0, 1.0))) == ["up h", "down"]
    assert (kind_of(Hooked).has_on_activate, kind_of(Worker).has_on_activate) == (True, False)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "on_activate of Hooked/h raised ValueError: no pool"),
        ("change", "on_activate of Hooked/h changed the state"),
        ("delete", r"context.delete\(\) in on_activate"),
        ("cancel", "raised CancelledError"),
    ],
)
async def test_a_hook_that_fails_or_writes_is_refused(how: str, said: str) -> None:
    """What a hook wrote would belong to no command, and would be lost or doubled."""
    it = hooked(how)
    with pytest.raises(atoll.HandlerFailed, match=said):
        await it.on_activate(Turn(0, 1.0))
    assert it.fields() == {"count": 0}


async def test_a_change_on_the_way_out_is_refused() -> None:
    it = hooked("late")
    await it.on_activate(Turn(0, 1.0))
    with pytest.raises(atoll.HandlerFailed, match="on_passivate of Hooked/h changed the state"):
        await it.on_passivate(Turn(0, 1.0))


async def test_entities_without_hooks_pay_nothing() -> None:
    await activation().on_activate(Turn(0, 1.0))
    await activation().on_passivate(Turn(0, 1.0))
