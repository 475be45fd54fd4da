"""What `atoll` says to a wrong command line, app, store, token or address: one line, what to do, an exit code, and nothing
begun. Without a Ray cluster; what needs one stands with the real tests.
"""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from command_line import CommandLine, InProcess

from atoll.cluster.ray_adapter import Node, RayProblem, find_node
from atoll.cluster.starting import StartRefused, refuse_several_machines, suitable

APP = """
import atoll

class Thing(atoll.Entity):
    n: int = 0

app = atoll.App("sound", entities=[Thing])
other = atoll.App("other", entities=[Thing])
with_shards = atoll.App("sound", entities=[Thing], settings={"shards": 64})
not_an_app = Thing
"""


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    (tmp_path / "sound.py").write_text(APP)
    return InProcess(tmp_path)


@pytest.fixture
def no_ray_here() -> None:
    """Without an address Ray looks for its own processes on this machine, which may be somebody else's."""
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] == "gcs_server" and process.info["status"] != psutil.STATUS_ZOMBIE:
            pytest.skip("a Ray cluster runs on this machine")


# ---- the app


@pytest.mark.parametrize(
    ("module", "app", "said"),
    [
        (None, "sound", "'sound' names no app: write module:app, for example bank:app"),
        (None, ":app", "':app' names no app: write module:app, for example bank:app"),
        (None, "nowhere:app", "no module 'nowhere' in .: give its folder with --app-dir"),
        (None, "sound:missing", "sound:missing: missing must be an atoll.App, there is none; write sound:NAME of your App"),
        (None, "sound:not_an_app", "sound:not_an_app: not_an_app must be an atoll.App, it is a type; write sound:NAME of your App"),
        ("import nothing_like_it\n", "bad:app", "bad needs 'nothing_like_it', which is not installed: install it"),
        ("def broken(:\n", "bad:app", "bad cannot be imported: SyntaxError: invalid syntax (bad.py, line 1);"),
        ("raise RuntimeError('two\\nlines')\n", "bad:app", "bad cannot be imported: RuntimeError: two lines;"),
        ("raise SystemExit(3)\n", "bad:app", "bad cannot be imported: SystemExit: 3;"),
        (
            "import atoll\nclass Thing(atoll.Entity):\n    n: object = None\napp = atoll.App('x', entities=[Thing])\n",
            "bad:app",
            "bad cannot be imported: TypeError: Thing.n",
        ),
        (
            "import atoll\nclass Thing(atoll.Entity):\n    context: int = 0\napp = atoll.App('x', entities=[Thing])\n",
            "bad:app",
            "bad cannot be imported: TypeError: Thing.context",
        ),
        ("import atoll\napp = atoll.App('a b', entities=[])\n", "bad:app", "bad cannot be imported: ValueError: 'a b' cannot name an app"),
    ],
    ids=[
        "no colon", "no module", "unknown module", "unknown attribute", "not an app", "missing dependency", "syntax error",
        "raises", "exits", "unsupported field", "reserved name", "bad app name",
    ],
)  # fmt: skip
def test_an_app_that_cannot_be_imported(cli: CommandLine, module: str | None, app: str, said: str) -> None:
    """Exit code 2 and the reason; nothing is written."""
    if module is not None:
        (cli.folder / "bad.py").write_text(module)
    assert cli.refused("start", app, code=2).startswith(said)
    assert not (cli.folder / "atoll-data").exists()


def test_an_app_folder_that_is_not_there(cli: CommandLine) -> None:
    assert cli.refused("start", "sound:app", "--app-dir", "nowhere", code=2) == "--app-dir nowhere: no such folder"


