"""What is said of something that fails again and again."""

from __future__ import annotations

import logging

import pytest

from atoll.actors.outage import AGAIN_S, Outage

log = logging.getLogger("atoll.test")


def after(outage: Outage, now: float, *, works: bool) -> None:
    if works:
        outage.worked(now, "back after %.1f s")
    else:
        outage.failed(now, "away: %s", "no answer")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_an_outage_is_said_when_it_begins_now_and_then_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """R01: of 100 s that are looked at four times a second, a dozen lines; each with what it is about."""
    outage = Outage(log, {"incarnation": 7})
    for quarter in range(400):
        after(outage, quarter / 4, works=False)
    after(outage, 100.0, works=True)
    after(outage, 100.25, works=True)
    assert said(caplog) == ["away: no answer"] * int(100 / AGAIN_S) + ["back after 100.0 s"]
    assert {record.__dict__["incarnation"] for record in caplog.records} == {7}


def test_what_works_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """R01: neither before it ever failed."""
    outage = Outage(log)
    for second in range(100):
        after(outage, second, works=True)
    assert said(caplog) == []


def test_what_fails_every_other_time_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """R01: two lines in ten seconds, and a later outage is said at once."""
    outage = Outage(log)
    for quarter in range(40):
        after(outage, quarter / 4, works=quarter % 2 == 1)
    assert said(caplog) == ["away: no answer", "back after 0.2 s"]
    after(outage, 50.0, works=False)
    after(outage, 51.0, works=True)
    assert said(caplog)[2:] == ["away: no answer", "back after 1.0 s"]
