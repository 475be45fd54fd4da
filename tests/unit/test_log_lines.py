"""What a host logs: one line a record, with what it is about as fields, and never what a command carries."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

import atoll
from atoll.actors.logs import FIELDS, about
from atoll.cluster.log_format import JsonFormatter, TextFormatter, asked_format, printable

ABOUT = about(shard=7, incarnation=3, kind="Account", id="alice", command="order-1")


def record(message: str, *args: object, extra: dict[str, Any] | None = None, error: bool = False) -> logging.LogRecord:
    made = logging.getLogger("atoll.host").makeRecord(
        "atoll.host", logging.WARNING, "", 0, message, args, sys.exc_info() if error else None, extra=extra
    )
    made.created = 1_772_357_400.25
    return made


def text(*args: Any, **more: Any) -> str:
    return TextFormatter().format(record(*args, **more))


def as_json(*args: Any, **more: Any) -> dict[str, Any]:
    line = JsonFormatter().format(record(*args, **more))
    assert len(line.splitlines()) == 1
    found: dict[str, Any] = json.loads(line)
    return found


# ---- the formats


def test_a_line_says_when_how_bad_who_what_and_about_what() -> None:
    """As text and as JSON: the fields after the message, always in one order."""
    assert text("%s failed", "pay", extra=ABOUT) == (
        "2026-03-01T09:30:00.250Z WARNING atoll.host: pay failed shard=7 incarnation=3 kind=Account id=alice command=order-1"
    )
    assert as_json("%s failed", "pay", extra=ABOUT) == {
        "time": "2026-03-01T09:30:00.250Z",
        "level": "WARNING",
        "logger": "atoll.host",
        "message": "pay failed",
        **ABOUT,
    }
    assert tuple(ABOUT) == FIELDS


def test_fields_that_do_not_apply_are_left_out() -> None:
    """Shard 0 and an empty ID are values like any other."""
    assert about(shard=0, id="") == {"shard": 0, "id": ""}
    assert text("opened", extra=about(shard=0, id="")).endswith(': opened shard=0 id=""')
    assert text("opened").endswith(" WARNING atoll.host: opened")
    assert as_json("opened").keys() == {"time", "level", "logger", "message"}


def test_only_the_known_fields_are_printed() -> None:
    """What else somebody hangs on a record, arguments for example, is no business of a log's reader."""
    extra = {**about(shard=1), "arguments": b"secret", "payload": "secret"}
    assert "secret" not in text("failed", extra=extra)
    assert "secret" not in JsonFormatter().format(record("failed", extra=extra))


NASTY = ["a\nb", "a\r\nb", "\u2028", "\x85", "\x1b[2J", "\x7f", "\udc80", "\u202eevil"]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_from_outside_begins_a_line_or_commands_a_terminal(nasty: str) -> None:
    """An ID or an error's text is escaped in the message and in the fields."""
    line = text("pay on %s failed", nasty, extra=about(id=nasty, command=nasty))
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()
    assert as_json("pay on %s failed", nasty, extra=about(id=nasty))["id"] == nasty
    assert printable(nasty).isprintable()


@pytest.mark.parametrize(
    ("id", "shown"),
    [
        ("x y", '"x y"'),
        ("x command=1", '"x command=1"'),
        ('x"', r'"x\""'),
        ("x=1", '"x=1"'),
        ("grün/1:2", "grün/1:2"),
        ("a\nb", r'"a\nb"'),
    ],
)
def test_a_field_cannot_look_like_another(id: str, shown: str) -> None:
    """Whatever is not one plain word stands in quotes."""
    assert text("failed", extra=about(id=id, command="c")).endswith(f": failed id={shown} command=c")


def test_an_error_is_a_field_of_its_line() -> None:
    """Traceback and all, on the same line."""
    try:
        raise RuntimeError("two\nlines")  # noqa: TRY301 - to have a traceback
    except RuntimeError:
        line, told = text("failed", extra=about(shard=1), error=True), as_json("failed", error=True)
    assert len(line.splitlines()) == 1
    assert 'failed shard=1 error="Traceback (most recent call last):\\n' in line
    assert line.endswith('RuntimeError: two\\nlines"')
    assert told["error"].endswith("RuntimeError: two\nlines")