# ---- settings and options


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ATOLL_LEASE_S", "soon", "settings: Expected `float`, got `str` - at `$.lease_s`"),
        ("ATOLL_LOG", "LOUD", "ATOLL_LOG=LOUD is no log level: use DEBUG, INFO, WARNING or ERROR"),
        ("ATOLL_LOG_FORMAT", "xml", "ATOLL_LOG_FORMAT=xml is no log format: use text or json"),
        (
            "ATOLL_STORE",
            "mysql:x",
            "'mysql:x' names no store: use postgresql://USER@HOST/DATABASE, memory: or sqlite:PATH",
        ),
    ],
)
def test_a_setting_that_cannot_be(cli: CommandLine, variable: str, value: str, said: str) -> None:
    """Named by its variable or setting, exit code 2."""
    assert InProcess(cli.folder, **{variable: value}).refused("start", "sound:app", code=2).startswith(said)


@pytest.mark.parametrize(
    "arguments", [["--port", "65536"], ["--port", "-1"], ["--timeout", "0"], ["--timeout", "soon"], ["--shards", "3"]]
)
def test_an_option_that_cannot_be(cli: CommandLine, arguments: list[str]) -> None:
    """Exit code 2, and the option is named."""
    run = cli.run("start", "sound:app", *arguments)
    assert run.returncode == 2
    assert arguments[0] in run.stderr
    assert "Traceback" not in run.stderr


def test_config_tells_where_each_value_comes_from(cli: CommandLine) -> None:
    """Environment over app over default; no value is cut."""
    run = InProcess(cli.folder, ATOLL_LEASE_S="5", COLUMNS="30").run("config", "sound:with_shards")
    rows = {fields[0]: fields[1:] for line in run.stdout.splitlines() if len(fields := line.split()) == 3}
    assert run.returncode == 0
    assert rows["lease_s"] == ["5.0", "environment"]
    assert rows["shards"] == ["64", "app"]
    assert rows["lease_renew_s"] == ["1.0", "default"]
    assert cli.refused("config", "nowhere:app", code=2).startswith("no module 'nowhere'")


def test_version(cli: CommandLine) -> None:
    assert cli.run("--version").stdout.startswith("atoll 0.")


# ---- the store


def make_store(cli: CommandLine, app: str = "sound", shards: int = 256) -> None:
    """A store of that app in the folder."""
    import asyncio

    from atoll.persistence.sqlite import SQLiteStore

    async def make() -> None:
        store = SQLiteStore(cli.folder / "store")
        await store.open(app, shards)
        await store.close()

    asyncio.run(make())


def test_the_store_of_another_app(cli: CommandLine) -> None:
    """J13: refused before Ray is even looked for."""
    make_store(cli, "sound")
    said = cli.refused("start", "sound:other", "--store", "./store")
    assert "'sound'" in said
    assert "'other'" in said


def test_a_store_of_another_shard_count(cli: CommandLine) -> None:
    """J13"""
    make_store(cli, "sound", 256)
    said = cli.refused("start", "sound:with_shards", "--store", "./store")
    assert "256" in said
    assert "64" in said


def test_a_store_that_no_other_process_could_see(cli: CommandLine) -> None:
    said = cli.refused("start", "sound:app", "--store", "memory:")
    assert said == (
        "the store memory: cannot be shared by several processes: use sqlite:PATH, or postgresql://USER@HOST/DATABASE"
    )


def test_a_store_whose_folder_is_a_file(cli: CommandLine) -> None:
    (cli.folder / "store").write_text("something else")
    said = cli.refused("start", "sound:app", "--store", "./store")
    assert "store" in said
    assert (cli.folder / "store").read_text() == "something else"


def test_sqlite_on_several_machines() -> None:
    """Its files are safe among the processes of one machine: refused, with the machines' names."""
    here = [Node("a", "10.0.0.1", "one", head=True), Node("b", "10.0.0.1", "one", head=False)]
    refuse_several_machines(here)
    with pytest.raises(StartRefused, match=r"SQLite lives on one machine, and this Ray cluster has 2 \(one, two\)"):
        refuse_several_machines([*here, Node("c", "10.0.0.2", "two", head=False)])


