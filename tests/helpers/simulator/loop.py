"""An asyncio event loop on virtual time: nothing waits, time jumps to the next timer, and luck comes from a seed.

Rules:
- `call_soon` keeps its order, as asyncio promises. Timers that are due at the same instant run in an order drawn from
  the seed: nothing may rest on which of them comes first.
- A "process" is a context variable, inherited by every task, callback and timer that is made in it. Kill drops all that
  it has scheduled and ever will, pause parks it until resume. Tasks are never cancelled: a killed process runs no
  `finally` and no `except`, as under SIGKILL.
- No threads, sockets, signals or child processes: what asks for one fails at once.
- Nothing scheduled while the main task waits is a deadlock, and time that stands still a livelock: both are errors that
  say what hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

STEPS_PER_INSTANT_MAX = 100_000
"""Turns of the loop without time going on. Real code needs a few dozen."""


class Stuck(AssertionError):
    """The simulation cannot go on: a deadlock, a livelock, or the time limit. The text says what waits."""


class Life(enum.Enum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


class Process:
    """A process of the simulation. Make it with `VirtualTimeLoop.process`."""

    def __init__(self, name: str, loop: VirtualTimeLoop) -> None:
        self.name = name
        self.life = Life.RUNNING
        self.parked: list[asyncio.Handle] = []
        self.on_kill: dict[Callable[[], None], None] = {}
        """What the kernel does when the process ends (closes its sockets); called outside any process."""
        self._loop = loop
        self.context = contextvars.Context()
        self.context.run(_PROCESS.set, self)

    def run(self, work: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Start a task in this process."""
        assert self.life is not Life.DEAD, f"{self.name} is dead"
        return self._loop.create_task(work, name=name or self.name, context=self.context.copy())

    def kill(self) -> None:
        """SIGKILL. Who kills itself runs on to its next `await`, and no further."""
        if self.life is Life.DEAD:
            return
        self.life = Life.DEAD
        self.parked.clear()
        self._loop.note(f"kill {self.name}")
        for action in list(self.on_kill):
            contextvars.Context().run(action)
        self.on_kill.clear()

    def pause(self) -> None:
        """SIGSTOP. Its sockets stay open, the kernel accepts connections and keeps what arrives."""
        if self.life is Life.RUNNING:
            self.life = Life.PAUSED
            self._loop.note(f"pause {self.name}")

    def resume(self) -> None:
        """SIGCONT. What became due meanwhile runs now, in the order in which it became due."""
        if self.life is Life.PAUSED:
            self.life = Life.RUNNING
            self._loop.note(f"resume {self.name}")
            self._loop.unpark(self.parked)
            self.parked = []

    def __repr__(self) -> str:
        return f"<process {self.name}, {self.life.value}>"


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


def current_process() -> Process | None:
    """The process that this code runs in; None outside of all (the test itself, the network)."""
    return _PROCESS.get()


def outside() -> contextvars.Context:
    """A context that belongs to no process, for callbacks of the kernel and the network."""
    return contextvars.Context()


def _may_run(handle: asyncio.Handle) -> bool:
    process = handle._context.get(_PROCESS)
    if process is None or process.life is Life.RUNNING:
        return True
    if process.life is Life.PAUSED:
        process.parked.append(handle)
    return False


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if _may_run(self):
            super()._run()


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("luck",)
    luck: float

    def __lt__(self, other: Any) -> bool:
        return bool((self._when, self.luck) < (other._when, other.luck))

    def _run(self) -> None:
        if _may_run(self):
            super()._run()


class _NoSelector:
    """Stands where the event loop waits for sockets: waiting is a jump to the next timer."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        self._loop.jump(timeout)
        return []

    def close(self) -> None:
        pass


class VirtualTimeLoop(asyncio.BaseEventLoop):
    def __init__(self, seed: int | str, *, limit_s: float = 3600.0) -> None:
        """`limit_s`: virtual seconds after which a simulation that is not done counts as stuck."""
        super().__init__()
        self.seed = seed
        self.failures: list[BaseException] = []
        """What was raised where nobody could catch it."""
        self.notes: Callable[[str], None] = lambda _: None
        """Told of kills, pauses and resumes, for the trace."""
        self._now = 1000.0  # not zero: a clock that was never read must not look like one that was
        self._end = self._now + limit_s
        self._steps = 0
        self._luck = random.Random(f"{seed}/loop")
        self._selector = _NoSelector(self)
        self._all_tasks: dict[asyncio.Task[Any], None] = {}
        self._disposing = False
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._failed)

    def process(self, name: str) -> Process:
        return Process(name, self)

    def note(self, text: str) -> None:
        self.notes(text)

    def unpark(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    # ---- what asyncio's own loop asks of a subclass ----------------------------------------------------------

    def time(self) -> float:
        return self._now

    def jump(self, timeout: float | None) -> None:
        if timeout == 0:
            self._steps += 1
            if self._steps > STEPS_PER_INSTANT_MAX:
                raise Stuck(
                    f"time stands still at {self._now:.6f} s: something calls itself without end\n{self._story()}"
                )
            return
        self._steps = 0
        if timeout is None:
            raise Stuck(f"deadlock at {self._now:.6f} s: nothing is scheduled any more\n{self._story()}")
        self._now = max(self._now, self._scheduled[0].when())
        if self._now > self._end:
            raise Stuck(f"not done after the limit, at {self._now:.6f} s\n{self._story()}")

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        if self._disposing:
            return asyncio.TimerHandle(when, callback, args, self, context)
        self._check_closed()
        timer = _TimerHandle(when, callback, args, self, context)
        timer.luck = self._luck.random()
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def _call_soon(self, callback: Any, args: Any, context: contextvars.Context | None) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        if not self._disposing:
            self._ready.append(handle)
        return handle

    def _process_events(self, event_list: list[Any]) -> None:
        assert not event_list

    def _write_to_self(self) -> None:
        """asyncio wakes a sleeping loop so; this one never sleeps."""

    def call_soon_threadsafe(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("no threads on virtual time")

    def run_in_executor(self, *_: Any) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride] - refuses
        raise RuntimeError("no threads on virtual time")

    # ---- tasks, failures, the end ----------------------------------------------------------------------------

    def _make_task(self, loop: Any, work: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, name=name, context=context)
        # Kept until the end, in order: a task of a dead process must not be collected, which would run its `finally`.
        self._all_tasks[task] = None
        task.add_done_callback(lambda done: self._all_tasks.pop(done, None), context=outside())
        return task

    def _failed(self, _: Any, report: dict[str, Any]) -> None:
        error = report.get("exception") or AssertionError(report.get("message"))
        self.failures.append(error)

    def _story(self) -> str:
        waiting = []
        for task in self._all_tasks:
            frames = task.get_stack(limit=1)
            where = f"{frames[-1].f_code.co_qualname}:{frames[-1].f_lineno}" if frames else "?"
            waiting.append(f"  task {task.get_name()} waits in {where}")
        return "\n".join(waiting[:50]) or "  no task waits"

    def dispose(self) -> None:
        """End everything that is left, as a power cut would, and close. Nothing it does meanwhile has any effect."""
        self._disposing = True
        self._ready.clear()
        self._scheduled.clear()
        for task in list(self._all_tasks):
            task._log_destroy_pending = False
            work = task.get_coro()
            with contextlib.suppress(BaseException):
                work.close()
        self._all_tasks.clear()
        self.close()