def test_the_format_is_asked_for_in_the_environment() -> None:
    assert asked_format({}) == "text"
    assert asked_format({"ATOLL_LOG_FORMAT": "JSON"}) == "json"
    with pytest.raises(ValueError, match="ATOLL_LOG_FORMAT=xml is no log format: use text or json"):
        asked_format({"ATOLL_LOG_FORMAT": "xml"})


# ---- what a host says


class Vault(atoll.Entity):
    n: int = 0

    @atoll.command
    def fail(self, secret: str) -> None:
        raise RuntimeError("on purpose")

    @atoll.command
    def refuse(self, secret: str) -> None:
        raise atoll.Rejected("not now")

    @atoll.command
    def wake(self) -> None: ...


class Stuck(Vault):
    """Cannot be brought into memory."""

    async def on_activate(self) -> None:
        raise RuntimeError("it is stuck")


app = atoll.App("vaults", entities=[Vault, Stuck], settings={"tell_attempts_max": 1})
SECRET = "4711-0815"


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}


async def test_a_failing_handlers_line_says_whose_command_and_not_with_what(caplog: pytest.LogCaptureFixture) -> None:
    """Shard, incarnation, kind, ID and command are fields; the arguments stand nowhere."""
    async with atoll.local(app) as cluster:
        vault = cluster.entity(Vault, "v1")
        with pytest.raises(atoll.HandlerFailed):
            await vault.fail(SECRET)
        with pytest.raises(atoll.HandlerFailed):
            await vault.fail.using(command_id="order-1")(SECRET)
    unnamed, named = [record for record in caplog.records if "failed" in record.getMessage()]
    shard = fields(unnamed)["shard"]
    assert fields(unnamed) == about(shard=shard, incarnation=1, kind="Vault", id="v1", command=f"1.{shard}.1")
    assert fields(named) == about(shard=shard, incarnation=1, kind="Vault", id="v1", command="order-1")
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(named)
        assert "RuntimeError: on purpose" in line
        assert SECRET not in line


@pytest.mark.parametrize(("method", "reason"), [("refuse", "rejected"), ("fail", "failed")])
async def test_a_dead_letters_line_says_whose_it_was(
    caplog: pytest.LogCaptureFixture, method: str, reason: str
) -> None:
    """M08: it shows in the log, under the name by which it can be found again."""
    async with atoll.local(app) as cluster:
        await getattr(cluster.entity(Vault, "v1"), method).using(command_id="order-1").tell(SECRET)
        await cluster.entity(Vault, "v1").wake()
    (dead,) = [record for record in caplog.records if "is a dead letter" in record.getMessage()]
    assert f"({reason})" in dead.getMessage()
    assert fields(dead) == about(
        shard=fields(dead)["shard"], incarnation=1, kind="Vault", id="v1", command="order-1"
    )  # fmt: skip
    assert all(SECRET not in TextFormatter().format(record) for record in caplog.records)


async def test_an_entity_that_cannot_be_activated_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with atoll.local(app) as cluster:
        with pytest.raises(atoll.HandlerFailed):
            await cluster.entity(Stuck, "s1").fail(SECRET)
    (line,) = [record for record in caplog.records if "could not be activated" in record.getMessage()]
    assert fields(line) == about(shard=fields(line)["shard"], incarnation=1, kind="Stuck", id="s1")
    assert SECRET not in TextFormatter().format(line)


async def test_a_hosts_life_names_its_incarnation(caplog: pytest.LogCaptureFixture) -> None:
    """So that the lines of two lives of one host are told apart."""
    caplog.set_level(logging.INFO, "atoll")
    async with atoll.local(app):
        pass
    (opened,) = [record for record in caplog.records if record.getMessage().startswith("opened ")]
    assert fields(opened) == {"incarnation": 1}
