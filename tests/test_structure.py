"""The shape of the package, as ARCHITECTURE.md promises it: read from the sources, without importing them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from imports import (
    Module,
    against_cycles,
    against_deciding_alone,
    against_floors,
    against_purity,
    importers,
    read_package,
    worldly_uses,
)

ROOT = Path(__file__).resolve().parents[1]

SHELLS: dict[str, tuple[str, ...]] = {
    # a store's URL may name a folder
    "persistence.open": ("pathlib",),
    "persistence.sqlite": ("pathlib",),
    # takes a URL apart; asks for nothing
    "persistence.urls": ("urllib",),
    # connections to PostgreSQL, and what its errors mean; its statements stand in modules that get a connection
    "persistence.postgres_link": ("asyncpg", "ssl"),
    "persistence.postgres_migrate": ("asyncpg",),
    # who a process is and whether it is gone, by pidfd and start time: the kernel's word, which the stores need
    "persistence.process": ("os", "pathlib", "psutil", "select", "signal"),
    # files, locks and SQL of the SQLite store; what they mean is decided elsewhere, and compared with the memory store
    "persistence.sqlite_file": ("apsw", "os", "pathlib", "secrets", "time"),
    "persistence.sqlite_folder": ("os", "pathlib", "secrets"),
    "persistence.sqlite_log": ("apsw",),
    # a copy is a folder, which is there when it is complete
    "persistence.sqlite_backup": ("apsw", "os"),
    # the threads that SQL runs on, so that it never blocks an event loop
    "persistence.sqlite_worker": ("os", "threading"),
    # the real clock, luck and tasks, which everything else is handed as a `World`
    "cluster.system": ("os", "random", "time", "loop.create_task"),
    # listening and connecting, behind the protocol `Network`
    "cluster.network": ("socket", "loop.create_connection", "loop.create_server"),
    # the kernel's word on how much memory this process takes, and may take; giving back takes many milliseconds
    "cluster.memory": ("asyncio.to_thread", "pathlib", "psutil"),
    # the token's file: mode, owner, and nothing left behind
    "cluster.token": ("os", "pathlib"),
    # the public API: puts a real world together; reads the environment for settings
    "cluster.api": ("os", "pathlib"),
    # notices that it is in a forked child, whose numbers would not be its own
    "cluster.client": ("os",),
    # finds the user's `module:app` in a folder
    "cluster.loading": ("pathlib",),
    # a host as a process of its own
    "cluster.host_process": ("os", "pathlib", "print", "uvloop"),
    # the command line, and starting an app as one step that is done or undone
    "cluster.cli": ("os",),
    "cluster.cli_common": ("os",),
    "cluster.cli_dead_letters": ("asyncio.run", "os"),
    "cluster.cli_reading": ("asyncio.run", "os"),
    "cluster.cli_status": ("time",),
    "cluster.cli_store": ("asyncio.run", "os"),
    "cluster.cli_upkeep": ("asyncio.run", "os", "pathlib"),
    # an export is a file, which is there when it is complete
    "cluster.store_export": ("os", "pathlib", "tempfile"),
    "cluster.draining": ("time",),
    "cluster.pinning": ("time",),
    "cluster.ray_status": ("time",),
    "cluster.signals": ("signal", "threading"),
    # names of databases: folders are compared, a family is drawn
    "cluster.stores": ("pathlib", "secrets"),
    "cluster.starting": ("asyncio.run", "pathlib", "secrets", "time"),
    "cluster.upgrading": ("time",),
    # the lease is kept on a thread, so that a handler that burns CPU does not cost the host its shards
    "cluster.hosting": ("asyncio.run", "threading"),
    # Ray: the actors, and how Ray is asked
    "cluster.ray_actors": ("concurrent", "os", "ray", "threading"),
    "cluster.host_keeper": ("asyncio.create_task", "pathlib", "secrets"),
    "cluster.ray_adapter": ("loop.create_connection", "os", "ray", "socket", "threading"),
}
"""The shells, what each may touch, and why it is one. Whatever is missing here is a decision or is handed its world."""

DECISIONS = (
    "actors.breaker",
    "actors.ids",
    "actors.outage",
    "actors.requirements",
    "actors.settings",
    "persistence.checkpoint",
    "persistence.checksum",
    "persistence.export_format",
    "persistence.history_pieces",
    "persistence.host_rows",
    "persistence.log_marks",
    "persistence.overlay",
    "persistence.pending",
    "persistence.ownership",
    "persistence.records",
    "persistence.row_codec",
    "persistence.rows",
    "persistence.slices",
    "persistence.stripes",
    "persistence.table_rows",
    "persistence.tables",
    "sharding.allocation",
    "sharding.pinning",
    "sharding.coordinator",
    "sharding.gate",
    "sharding.hashing",
    "sharding.hot",
    "sharding.messages",
    "sharding.passivation",
    "sharding.pressure",
    "sharding.ready",
    "sharding.resting",
    "sharding.table",
    "sharding.window",
    "cluster.handshake",
    "cluster.pace",
    "cluster.retry_budget",
    "cluster.rollout",
    "cluster.wire",
)
"""Modules that could run on paper: `now` and luck are arguments, they return effects and never wait."""

MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users|tmp)/\w|\.\./shared")
"""A path of the machine on which something was written, which means nothing anywhere else."""


@pytest.fixture(scope="module")
def package() -> dict[str, Module]:
    return read_package(ROOT)


# ---- the package


def test_imports_only_go_down(package: dict[str, Module]) -> None:
    """cluster -> sharding -> persistence -> actors; inside the package imports are relative, and nobody uses the door."""
    assert against_floors(package) == []


def test_no_module_reaches_itself(package: dict[str, Module]) -> None:
    """There is no cycle of imports, inside a floor either, not even a lazy one (those for types alone aside)."""
    assert against_cycles(package) == []


def test_only_named_shells_touch_the_world(package: dict[str, Module]) -> None:
    """Clock, luck, files, sockets, processes, threads and new tasks stay in the shells, each of which says why."""
    assert against_purity(package, SHELLS) == []


def test_decisions_run_on_paper(package: dict[str, Module]) -> None:
    """What decides never waits, and knows no event loop."""
    assert against_deciding_alone(package, DECISIONS) == []
    assert not set(DECISIONS) & set(SHELLS)


def test_ray_stays_in_at_most_three_files_of_the_cluster(package: dict[str, Module]) -> None:
    """Everything else works, and is tested, without Ray."""
    found = importers(package, "ray")
    assert len(found) <= 3, found
    assert all(name.startswith("cluster.") for name in found), found


def test_the_door_is_the_only_module_at_the_root() -> None:
    """The root is the package: another .py file there would be shipped, and importable, by accident."""
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests are no package: pytest imports them by path"


def test_importing_the_door_stays_light() -> None:
    """`import atoll` pulls in neither Ray nor a store nor an event loop: a client that only defines entities pays nothing."""
    code = (
        "import atoll, sys; print(*sorted({'ray', 'uvloop', 'apsw', 'asyncpg', 'psutil', 'typer'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests", timeout=60, check=True
    )
    assert run.stdout.split() == []


def test_nothing_committed_names_a_path_of_somebodys_machine() -> None:
    """What is in the repository makes sense on every machine."""
    found = []
    for path in _committed():
        try:
            lines = path.read_text().splitlines()
        except (UnicodeDecodeError, IsADirectoryError):
            continue  # a fixture store, or a link to a folder
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line)
        ]
    assert found == []


def _committed() -> list[Path]:
    """What git has, or would take."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


