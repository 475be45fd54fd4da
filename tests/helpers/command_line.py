"""The `atoll` command as its users run it: in a process of its own, in a folder of its own; and without the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from atoll.cluster.cli import app

APPS = Path(__file__).resolve().parents[1] / "real"
TIMEOUT_S = 100


class CommandLine:
    """Runs `atoll ...` in `folder`, against the Ray cluster at `address` (None: there is none)."""

    def __init__(self, folder: Path, address: str | None = None, **environment: str) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "RAY_"))}
        at = {} if address is None else {"RAY_ADDRESS": address}
        self.environment: Mapping[str, str] = {**inherited, **at, **environment}

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("atoll")), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end, whatever its exit code."""
        process = self.begin(*arguments)
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def asked(self, *arguments: str) -> Any:
        """What it prints with `--json`; it must succeed."""
        run = self.run(*arguments, "--json")
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    def start(self, app: str = "app_under_test:app", *options: str) -> Any:
        """`atoll start` of an app of these tests, on a store in the folder; the status that it returns."""
        name = app.rpartition(":")[2]
        return self.asked("start", app, "--app-dir", str(APPS), "--store", f"sqlite:./store-{name}", *options)

    def refused(self, *arguments: str, code: int = 1) -> str:
        """The one line that it says when it cannot; it must fail with `code`."""
        run = self.run(*arguments)
        assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
        lines = run.stderr.strip().splitlines()
        assert len(lines) == 1, run.stderr
        assert lines[0].startswith("atoll: ")
        assert run.stdout.strip() == ""
        return lines[0].removeprefix("atoll: ")


class InProcess(CommandLine):
    """The same in this process: one of its own takes most of a second to begin. Folder, path and environment are this
    process's while it runs."""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(1) as thread:
            patched.chdir(self.folder)
            patched.setattr(sys, "path", list(sys.path))
            patched.setattr("os.environ", dict(self.environment))
            # on a thread, since the test's loop may run on this one
            ended = thread.submit(CliRunner().invoke, app, arguments).result(TIMEOUT_S)
        self._forget_apps()
        return subprocess.CompletedProcess(arguments, ended.exit_code, ended.stdout, ended.stderr)

    def _forget_apps(self) -> None:
        """Modules of the folder: another folder may have others of the same names."""
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(self.folder):
                del sys.modules[name]
