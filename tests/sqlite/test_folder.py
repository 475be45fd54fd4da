"""The folder: made completely or not at all, refused when it is not ours, and used by one machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath

import apsw
import pytest
from luck import Luck
from store_process import APP, SHARDS, StoreProcess

from atoll.actors.errors import CorruptRecord, IncompatibleStore, StoreUnavailable
from atoll.persistence import sqlite_folder
from atoll.persistence.process import boot_id
from atoll.persistence.sqlite import SQLiteStore
from atoll.persistence.sqlite_file import SCHEMA_VERSION, check_library
from atoll.persistence.sqlite_folder import file_system_of
from atoll.persistence.sqlite_leases import create_leases
from atoll.persistence.sqlite_tables import create_tables

Open = Callable[[], Awaitable[SQLiteStore]]


def everything_in(folder: Path) -> dict[str, bytes]:
    """Each file's content by its name; nothing for a folder that is not there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def half_made(folder: Path, made: str) -> None:
    """The folder as a creator leaves it that was killed after `made`."""
    folder.mkdir()
    if made != "the folder":
        (folder / "logs").mkdir()
    if made in {"leases.db", "drafts"}:
        create_leases(folder)
    if made == "drafts":
        (folder / ".tables.db-77-abcdef01").write_bytes(b"SQLite format 3\0 and no more")
        (folder / ".tables.db-77-abcdef01-wal").write_bytes(b"")


async def refused(folder: Path, match: str, error: type[Exception] = IncompatibleStore) -> None:
    """Opening is refused with words that match, and changes no byte of the files that are there."""
    before = everything_in(folder)
    with pytest.raises(error, match=match):
        await SQLiteStore(folder).open(APP, SHARDS)
    assert everything_in(folder) == before


# ---- being made


async def test_a_closed_store_is_nothing_but_its_files(folder: Path, open_store: Open) -> None:
    """Nothing half-written stays behind, and what stays can be copied as it is."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    await store.append(host, 1, b"one")
    await store.close()
    assert sorted(everything_in(folder)) == ["leases.db", f"logs/{host}.db", "machine", "tables.db"]


@pytest.mark.parametrize("made", ["the folder", "logs", "leases.db", "drafts"])
async def test_a_half_made_folder_is_completed(folder: Path, open_store: Open, made: str) -> None:
    """Creation may stop at any point: the next one goes on from there."""
    half_made(folder, made)
    store = await open_store()
    assert await store.register_host("a:1", "n", None) == 1
    assert len(await store.shards()) == SHARDS


async def test_a_creator_killed_at_any_moment_leaves_a_folder_that_opens(tmp_path: Path) -> None:
    """SIGKILL at a random instant of open and registration; then another opens the same folder and works on it."""
    luck = Luck()
    registered = []
    folder = tmp_path / "store"
    for attempt in range(6):
        if luck.random() < 0.5:
            shutil.rmtree(folder, ignore_errors=True)
            registered.clear()
        with StoreProcess(folder, "open") as creator:
            assert creator.line() == "ready"
            creator.tell()
            if attempt % 3 == 2:
                registered.append(creator.line())
            else:
                for _ in range(luck.randrange(20_000)):
                    folder.exists()  # a microsecond or so each: time passes without a clock
            creator.kill()
        store = SQLiteStore(folder)
        await store.open(APP, SHARDS)
        hosts = [row.incarnation for row in await store.hosts()]
        assert set(registered) <= set(hosts), luck
        host = await store.register_host("b:1", "n", None)
        assert host > max(hosts, default=0), luck
        for old in hosts:
            assert [row.content for row in await store.read_log(old)] in ([], [b"one"]), luck
        registered.append(host)
        await store.close()


async def test_processes_that_open_a_new_folder_at_the_same_moment(folder: Path, open_store: Open) -> None:
    """All succeed, on one store, each with an incarnation of its own."""
    creators = [StoreProcess(folder, "open") for _ in range(4)]
    try:
        assert [creator.line() for creator in creators] == ["ready"] * 4
        for creator in creators:
            creator.tell()
        assert sorted(creator.line() for creator in creators) == [1, 2, 3, 4]
    finally:
        for creator in creators:
            creator.kill()
    assert len(await (await open_store()).hosts()) == 4


# ---- being refused


async def test_a_file_of_another_schema_version_is_refused(folder: Path, open_store: Open) -> None:
    """J13: a newer version says to upgrade, one that never was says to choose another folder."""
    await (await open_store()).close()
    for file in ("tables.db", "leases.db"):
        for version, advice in ((SCHEMA_VERSION + 1, "upgrade atoll"), (0, "another folder"), (SCHEMA_VERSION, "")):
            connection = apsw.Connection(str(folder / file))
            connection.pragma("user_version", version)
            connection.close()
            if advice:
                await refused(folder, f"{file} has schema version {version}.*{advice}")
    await open_store()


async def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    """J13: a file, a folder of other things, another program's database, no database at all: refused with what to do."""
    file = tmp_path / "file"
    file.write_text("x")
    await refused(file, "is a file.*another path")
    full = tmp_path / "full"
    (full / "logs").mkdir(parents=True)
    (full / "thesis.tex").write_text("x")
    await refused(full, r"thesis\.tex.*empty or a new folder")
    other = tmp_path / "other"
    other.mkdir()
    connection = apsw.Connection(str(other / "tables.db"))
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    create_leases(other)
    await refused(other, "not a file of Atoll.*another folder")
    broken = tmp_path / "broken"
    broken.mkdir()
    create_leases(broken)
    (broken / "tables.db").write_bytes(b"no database " * 1000)
    await refused(broken, r"tables\.db.*restore", CorruptRecord)


