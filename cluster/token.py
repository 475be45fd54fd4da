"""The cluster's token: a shared secret in a file that only its owner can read.

Whoever holds it may do everything. It proves the ends of a connection to each other (handshake.py) and does
not encrypt. It never shows itself: not in `repr`, `str`, formats, pickles or error texts, and it is never passed as an
argument of a process: what travels is the path of its file (environment variable `ATOLL_TOKEN_FILE`).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, final

from ..actors.errors import AtollError

TOKEN_FILE_VARIABLE = "ATOLL_TOKEN_FILE"  # noqa: S105 - the name of a variable, not a secret
TOKEN_BYTES = 32
"""As many as SHA-256 gives back: guessing it is as hard as guessing the MAC."""
_TEXT_CHARACTERS = 43
_FILE_BYTES_MAX = 4096
"""A token file is 44 bytes; whatever is longer is another file, and is not read whole."""


class TokenError(AtollError):
    """The token or its file cannot be used; the message says what to do and never shows any of it."""


@final
class Token:
    """A secret that signs and never shows itself."""

    __slots__ = ("__secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != TOKEN_BYTES:
            raise TokenError(f"a token has {TOKEN_BYTES} bytes, this one has {len(secret)}")
        self.__secret = secret

    @classmethod
    def parse(cls, text: str) -> Token:
        """The token in its written form: 43 URL-safe characters. Raises `TokenError`."""
        text = text.strip()
        if len(text) != _TEXT_CHARACTERS or not text.isascii():
            raise TokenError(f"this is no token: {len(text)} characters where {_TEXT_CHARACTERS} are written")
        try:
            return cls(base64.b64decode(text + "=", altchars=b"-_", validate=True))
        except binascii.Error:
            raise TokenError("this is no token: it holds characters other than A-Z a-z 0-9 - _") from None

    def sign(self, text: bytes) -> bytes:
        """HMAC-SHA256 of `text` under the token."""
        return hmac.digest(self.__secret, text, "sha256")

    def reveal(self) -> str:
        """The written form, for the file that keeps it and for nothing else."""
        return base64.urlsafe_b64encode(self.__secret).decode().rstrip("=")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and hmac.compare_digest(self.__secret, other.__secret)

    def __hash__(self) -> int:
        return hash(self.sign(b"atoll token hash"))

    def __repr__(self) -> str:
        return "Token(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token is not sent anywhere: send the path of its file")


def make_token_file(path: Path, entropy: bytes) -> Token:
    """Write a new token of `entropy` (32 unpredictable bytes) to `path`, readable by its owner only, and return it.

    Missing folders are made, for the owner only. Raises `FileExistsError` when there is a file already, which is not
    touched, and `OSError` when it cannot be written; then nothing is left behind.
    """
    token = Token(entropy)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # O_EXCL: of two who start at once one makes it, and a link that somebody laid there is not followed.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(file, 0o600)  # a umask of 0777 would have taken our own right to read it
            os.write(file, token.reveal().encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return token


def read_token_file(path: Path) -> Token:
    """Return the token in `path`. Raises `TokenError` saying what to do when there is none, when it is not a token, or
    when others can read it (then it is no secret any more)."""
    try:
        # O_NONBLOCK: opening a pipe by mistake must not hang. Links are followed: mounted secrets are links.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TokenError(
            f"token file {path}: {error.strerror}; copy it from the machine where the cluster was started (mode 600) "
            f"and name it in {TOKEN_FILE_VARIABLE}"
        ) from None
    try:
        # The open file is what is checked and read, so that nobody can swap it in between.
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise TokenError(f"token file {path}: not a regular file; name the token file itself")
        if status.st_uid not in (os.geteuid(), 0):
            raise TokenError(f"token file {path}: belongs to another user; use a file of your own")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise TokenError(f"token file {path}: others can use it (mode {mode:03o}); run: chmod 600 {path}")
        content = os.read(file, _FILE_BYTES_MAX)
    finally:
        os.close(file)
    try:
        return Token.parse(content.decode("ascii", errors="replace"))
    except TokenError as error:
        raise TokenError(f"token file {path}: {error}; copy it again from where the cluster was started") from None


def token_file(environment: Mapping[str, str]) -> Path | None:
    """The path that `ATOLL_TOKEN_FILE` names, if it names one."""
    path = environment.get(TOKEN_FILE_VARIABLE, "")
    return Path(path).expanduser() if path else None