# ---- the checks themselves: each must see what it is there for


def _modules(**sources: str) -> dict[str, Module]:
    named = {name.replace("__", "."): source for name, source in sources.items()}
    packages = {"", "actors", "persistence", "sharding", "cluster"}
    return {
        name: Module.of(name, source, is_package=name in packages)
        for name, source in {**dict.fromkeys(packages, ""), **named}.items()
    }


@pytest.mark.parametrize(
    "line",
    [
        "from ..sharding.table import ShardTable",
        "from ..sharding import table",
        "from .. import App",
        "import atoll.actors.errors",
        "from atoll.actors.errors import Fenced",
        "def later():\n    from ..sharding.table import ShardTable",
        "if TYPE_CHECKING:\n    from ..sharding.table import ShardTable",
    ],
)
def test_an_import_that_goes_up_or_through_the_door_is_seen(line: str) -> None:
    modules = _modules(persistence__log=line, sharding__table="", actors__errors="")
    assert len(against_floors(modules)) == 1


def test_an_import_that_goes_down_or_sideways_is_allowed() -> None:
    modules = _modules(
        sharding__table="from . import messages\nfrom .messages import Call\nfrom ..actors.errors import Fenced\nimport json",
        sharding__messages="",
        actors__errors="",
    )
    assert against_floors(modules) == []
    assert against_cycles(modules) == []


