"""A store's URL as text: what kind it is, and how it may be shown. Nothing is opened here."""

from __future__ import annotations

import enum
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit


class Pooler(enum.Enum):
    """What stands between us and the server, as `?pooler=` says."""

    NONE = ""
    SESSION = "session"
    """A connection of ours is one of the server's for as long as it lasts."""
    TRANSACTION = "transaction"
    """Each transaction may be given another one."""


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def database(url: str) -> str:
    """Server and name of a PostgreSQL database, whoever logs in and with whichever options."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2].lower()}{parts.path}"


def split_pooler(url: str) -> tuple[str, Pooler]:
    """The URL of a PostgreSQL store without our own option, and what that says. Raises `ValueError`."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    named = [value for name, value in options if name == "pooler"]
    if not named:
        return url, Pooler.NONE
    rest = urlencode([option for option in options if option[0] != "pooler"])
    try:
        return urlunsplit(parts._replace(query=rest)), Pooler(named[-1])
    except ValueError:
        raise ValueError(
            f"{shown(url)}: pooler={named[-1]} is neither pooler=session nor pooler=transaction: say how the pooler "
            "(PgBouncer's pool_mode) is set"
        ) from None


def shown(url: str) -> str:
    """The URL as it may be shown: without a password, and without options, which may hold one too."""
    if not is_postgres(url):
        return url
    parts = urlsplit(url)
    user, _at, server = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit((parts.scheme, f"{name}@{server}" if name else server, parts.path, "", ""))
