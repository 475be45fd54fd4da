"""Signals while something is begun that has to be done or undone."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator


def end_on_sigterm() -> None:
    """Undo on SIGTERM as on Ctrl-C. Ray has put a handler of its own there, which writes a stack trace first."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def ignore_from_now_on() -> None:
    """It is done: who interrupts now comes too late, and must not be told that it was undone."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def going_on(then: str) -> Iterator[None]:
    """Who interrupts the wait stops nothing: the error says what happens `then`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        raise type(error)(f"interrupted: {then}") from None


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not stop the undoing half way, which has time-outs of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
