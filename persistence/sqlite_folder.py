"""The folder of an SQLite store: is it ours, may this machine use it, and how it is made.

    leases.db        hosts, leases, sessions            made first
    tables.db        ownership and tables               made last: with it the store exists
    logs/N.db        the log of incarnation N           made by `register_host`
    machine          the machine that uses it, and that machine's boot

All hosts are on one machine, because SQLite's locks end there. A second machine is refused in two ways: file systems
that several machines can mount are not accepted, and `machine` names the one that the store belongs to. The same
machine after a reboot may go on: whoever used the store before it is dead. A store that was moved (a backup restored
elsewhere) is accepted once its `machine` file was removed by hand, which no running system does.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path, PurePath

import msgspec

from ..actors.errors import CorruptRecord, IncompatibleStore, StoreUnavailable
from .process import boot_id
from .sqlite_file import Database, check_library, sync_folder
from .sqlite_leases import create_leases, leases_path
from .sqlite_tables import check_tables, create_tables, migrate_tables, tables_path
from .stripes import ONLY, Stripe

_SHARED_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "drvfs",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "prl_fs",
        "pvfs2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
        "vmhgfs",
    }
)
"""Mounted by several machines, or by a guest and its host: SQLite's locks and shared memory do not reach across."""
_SHARED_FUSE = frozenset(
    {
        "fuse.beegfs",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.grpcfuse",
        "fuse.juicefs",
        "fuse.mfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "fuse.vmhgfs-fuse",
        "fuse.weed",
    }
)


_OURS = frozenset({"leases.db", "tables.db", "logs", "machine"})


class _Machine(msgspec.Struct, forbid_unknown_fields=True):
    machine: str
    boot: str


def open_folder(folder: Path, app: str, shards: int, stripe: Stripe = ONLY) -> None:
    """Make the store, or check that it is the one that is meant and bring it up to date. Raises `IncompatibleStore`;
    then nothing was changed."""
    check_library()
    if shards < 1:
        raise ValueError(f"a store has at least one shard, not {shards}")
    stripe.shards(shards)
    is_made(folder)
    _check_file_system(folder)
    if folder.is_dir():
        _check_machine(folder)
    if tables_path(folder).exists():
        _check_existing(folder, app, shards, stripe)
    else:
        _create(folder, app, shards, stripe)
        _check_existing(folder, app, shards, stripe)  # another process may have been first, with another app
    migrate_tables(folder)
    _write_machine(folder)


def is_made(folder: Path) -> bool:
    """Whether the store is there. Raises `IncompatibleStore` for what is there and is none, `CorruptRecord` for what is
    left of one."""
    if tables_path(folder).exists() or not folder.exists():
        return folder.exists()
    if not folder.is_dir():
        raise IncompatibleStore(f"{folder} is a file: an SQLite store is a folder, choose another path")
    try:
        names = [entry.name for entry in folder.iterdir()]
        logs = (folder / "logs").is_dir() and any((folder / "logs").iterdir())
    except OSError as error:
        raise StoreUnavailable(f"{folder}: {error.strerror}: the store could not be made there") from error
    strangers = [name for name in names if name not in _OURS and name[0] != "."]
    if strangers and not leases_path(folder).exists():
        raise IncompatibleStore(f"{folder} holds other things ({strangers[0]}): choose an empty or a new folder")
    if logs and not tables_path(folder).exists():  # in this order: a log comes last
        raise CorruptRecord(
            f"{tables_path(folder)} is missing, though hosts have written here: restore the store from a backup"
        )
    return False


def _create(folder: Path, app: str, shards: int, stripe: Stripe) -> None:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"{folder}: {error.strerror}: the store could not be made there") from error
    create_leases(folder)
    create_tables(folder, app, shards, stripe)
    sync_folder(folder)
    sync_folder(folder.parent)


def _check_existing(folder: Path, app: str, shards: int, stripe: Stripe) -> None:
    if not leases_path(folder).exists():
        # A new one would give old incarnations out again: a zombie's number would be a living host's.
        raise CorruptRecord(f"{leases_path(folder)} is missing: restore the store from a backup")
    check_tables(folder, app, shards, stripe)
    Database(leases_path(folder)).close()  # checks its header


# ---- one machine ---------------------------------------------------------------------------------------------
def _check_file_system(folder: Path) -> None:
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return  # not Linux: nothing tells
    kind = file_system_of(Path(os.path.realpath(folder)), mounts)
    if kind in _SHARED_FILE_SYSTEMS or kind in _SHARED_FUSE:
        raise IncompatibleStore(
            f"{folder} lies on {kind}, where SQLite's locks do not hold: put the store on a disk of this machine"
        )


def file_system_of(path: PurePath, mountinfo: str) -> str:
    """The type of the file system that holds an absolute path, by the text of /proc/self/mountinfo; "" if unknown."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/sda1 rw
        mount, dash, source = line.partition(" - ")
        fields = mount.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = PurePath(_unescaped(fields[4]))
        # The longest mount point wins, and of two on the same point the later one, which hides the earlier.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), source.split(" ")[0]
    return kind


def _unescaped(text: str) -> str:
    r"""The kernel writes blanks, tabs, newlines and backslashes as \040 and so on."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _this_machine() -> _Machine:
    for source in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            return _Machine(Path(source).read_text("ascii").strip(), boot_id())
        except (OSError, UnicodeDecodeError):
            continue
    return _Machine("", boot_id())


def _check_machine(folder: Path) -> None:
    path = folder / "machine"
    try:
        owner = msgspec.json.decode(path.read_bytes(), type=_Machine)
    except FileNotFoundError:
        return
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise IncompatibleStore(
            f"{path} cannot be read ({error}): if no other machine uses this store, remove that file"
        ) from None
    here = _this_machine()
    # The same boot ID is the same running kernel, whatever machine ID a container shows.
    if owner.boot != here.boot and owner.machine != here.machine:
        raise IncompatibleStore(
            f"{folder} belongs to another machine ({owner.machine or 'without an ID'}), "
            "and an SQLite store serves one: start the app there, or use PostgreSQL; "
            f"if the store was moved here for good, remove {path}"
        )


def _write_machine(folder: Path) -> None:
    path, content = folder / "machine", msgspec.json.encode(_this_machine())
    if path.exists() and path.read_bytes() == content:
        return
    draft = path.with_name(f".machine-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(folder)
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
