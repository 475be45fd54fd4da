"""A store's URL as text: what kind it is, and how it may be shown. Nothing is opened here."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def is_postgres(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


def shown(url: str) -> str:
    """The URL as it may be shown: without a password, and without options, which may hold one too."""
    if not is_postgres(url):
        return url
    parts = urlsplit(url)
    user, _at, server = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    return urlunsplit((parts.scheme, f"{name}@{server}" if name else server, parts.path, "", ""))