# ---- nodes


def test_no_node_has_what_the_app_requires() -> None:
    """Refused before anything is begun, and what is lacking is named; else only the others get hosts."""
    plain = Node("a", "10.0.0.1", "one", head=True, resources={"CPU": 2.0})
    with pytest.raises(
        StartRefused, match=r"no node of this Ray cluster has what the app requires: GPU >= 1, zone='eu'"
    ):
        suitable([plain], {"GPU": 1, "zone": "eu"})
    fast = Node("b", "10.0.0.1", "one", head=False, resources={"GPU": 1.0}, labels={"zone": "eu"})
    assert suitable([plain, fast], {"GPU": 1, "zone": "eu"}) == [fast]
    assert suitable([plain, fast], {}) == [plain, fast]


def test_a_node_is_named_by_its_id_hostname_or_address() -> None:
    """One that means none or several is refused with all that could be meant."""
    nodes = [
        Node("ab12" * 14, "10.0.0.1", "one", head=True),
        Node("ab34" * 14, "10.0.0.2", "two", head=False),
        Node("cd56" * 14, "10.0.0.2", "two", head=False),
    ]
    for named, node in (("ab1", nodes[0]), ("CD56", nodes[2]), ("one", nodes[0]), ("10.0.0.1", nodes[0])):
        assert find_node(nodes, named) is node
    for named, said in (("ab", "means 2 nodes"), ("two", "means 2 nodes"), ("10.0.0.2", "means 2 nodes")):
        with pytest.raises(RayProblem, match=said):
            find_node(nodes, named)
    with pytest.raises(
        RayProblem, match=r"no node of this Ray cluster is 'three'; there are ab12ab12ab12 \(one, 10\.0\.0\.1\)"
    ):
        find_node(nodes, "three")


# ---- Ray


@pytest.mark.usefixtures("no_ray_here")
def test_no_ray_cluster(cli: CommandLine) -> None:
    """Said in one line, and none is started; no store is made. In processes of their own, to hear what Ray itself says."""
    line = CommandLine(cli.folder)
    commands = (
        ["start", "sound:app"],
        ["status", "sound"],
        ["status"],
        ["shards"],
        ["drain", "node"],
        ["stop", "sound"],
    )
    with ThreadPoolExecutor() as all_at_once:
        for said in all_at_once.map(lambda command: line.refused(*command), commands):
            assert said.startswith("no Ray cluster on this machine: start one with `ray start --head`, or name it with")
    assert sorted(path.name for path in cli.folder.iterdir() if path.name != "__pycache__") == ["sound.py"]


@pytest.mark.parametrize("command", [["start", "sound:app"], ["status"], ["stop", "sound"]], ids=lambda c: c[0])
def test_an_address_where_no_ray_cluster_is(cli: CommandLine, command: list[str]) -> None:
    """Ray would try for 40 seconds: whether anything listens there is seen first. No store is made."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = cli.refused(*command, "--address", address)
    assert said.startswith(f"no Ray cluster at {address}: start one with `ray start --head`, or name it with")
    assert "Connection refused" in said
    assert not (cli.folder / "atoll-data").exists()


@pytest.mark.parametrize("address", ["local", "ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:x"])
def test_what_is_no_address_of_a_ray_cluster(cli: CommandLine, address: str) -> None:
    """`local` would start a cluster of its own, and Ray's client protocol (ray://) is not used."""
    said = InProcess(cli.folder, address).refused("status")
    assert said == f"'{address}' is not the address of a Ray cluster: write host:port, as `ray start` printed it"


def test_help_names_every_command(cli: CommandLine) -> None:
    """The command line without arguments shows what there is."""
    run = cli.run("--help")
    assert run.returncode == 0
    assert all(
        command in run.stdout for command in ("start", "status", "stop", "config", "log", "journal", "dead-letters")
    )