async def test_a_store_with_a_missing_file_is_refused(folder: Path, open_store: Open) -> None:
    """J14: a lost file is reported, and never made anew: a fresh one would give old incarnations out again."""
    store = await open_store()
    host = await store.register_host("a:1", "n", None)
    await store.close()
    for name in ("leases.db", "tables.db"):
        (folder / name).rename(folder.parent / name)
        await refused(folder, f"{name} is missing.*backup", CorruptRecord)
        assert not (folder / name).exists()
        (folder.parent / name).rename(folder / name)
    (folder / "logs" / f"{host}.db").unlink()
    store = await open_store()
    for call in (store.read_log(host), store.append(host, 1, b"x"), store.seal(host)):
        with pytest.raises(CorruptRecord, match=rf"{host}\.db is missing"):
            await call
    assert list((folder / "logs").iterdir()) == [], "PR02: a log is never made again"


async def test_a_log_that_is_there_before_its_host_is_reported(folder: Path, open_store: Open) -> None:
    """PR02: leases.db restored from an older backup than the logs would make a zombie's number a living host's."""
    store = await open_store()
    await store.register_host("a:1", "n", None)
    await store.close()
    shutil.copy(folder / "leases.db", folder.parent / "leases.db")
    store = await open_store()
    await store.register_host("b:1", "n", None)
    await store.close()
    shutil.copy(folder.parent / "leases.db", folder / "leases.db")
    with pytest.raises(CorruptRecord, match=r"never registered.*one backup"):
        await (await open_store()).register_host("c:1", "n", None)


async def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    """A path below a file: the reason, and nothing left behind."""
    (tmp_path / "file").write_text("x")
    with pytest.raises((StoreUnavailable, IncompatibleStore), match="file"):
        await SQLiteStore(tmp_path / "file" / "store").open(APP, SHARDS)


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.9"])
def test_an_sqlite_that_corrupts_databases_is_refused(version: str) -> None:
    """Before 3.51.3 two connections that write and checkpoint could corrupt a database in WAL mode."""
    with pytest.raises(IncompatibleStore, match="pip install -U apsw"):
        check_library(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0"])
def test_a_newer_sqlite_is_taken(version: str) -> None:
    check_library(version)


# ---- one machine


async def test_another_machine_is_refused(folder: Path, open_store: Open) -> None:
    """J13: the locks of SQLite end at the machine; a moved store is accepted once its `machine` file was removed."""
    await (await open_store()).close()
    (folder / "machine").write_text(json.dumps({"machine": "0123", "boot": "another"}))
    await refused(folder, "another machine.*remove.*machine")
    (folder / "machine").unlink()
    await (await open_store()).close()
    assert json.loads((folder / "machine").read_text())["boot"] == boot_id()


async def test_the_same_machine_after_a_reboot_goes_on(folder: Path, open_store: Open) -> None:
    """Whoever used the store before the reboot is dead. And one kernel is one machine, whatever ID a container shows."""
    await (await open_store()).close()
    here = json.loads((folder / "machine").read_text())
    for other in ({"boot": "before the reboot"}, {"machine": "of a container"}):
        (folder / "machine").write_text(json.dumps(here | other))
        await (await open_store()).close()
        assert json.loads((folder / "machine").read_text()) == here


async def test_a_machine_file_that_cannot_be_read_is_refused(folder: Path, open_store: Open) -> None:
    """J14: it is not taken for `no machine`."""
    await (await open_store()).close()
    (folder / "machine").write_text('{"mach')
    await refused(folder, "cannot be read.*remove that file")


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
async def test_a_network_file_system_is_refused_before_anything_is_made(folder: Path, monkeypatch, kind: str) -> None:
    """Locks and shared memory do not reach over a network: refused, with what to do."""
    monkeypatch.setattr(sqlite_folder, "file_system_of", lambda _path, _mounts: kind)
    with pytest.raises(IncompatibleStore, match=f"{kind}.*disk of this machine"):
        await SQLiteStore(folder).open(APP, SHARDS)
    assert list(folder.parent.iterdir()) == []


def test_the_file_system_of_a_path_is_that_of_its_longest_mount_point() -> None:
    """By the kernel's list of mounts; of two on one point the later hides the earlier."""
    mounts = r"""
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:50 / /data rw,relatime shared:1 - nfs4 server:/export rw
41 40 8:1 / /data/local rw - xfs /dev/sda1 rw
42 22 0:51 / /mnt/my\040disk rw - fuse.sshfs me@there: rw
43 22 0:52 / /over rw - nfs old rw
44 22 8:2 / /over rw - ext4 /dev/sdb rw
"""
    found = {
        path: file_system_of(PurePosixPath(path), mounts)
        for path in ("/srv/x", "/data/x", "/database", "/data/local/x", "/mnt/my disk/x", "/over/x")
    }
    assert list(found.values()) == ["ext4", "nfs4", "ext4", "xfs", "fuse.sshfs", "ext4"]
    assert file_system_of(PurePosixPath("/x"), "") == ""


def test_two_creators_of_one_file_are_one(folder: Path) -> None:
    """Whoever links first wins; the other finds a complete file and leaves no draft."""
    folder.mkdir()
    assert create_tables(folder, APP, 2)
    assert not create_tables(folder, APP, 3)
    assert sorted(everything_in(folder)) == ["tables.db"]