def test_a_cycle_is_seen_however_long_and_lazy() -> None:
    modules = _modules(
        sharding__a="from .b import B",
        sharding__b="from . import c",
        sharding__c="def later():\n    from .a import A",
    )
    (found,) = against_cycles(modules)
    assert {"sharding.a", "sharding.b", "sharding.c"} <= set(found.split(": ")[1].split(" -> "))


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("import time\nnow = time.monotonic()", "time"),
        ("from time import monotonic as clock\nnow = clock()", "time"),
        ("import os.path\nos.path.exists('x')", "os"),
        ("import random\nroll = random.random", "random"),
        ("import asyncio\nasyncio.create_task(work())", "asyncio.create_task"),
        ("from asyncio import ensure_future\nensure_future(work())", "asyncio.ensure_future"),
        ("import asyncio as aio\nasync def f():\n    await aio.to_thread(work)", "asyncio.to_thread"),
        ("def f(loop):\n    loop.create_task(work())", "loop.create_task"),
        ("from datetime import datetime\nnow = datetime.now()", "datetime.datetime.now"),
        ("import datetime\nnow = datetime.datetime.now()", "datetime.datetime.now"),
        ("def f():\n    open('x')", "open"),
        ("from pathlib import Path\nclass A(Path): ...", "pathlib"),
    ],
)
def test_touching_the_world_is_seen(source: str, used: str) -> None:
    modules = _modules(sharding__shard=source)
    assert list(worldly_uses(modules["sharding.shard"])) == [used]
    assert len(against_purity(modules, {})) == 1
    assert against_purity(modules, {"sharding.shard": (used,)}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import random\ndef f(luck: random.Random) -> None: ...",
        "import random\nclass A:\n    luck: random.Random",
        "import asyncio\nasync def f(task: asyncio.Task[None]) -> None:\n    async with asyncio.timeout(1): ...",
        "from datetime import UTC, datetime\nat = datetime.fromtimestamp(0, UTC)",
        "time = 3\nlater = time + 1",
        "def f(store):\n    store.open('x')",
    ],
)
def test_being_handed_the_world_is_no_use_of_it(source: str) -> None:
    assert worldly_uses(Module.of("sharding.shard", source)) == {}


def test_a_permission_that_nobody_needs_any_more_is_seen() -> None:
    modules = _modules(sharding__shard="")
    assert len(against_purity(modules, {"sharding.shard": ("time",), "sharding.gone": ()})) == 2


@pytest.mark.parametrize("source", ["import asyncio", "async def f() -> None: ...", "from asyncio import timeout"])
def test_a_decision_that_waits_is_seen(source: str) -> None:
    assert against_deciding_alone(_modules(sharding__table=source), ["sharding.table"]) != []
    assert against_deciding_alone(_modules(), ["sharding.table"]) != []


def test_an_import_of_ray_is_seen_wherever_it_hides() -> None:
    modules = _modules(
        cluster__a="def f():\n    from ray.util import x", cluster__b="import rayon", cluster__c="import ray"
    )
    assert importers(modules, "ray") == ["cluster.a", "cluster.c"]


@pytest.mark.parametrize("folder", ["work", "home", "tmp", "root"])
def test_a_path_of_a_machine_is_seen(folder: str) -> None:
    assert MACHINE_PATH.search(f"see /{folder}/notes")
    assert not MACHINE_PATH.search(f"see $HOME/{folder}/notes and https://example.org/{folder}/x")
