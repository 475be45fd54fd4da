"""Starting, looking, connecting, stopping, on a real Ray cluster of three nodes with Ray's own defaults for workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from app_under_test import Ledger
from command_line import APPS, CommandLine
from free_ports import free_ports
from running_app import RunningApp, actor_processes, until_gone
from three_nodes import RayNodes

import atoll

pytestmark = [pytest.mark.real, pytest.mark.timeout(150)]


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[RayNodes]:
    """Workers at nice 15, as Ray starts them when nobody says otherwise."""
    with RayNodes.start(3, environment={"RAY_worker_niceness": "15"}) as nodes:
        yield nodes


MORE_APPS = """
import asyncio, contextlib, atoll

class Thing(atoll.Entity):
    n: int = 0

@contextlib.asynccontextmanager
async def resources():
    raise RuntimeError('the pool\\nis empty')
    yield

@contextlib.asynccontextmanager
async def never():
    await asyncio.Event().wait()
    yield

app = atoll.App('broken', entities=[Thing], resources=resources)
endless = atoll.App('endless', entities=[Thing], resources=never)
sound = atoll.App('sound', entities=[Thing])
tight = atoll.App('tight', entities=[Thing], settings={'memory_bytes_max': 1 << 20})
"""


@pytest.fixture(scope="module")
def cli(ray_nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    cli = CommandLine(tmp_path_factory.mktemp("life"), ray_nodes.address, ATOLL_LOG="DEBUG")
    (cli.folder / "broken.py").write_text(MORE_APPS)
    return cli


def nothing_runs(nodes: RayNodes, timeout_s: float = 60.0) -> bool:
    """No Ray actor of an app is left, and none is still being made."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not actor_processes(nodes, "CoordinatorActor") and not actor_processes(nodes, "HostActor"):
            return True
        time.sleep(0.1)
    return False


# ---- up


def test_start_returns_when_every_shard_is_served_and_status_shows_it(running: RunningApp, cli: CommandLine) -> None:
    """A host on every node, each with its share of the shards; the same from `--json` and for the eye, uncut."""
    found = cli.asked("status", "under-test")
    assert found["served"] == found["shards"] == 256
    assert sorted(host["shards"] for host in found["hosts"]) == [85, 85, 86]
    assert {host["node"] for host in found["hosts"]} == {node.node_id for node in running.nodes.nodes}
    assert {host["state"] for host in found["hosts"]} == {"live"}
    shown = CommandLine(cli.folder, cli.environment["RAY_ADDRESS"], COLUMNS="40").run("status", "under-test")
    assert shown.returncode == 0
    for host in found["hosts"]:
        assert host["address"] in shown.stdout
    assert found["url"] in shown.stdout
    assert found["token_file"] in shown.stdout


def test_hosts_and_coordinator_run_at_normal_priority(running: RunningApp) -> None:
    """Ray starts workers at nice 15, where everything else on the machine pushes them aside: every thread is set back."""
    if os.geteuid() != 0:
        pytest.skip("taking back niceness needs the right to")
    assert running.driver("nice", "x")["nice"] == 15, "other workers have what Ray gives them"
    for process in [running.coordinator(), *actor_processes(running.nodes, "HostActor")]:
        for thread in process.threads():
            assert os.getpriority(os.PRIO_PROCESS, thread.id) == 0


async def test_clients_connect_from_inside_ray_and_from_outside(running: RunningApp) -> None:
    """A driver by the app's name, a Ray task with a reference that was pickled into it, and a process over tcp, all see
    the same entity."""
    found = await asyncio.to_thread(running.driver, "shared", "from a driver")
    assert found["indexes"] == [0, 1]
    assert found["entries"] == ["from a driver", "from a driver, from a task"]
    async with running.connected() as cluster:
        assert await cluster.entity(Ledger, "shared").append("from outside") == 2


