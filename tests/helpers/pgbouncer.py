"""A PgBouncer of one's own in front of a PostgreSQL server: in transaction mode, with fewer connections than its
clients have, so that they really share them.

    with Pgbouncer.start(server, folder) as pooler:
        pooler.url("bank")      the database behind it, as its runtime role
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from postgres_server import ADMIN, NOBODY, OWNER, RUNTIME, PostgresServer

BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
POOL = 6
"""Connections to the server: below the eleven that one host may ask for."""
UP_TIMEOUT_S = 20.0

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = {auth}
auth_file = {folder}/users
pool_mode = {mode}
default_pool_size = {pool}
logfile = {folder}/log
"""
_TLS = """
client_tls_sslmode = require
client_tls_cert_file = {folder}/server.crt
client_tls_key_file = {folder}/server.key
"""


class Pgbouncer:
    def __init__(
        self, server: PostgresServer, folder: Path, mode: str, certificates: Path | None, password: str
    ) -> None:
        self._folder = folder
        self._certificates = certificates
        self._password = password
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        self._mode = mode
        self._write_settings(server)
        (folder / "users").write_text("".join(f'"{role}" "{password}"\n' for role in (ADMIN, OWNER, RUNTIME)))
        if certificates is not None:
            for file in ("server.crt", "server.key"):
                shutil.copyfile(certificates / file, folder / file)
                (folder / file).chmod(0o644)
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def start(
        cls, server: PostgresServer, mode: str = "transaction", *, certificates: Path | None = None, password: str = ""
    ) -> Iterator[Self]:
        """Its files lie beside the server's, where `nobody` may read them. `certificates`: a folder with `server.crt`
        and `server.key`; then it demands TLS. `password`: what its clients must know."""
        folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=server.folder))
        folder.chmod(0o755)
        pooler = cls(server, folder, mode, certificates, password)
        pooler.restart()
        try:
            yield pooler
        finally:
            pooler.kill()
            shutil.rmtree(folder)

    def restart(self) -> None:
        """Run it (again), and return when it takes connections."""
        assert BINARY is not None
        apart: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to be root
            os.chown(self._folder, NOBODY, NOBODY)
            apart = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._process = subprocess.Popen(
            [BINARY, "-q", str(self._folder / "settings")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **apart,
        )
        give_up_at = time.monotonic() + UP_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < give_up_at, self.log()
            time.sleep(0.01)

    def _write_settings(self, server: PostgresServer) -> None:
        settings = _SETTINGS.format(
            server=server.port,
            port=self.port,
            folder=self._folder,
            mode=self._mode,
            pool=POOL,
            auth="scram-sha-256" if self._password else "trust",
        )
        if self._certificates is not None:
            settings += _TLS.format(folder=self._folder)
        (self._folder / "settings").write_text(settings)

    def lead_to(self, server: PostgresServer) -> None:
        """From now on its new connections go there, as after a failover; its clients keep theirs."""
        assert self._process is not None
        self._write_settings(server)
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def log(self) -> str:
        file = self._folder / "log"
        return file.read_text() if file.exists() else "it wrote no log"

    def url(self, database: str, options: str = "?pooler=transaction", role: str = RUNTIME) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}{options}"
