"""Processes as the kernel of this machine knows them: telling one from every other, and ending exactly that one.

A pid is used again, so a process is named by boot ID, pid and start time. The start time is counted from boot, not by
the wall clock: a stepped clock must not make a living process look like another one.

A process is ended through a pidfd: open it, then look whether it still is the process that is meant, then send the
signal to the descriptor. In any other order a pid that was used again in between would take the blow.

Knows nothing of stores, hosts or leases.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from ..actors.errors import StoreUnavailable
from .spi import ProcessIdentity

END_TIMEOUT_S = 5.0
"""How long a killed process may take to be gone. One in an uninterruptible disk wait can outlast any number."""
START_TOLERANCE_S = 0.05
"""The kernel counts start times in ticks of 10 ms; two processes of one pid are many ticks apart."""

# SQLite's locks in the first bytes of NAME-shm, each a byte range: 120 writing, 121 checkpointing, 122 recovering.
_WAL_LOCK_FIRST = 120
_WAL_LOCK_LAST = 122


def boot_id() -> str:
    """This machine in this life: another value after each boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"booted-{psutil.boot_time():.0f}"


def this_process() -> ProcessIdentity:
    """The identity under which a host registers."""
    started = start_time_s(os.getpid())
    assert started is not None, "a running process has a start time"
    return ProcessIdentity(boot_id(), os.getpid(), started)


def start_time_s(pid: int) -> float | None:
    """Seconds from boot to the start of process `pid`; None when there is no such process."""
    if sys.platform == "linux":
        fields = _stat_fields(pid)
        return None if fields is None else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    try:
        return psutil.Process(pid).create_time() - psutil.boot_time()
    except psutil.NoSuchProcess:
        return None


def is_stopped(pid: int) -> bool:
    """True when a signal (SIGSTOP, SIGTSTP) holds the process: it does nothing until it is continued."""
    fields = _stat_fields(pid)
    return fields is not None and fields[0] == "T"


def end_process(identity: ProcessIdentity | None) -> bool:
    """Kill that very process and wait until it is gone. True when it was killed now; False when there was nothing to
    kill: it is gone, it belongs to an earlier boot, or it is the calling process (several hosts may live in one).

    Raises `StoreUnavailable` when it may still be running; repeat the call.
    """
    if identity is None or identity.pid == os.getpid() or identity.boot_id != boot_id():
        return False

    def is_meant() -> bool:
        started = start_time_s(identity.pid)
        return started is not None and abs(started - identity.started) <= START_TOLERANCE_S

    return _kill(identity.pid, is_meant)


def wal_lock_holders(database: Path) -> list[int]:
    """Processes that hold a lock of SQLite's write-ahead log of `database` exclusively, as the kernel lists them."""
    index = database.with_name(f"{database.name}-shm")
    try:
        inode = index.stat().st_ino
        locks = Path("/proc/locks").read_text("ascii")
    except OSError:
        return []
    pids = []
    for line in locks.splitlines():
        # 1: POSIX  ADVISORY  WRITE 6264 fe:00:9979835 120 120        (one that waits has `->` in the second place)
        fields = line.split()
        if len(fields) != 8 or fields[1] != "POSIX" or fields[3] != "WRITE" or not fields[6].isdigit():
            continue
        pid = int(fields[4])
        ours = fields[5].endswith(f":{inode}") and _WAL_LOCK_FIRST <= int(fields[6]) <= _WAL_LOCK_LAST
        # The inode alone could be that of another file system; the holder must have this very file open.
        if ours and pid > 0 and _has_open(pid, index):
            pids.append(pid)
    return sorted(set(pids))


def end_stopped_lock_holder(database: Path) -> int | None:
    """End a process that was stopped while it held a write lock of `database`; return its pid, None if there is none.

    Such a process keeps everybody else from writing until someone continues it, perhaps never. It loses nothing that
    was acknowledged: its open transaction never ends. A holder that runs is left alone: it will let go.
    """
    for pid in wal_lock_holders(database):
        if pid != os.getpid() and is_stopped(pid) and _kill(pid, partial(_is_stopped_holder, pid, database)):
            return pid
    return None


def _is_stopped_holder(pid: int, database: Path) -> bool:
    """Asked once the pidfd is open: the lock that it still holds proves that the descriptor means the holder."""
    return is_stopped(pid) and pid in wal_lock_holders(database)


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the name before them may hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _has_open(pid: int, path: Path) -> bool:
    wanted = os.path.realpath(path)
    try:
        return any(str(entry.readlink()) == wanted for entry in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _kill(pid: int, is_meant: Callable[[], bool]) -> bool:
    if sys.platform != "linux":
        return _kill_without_pidfd(pid, is_meant)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_meant():
            return False
        with _explained(pid), contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(END_TIMEOUT_S * 1000):
            raise StoreUnavailable(f"process {pid} was killed but is not gone after {END_TIMEOUT_S} s: try again")
    finally:
        os.close(pidfd)
    return True


def _kill_without_pidfd(pid: int, is_meant: Callable[[], bool]) -> bool:
    """For development machines without pidfds; psutil itself compares start times before it sends the signal."""
    try:
        process = psutil.Process(pid)
        if not is_meant():
            return False
        with _explained(pid):
            process.kill()
        process.wait(END_TIMEOUT_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        raise StoreUnavailable(f"process {pid} was killed but is not gone after {END_TIMEOUT_S} s: try again") from None
    return True


@contextlib.contextmanager
def _explained(pid: int) -> Iterator[None]:
    try:
        yield
    except (PermissionError, psutil.AccessDenied):
        raise StoreUnavailable(
            f"process {pid} must end before its log can be taken over, and may not be killed by this user: "
            "run all hosts of a store as one user, or kill it by hand"
        ) from None
