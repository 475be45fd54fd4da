"""One thread, the connection that it owns, and the queue to it: SQL runs there and never on an event loop.

Any event loop of the process may hand in work and is answered on that loop, so a lease can be renewed from a loop of
its own. Work runs one after another in the order in which it came. Cancelling the caller does not stop work that was
handed in: it may take effect, as a write whose caller died may.

Leaner than an executor: the log's thread takes an append per millisecond, and each hop is paid by every command in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple


class Closable(Protocol):
    def close(self) -> None: ...


Handle = TypeVar("Handle", bound=Closable)
Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")
_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Worker(Generic[Handle]):
    """`make` is called on the thread for the first work, and again for the next one if it raised."""

    def __init__(self, name: str, make: Callable[[], Handle]) -> None:
        self._make = make
        self._handle: Handle | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._closing = False
        # A daemon: a process that forgets to close the store must still be able to end. The store survives that.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Handle, *Arguments], Result], *args: *Arguments) -> Result:
        """Call `work(handle, *args)` on the thread; return what it returns, raise what it raises."""
        if os.getpid() != self._pid:
            # SQLite's locks belong to the process: a forked child that used its parent's connections could corrupt
            # the file, and the thread did not come along anyway.
            raise RuntimeError(
                f"this store was opened by process {self._pid}, and a forked child ({os.getpid()}) may not use it: "
                "open a store of its own there, and start processes with spawn"
            )
        if self._closing:
            raise RuntimeError("this store is closed: open it before using it")
        result: Result = await self._submit(work, args)
        return result

    def _submit(self, work: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._jobs.put((loop, future, work, args))
        return future

    async def close(self) -> None:
        """Finish what is queued, close the handle, end the thread. A second call does nothing."""
        if self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        closed = self._submit(_close, ())
        self._jobs.put(None)
        await closed

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            loop, future, work, args = job
            result: Any = None
            error: BaseException | None = None
            try:
                if work is _close:
                    if self._handle is not None:
                        self._handle.close()
                else:
                    if self._handle is None:
                        self._handle = self._make()
                    result = work(self._handle, *args)
            except BaseException as raised:  # noqa: BLE001  the caller gets it, whatever it is
                error = raised
            with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits for this any more
                loop.call_soon_threadsafe(_settle, future, result, error)
            del job, loop, future, work, args, result, error  # not kept alive while the thread waits for more


def _close() -> None:
    """The last work of a thread; never called, only recognised."""


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
