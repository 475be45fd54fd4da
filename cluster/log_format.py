"""How a host's log lines look: one line a record, as text or as JSON, with the fields that say what it is about.

    2026-03-01T09:30:00.250Z WARNING atoll.host: Account.pay on alice failed shard=7 incarnation=3 kind=Account id=alice
    {"time": "2026-03-01T09:30:00.250Z", "level": "WARNING", "logger": "atoll.host", "message": ..., "shard": 7, ...}

An error's traceback is a field as well. What comes from outside (IDs, the texts of errors) is escaped: it cannot begin
a line of its own, command a terminal, or in one field look like another.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
from collections.abc import Mapping

from ..actors.logs import FIELDS

FORMAT_VARIABLE = "ATOLL_LOG_FORMAT"
FORMATS = ("text", "json")


def printable(text: str) -> str:
    """`text` on one line, without anything that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname} {record.name}: {printable(record.getMessage())}"
        return " ".join((line, *(f"{name}={_bare(value)}" for name, value in _fields(self, record).items())))


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps({**told, **_fields(self, record)}, default=str)


def asked_format(environment: Mapping[str, str]) -> str:
    """What `ATOLL_LOG_FORMAT` asks for. Raises `ValueError` for what there is not."""
    asked = environment.get(FORMAT_VARIABLE, "text").lower()
    if asked not in FORMATS:
        raise ValueError(f"{FORMAT_VARIABLE}={asked} is no log format: use text or json")
    return asked


def log_to_stderr(format: str, level: str) -> None:
    """Print what this process logs to standard error. `format`: one of `FORMATS`. `level`: of the logger `atoll`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("atoll").setLevel(level)


def _time(record: logging.LogRecord) -> str:
    at = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    fields = {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = formatter.formatException(record.exc_info)
    if record.stack_info:
        fields["stack"] = formatter.formatStack(record.stack_info)
    return fields


def _bare(value: object) -> str:
    """The value of a field, in quotes where it would not be one word."""
    text = str(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
