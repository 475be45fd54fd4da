"""What a host process writes to standard error, for people and for programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from failing import SETTINGS, Till, app
from plain_cluster import plain_cluster

from atoll.cluster.host_process import HostSpec
from atoll.cluster.token import make_token_file

HELPERS = Path(__file__).resolve().parents[1] / "helpers"


@pytest.mark.parametrize("format", ["text", "json"])
async def test_every_line_of_a_host_is_one_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """From its first line on, whatever its handlers raise; ATOLL_LOG_FORMAT=json makes each an object."""
    monkeypatch.setenv("ATOLL_LOG", "INFO")
    monkeypatch.setenv("ATOLL_LOG_FORMAT", format)
    async with (
        plain_cluster("failing:app", app.name, tmp_path, app_dir=HELPERS, settings=SETTINGS) as cluster,
        cluster.connect() as client,
    ):
        await client.entity(Till, "a").take.using(command_id="order-1").tell(4711)
        await client.entity(Till, "a").unlock()
    said = [line for line in capfd.readouterr().err.splitlines() if line]
    (dead,) = [line for line in said if "is a dead letter" in line]
    assert "4711" not in dead
    if format == "json":
        told = [json.loads(line) for line in said]
        assert any(one["message"].startswith("host 1 serves at") and one["incarnation"] == 1 for one in told)
        one = json.loads(dead)
        assert (one["level"], one["kind"], one["id"], one["command"]) == ("ERROR", "Till", "a", "order-1")
        assert one["message"].endswith("the till is locked\nunlock it first")
    else:
        assert " ERROR atoll.host: " in dead
        assert dead.endswith(" incarnation=1 kind=Till id=a command=order-1")
        assert "the till is locked\\nunlock it first" in dead


def test_a_format_that_there_is_not_ends_the_host_with_one_line(tmp_path: Path) -> None:
    """Status 1 and what to do, before anything is opened."""
    make_token_file(tmp_path / "token", os.urandom(32))
    spec = HostSpec(
        app="failing:app", app_dir=str(HELPERS), store=f"sqlite:{tmp_path}/store", token_file=str(tmp_path / "token")
    )
    ended = subprocess.run(
        [sys.executable, "-m", "atoll.cluster.host_process"],
        input=msgspec.json.encode(spec),
        env={**os.environ, "ATOLL_LOG_FORMAT": "xml"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.decode().splitlines()
    assert line == "the host does not start: ATOLL_LOG_FORMAT=xml is no log format: use text or json"
    assert not (tmp_path / "store").exists()
