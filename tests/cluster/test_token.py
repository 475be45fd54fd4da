"""The token and its file: a secret stays one."""

from __future__ import annotations

import copy
import pickle
import stat
from pathlib import Path

import pytest

from atoll.cluster.token import TOKEN_FILE_VARIABLE, Token, TokenError, make_token_file, read_token_file, token_file

SECRET = bytes(range(100, 132))


def test_a_made_file_is_read_back_and_is_its_owners_alone(tmp_path: Path) -> None:
    """Mode 0600, in a folder of its own of mode 0700, whatever the umask."""
    path = tmp_path / "secrets" / "token"
    made = make_token_file(path, SECRET)
    assert read_token_file(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    """Of two who start at once one makes the token, the other reads it."""
    path = tmp_path / "token"
    first = make_token_file(path, SECRET)
    with pytest.raises(FileExistsError):
        make_token_file(path, bytes(32))
    assert read_token_file(path) == first


def test_a_link_in_the_way_is_not_written_through(tmp_path: Path) -> None:
    """Somebody who can lay a link there cannot have the token written where he reads it."""
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        make_token_file(tmp_path / "token", SECRET)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o777])
def test_a_file_that_others_can_use_is_refused_with_the_command_that_helps(tmp_path: Path, mode: int) -> None:
    """R04: a token that others could read is no secret; the text says what to run."""
    path = tmp_path / "token"
    make_token_file(path, SECRET)
    path.chmod(mode)
    with pytest.raises(TokenError, match=f"chmod 600 {path}"):
        read_token_file(path)


def test_a_mounted_link_is_followed(tmp_path: Path) -> None:
    """Secrets are mounted as links in containers; what counts is the file behind it."""
    token = make_token_file(tmp_path / "real", SECRET)
    (tmp_path / "token").symlink_to(tmp_path / "real")
    assert read_token_file(tmp_path / "token") == token


def test_a_missing_file_says_where_to_get_it(tmp_path: Path) -> None:
    """The message names the path and the variable."""
    with pytest.raises(TokenError, match=f"No such file.*{TOKEN_FILE_VARIABLE}"):
        read_token_file(tmp_path / "none")


@pytest.mark.parametrize(
    "content", [b"", b"short", b"x" * 42, b"x" * 42 + b"!", b"x" * 5000, "\N{SNOWMAN}".encode() * 43]
)
def test_a_file_that_holds_no_token_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    """R04: an error text never carries the content, which may be a damaged secret."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TokenError, match="no token") as caught:
        read_token_file(path)
    assert "xxx" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_folder_is_no_token_file(tmp_path: Path) -> None:
    """Neither is a pipe, which is not waited for."""
    with pytest.raises(TokenError, match="not a regular file"):
        read_token_file(tmp_path)


def test_a_token_never_shows_itself() -> None:
    """R04: not in repr, str, format, attributes or a pickle."""
    token = Token(SECRET)
    shown = f"{token} {token!r} {[token]} {token!s:>20} {vars(type(token)).keys()}"
    assert token.reveal() not in shown
    assert not hasattr(token, "__dict__")
    for leak in (lambda: pickle.dumps(token), lambda: copy.deepcopy(token)):
        with pytest.raises(TypeError, match="send the path of its file"):
            leak()


def test_the_written_form_comes_back() -> None:
    """43 URL-safe characters, with white space around them forgiven."""
    token = Token(SECRET)
    assert len(token.reveal()) == 43
    assert Token.parse(f"  {token.reveal()}\n") == token
    assert Token.parse(token.reveal()) != Token(bytes(32))


def test_the_variable_names_the_file() -> None:
    """Empty is as good as not set; `~` is the user's home."""
    assert token_file({}) is None
    assert token_file({TOKEN_FILE_VARIABLE: ""}) is None
    assert token_file({TOKEN_FILE_VARIABLE: "~/t"}) == Path.home() / "t"
