"""A store's URL as text: what kind it is, and how it may be shown. Nothing is opened here."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def database(url: str) -> str:
    """Server and name of a PostgreSQL database, whoever logs in and with whichever options."""
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2].lower()}{parts.path}"


def shown(url: str) -> str:
    """The URL as it may be shown: without a password, and without options, which may hold one too."""
    if not is_postgres(url):
        return url
    parts = urlsplit(url)
    user, _at, server = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit((parts.scheme, f"{name}@{server}" if name else server, parts.path, "", ""))