def test_a_client_over_tcp_needs_no_ray(running: RunningApp) -> None:
    """It is not even imported."""
    found = running.status()
    code = (
        "import asyncio, sys, atoll, app_under_test\n"
        "async def main():\n"
        "    async with atoll.connect(sys.argv[1]) as cluster:\n"
        "        print(await cluster.entity(app_under_test.Ledger, 'no-ray').append('x'))\n"
        "asyncio.run(main())\n"
        "assert 'ray' not in sys.modules\n"
    )
    environment = {**running.cli.environment, "PYTHONPATH": str(APPS), "ATOLL_TOKEN_FILE": found["token_file"]}
    run = subprocess.run(
        [sys.executable, "-c", code, found["url"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr


async def test_connecting_by_name_says_what_is_not_there(running: RunningApp) -> None:
    """An unknown app inside Ray, and a wrong token over tcp: `Unavailable`, in one line that says what to do."""
    code = "import asyncio, atoll\nasync def main():\n    async with atoll.connect('nobody'): pass\nasyncio.run(main())"
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env=running.cli.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Unavailable: no host of 'nobody' is found in this Ray cluster: start it with `atoll start`" in run.stderr
    url = (await asyncio.to_thread(running.status))["url"]
    with pytest.raises(atoll.Unavailable, match="token"):
        async with atoll.connect(url, token=atoll.Token(bytes(32))):
            pass


def test_a_second_start_is_refused_and_disturbs_nothing(running: RunningApp, cli: CommandLine) -> None:
    """S16: the same app twice is one line that names `atoll stop`; what runs goes on."""
    before = running.status()
    said = cli.refused("start", "app_under_test:app", "--app-dir", str(APPS), "--store", "./store-app")
    assert said.startswith("'under-test' runs already")
    assert "atoll stop under-test" in said
    assert [host["incarnation"] for host in running.status()["hosts"]] == [
        host["incarnation"] for host in before["hosts"]
    ]


async def test_two_apps_do_not_see_each_other(running: RunningApp, cli: CommandLine) -> None:
    """S16: the same kind and ID in two apps are two entities; each is listed, looked at and stopped by itself; a client
    of one is not let in by the other."""
    started = await asyncio.to_thread(cli.start, "app_under_test:other")
    try:
        assert (await asyncio.to_thread(cli.asked, "status"))["apps"] == ["under-test", "under-test-2"]
        async with (
            running.connected() as one,
            atoll.connect(started["url"], token_file=started["token_file"]) as two,
        ):
            await one.entity(Ledger, "same").append("of the first")
            await two.entity(Ledger, "same").append("of the second")
            assert await one.entity(Ledger, "same").read() == ["of the first"]
            assert await two.entity(Ledger, "same").read() == ["of the second"]
        first = await asyncio.to_thread(running.status)
        with pytest.raises(atoll.Unavailable, match="token"):
            async with atoll.connect(started["url"], token_file=first["token_file"]):
                pass
    finally:
        stopped = await asyncio.to_thread(cli.run, "stop", "under-test-2")
    assert stopped.returncode == 0
    after = await asyncio.to_thread(running.status)
    assert [host["incarnation"] for host in after["hosts"]] == [host["incarnation"] for host in first["hosts"]]


def test_hosts_log_to_rays_files_at_the_level_asked_for_and_never_the_token(running: RunningApp) -> None:
    """R04: `ATOLL_LOG` of `atoll start` holds in every process of the app; no log, argument or environment has the token."""
    found = running.status()
    token = Path(found["token_file"]).read_text().strip()
    logs = {
        path: path.read_text(errors="replace")
        for path in running.nodes.folder.glob("session_2*/logs/**/*.*")
        if path.is_file()
    }
    mine = [text for path, text in logs.items() if path.name.startswith("worker-") and " atoll." in text]
    assert any(re.search(r"INFO atoll\.host: host \d+ serves at", text) for text in mine)
    assert any(" DEBUG atoll" in text for text in mine), "the level was not carried over"
    assert not [path for path, text in logs.items() if token in text]
    for process in running.nodes.processes():
        try:
            assert token not in " ".join(process.cmdline())
            assert token not in process.environ().values()
        except psutil.Error:
            continue


# ---- down, and what does not come up


def test_what_fails_on_the_hosts_only_is_told_in_one_line_and_undone(cli: CommandLine, ray_nodes: RayNodes) -> None:
    """Resources that raise, and a port in use: the reason and the node, exit code 1, no Ray actor left."""
    before = len(actor_processes(ray_nodes, "HostActor"))
    said = cli.refused("start", "broken:app")
    assert re.fullmatch(r"the host on node \S+ \(\S+\) does not start: .*RuntimeError: the pool is empty", said), said
    address = ray_nodes.address.rpartition(":")[0]
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        said = cli.refused("start", "broken:sound", "--port", str(port))
    assert f"port {port} is in use: choose another one with --port" in said
    assert cli.asked("status")["apps"] in (["under-test"], [])
    deadline = time.monotonic() + 60
    while len(actor_processes(ray_nodes, "HostActor")) > before:
        assert time.monotonic() < deadline, "host processes were left behind"
        time.sleep(0.1)


def test_hosts_in_ray_look_at_their_memory(cli: CommandLine, ray_nodes: RayNodes) -> None:
    """R05: as any host process; what they see is in their logs."""
    started = cli.asked("start", "broken:tight")
    try:
        full = {f"CRITICAL now, it was NONE incarnation={host['incarnation']}" for host in started["hosts"]}
        deadline = time.monotonic() + 60
        while missing := full - said_in_logs(ray_nodes, full):
            assert time.monotonic() < deadline, missing
            time.sleep(0.1)
    finally:
        assert cli.run("stop", "tight").returncode == 0


def said_in_logs(nodes: RayNodes, lines: set[str]) -> set[str]:
    """Those with which a line of a worker's log ends."""
    logs = [path.read_text(errors="replace") for path in nodes.folder.glob("session_2*/logs/worker-*.err")]
    return {line for line in lines if any(f"{line}\n" in log for log in logs)}


def test_ports_are_taken_in_a_row(cli: CommandLine) -> None:
    """`--port P`: the hosts listen at P and the next ones, so that a firewall can be told."""
    port = free_ports(3)
    started = cli.asked("start", "broken:sound", "--port", str(port))
    try:
        ports = sorted(int(host["address"].rpartition(":")[2]) for host in started["hosts"])
        assert ports == [port, port + 1, port + 2]
    finally:
        assert cli.run("stop", "sound").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_start_is_undone(cli: CommandLine, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM while the hosts are being made: a line, an exit code, and nothing is left."""
    start = cli.begin("start", "broken:endless")
    deadline = time.monotonic() + 60
    while "endless" not in cli.asked("status")["apps"]:
        assert time.monotonic() < deadline
        assert start.poll() is None, start.communicate()
    start.send_signal(number)
    output, said = start.communicate(timeout=60)
    assert start.returncode == (130 if number is signal.SIGINT else 143)
    assert said == "atoll: interrupted: what had been begun was undone\n"
    assert output == ""
    assert "endless" not in cli.asked("status")["apps"]


def test_of_two_starts_at_once_one_wins(cli: CommandLine) -> None:
    """S16: the other one is refused, and does not undo what is not its own."""
    both = [cli.begin("start", "broken:sound") for _ in range(2)]
    ended = [(process.communicate(timeout=90), process.returncode) for process in both]
    try:
        assert sorted(code for _, code in ended) == [0, 1], ended
        assert any("'sound' runs already" in errors for (_, errors), code in ended if code == 1)
        assert cli.asked("status", "sound")["served"] == 256
    finally:
        assert cli.run("stop", "sound").returncode == 0


def test_stop_ends_every_process_and_says_so_when_there_is_nothing_to_stop(
    running: RunningApp, cli: CommandLine, ray_nodes: RayNodes
) -> None:
    """No Ray actor and no process is left; a second `atoll stop` is one line and exit code 1."""
    pids = [running.coordinator().pid, *(host["pid"] for host in running.status()["hosts"])]
    assert cli.run("stop", "under-test").stdout == "under-test is stopped\n"
    until_gone(pids)
    assert nothing_runs(ray_nodes)
    assert cli.refused("stop", "under-test") == (
        "'under-test' does not run in this Ray cluster: start it with `atoll start`"
    )
    assert cli.run("status").stdout == "no app runs in this Ray cluster\n"


def test_json_is_one_document(cli: CommandLine) -> None:
    """Whatever `--json` prints can be read by a program."""
    assert json.loads(cli.run("status", "--json").stdout) == {"apps": []}
