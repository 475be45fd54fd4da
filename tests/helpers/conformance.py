"""`pytest --conformance` prints which promised behaviours are proved: one row per ID of conformance_rows.py.

A test proves a row by naming its ID in its docstring, or in that of its class. A row has

    passed     when every test that names it passed
    failed     when one of them did not (an expected failure is a failure here)
    not run    when they were all skipped or deselected, so that nothing is known
    no test    when nobody names it
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from enum import IntEnum

import pytest
from conformance_rows import ROWS

_ID = re.compile(r"\b(?:PR|[A-Z])\d{2}\b")


class Outcome(IntEnum):
    """Of one test. The worst report of its set-up, call and tear-down counts."""

    NOT_RUN = 0
    PASSED = 1
    FAILED = 2


def ids_in(text: str | None) -> frozenset[str]:
    """The conformance IDs in a docstring, known or not; other words that look alike (`P99`) are left out."""
    prefixes = {re.match("[A-Z]+", row).group() for row in ROWS}  # type: ignore[union-attr] # every row's ID matches
    return frozenset(found for found in _ID.findall(text or "") if found.rstrip("0123456789") in prefixes)


def states(proofs: Mapping[str, Iterable[Outcome]]) -> dict[str, str]:
    """Row -> state, given the outcomes of the tests that name it."""
    found = {}
    for row in ROWS:
        outcomes = list(proofs.get(row, ()))
        if not outcomes:
            found[row] = "no test"
        elif Outcome.FAILED in outcomes:
            found[row] = "failed"
        else:
            found[row] = "passed" if Outcome.PASSED in outcomes else "not run"
    return found


class Conformance:
    """Watches a run and keeps, per test, the rows that it names and how it ended."""

    def __init__(self) -> None:
        self._named: dict[str, frozenset[str]] = {}
        self._outcomes: dict[str, Outcome] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        if isinstance(item, pytest.Function):
            texts = [inspect.getdoc(item.function), item.cls.__doc__ if item.cls else None]
            self._named[item.nodeid] = frozenset().union(*map(ids_in, texts))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or hasattr(report, "wasxfail"):
            outcome = Outcome.FAILED
        elif report.passed and report.when == "call":
            outcome = Outcome.PASSED
        else:
            outcome = Outcome.NOT_RUN
        self._outcomes[report.nodeid] = max(outcome, self._outcomes.get(report.nodeid, Outcome.NOT_RUN))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        proofs: dict[str, dict[str, Outcome]] = {}
        for test, rows in self._named.items():
            for row in rows:
                proofs.setdefault(row, {})[test] = self._outcomes.get(test, Outcome.NOT_RUN)
        found = states({row: tests.values() for row, tests in proofs.items()})
        terminalreporter.section("conformance")
        for row, wording in ROWS.items():
            tests = proofs.get(row, {})
            colour = {"passed": "green", "failed": "red"}.get(found[row], "yellow")
            terminalreporter.write(f"{row:<5}")
            terminalreporter.write(f"{found[row]:<8}", **{colour: True})
            terminalreporter.write_line(f"{len(tests) or '':>4}  {wording}")
            if terminalreporter.verbosity > 0:
                for test, outcome in tests.items():
                    terminalreporter.write_line(f"{'':17}  {outcome.name.lower().replace('_', ' '):<8} {test}")
        for row in sorted(proofs.keys() - ROWS.keys()):
            terminalreporter.write_line(f"{row} is named by {', '.join(proofs[row])} and is no row", red=True)
        counts = {state: list(found.values()).count(state) for state in ("passed", "failed", "not run", "no test")}
        terminalreporter.write_line(", ".join(f"{count} {state}" for state, count in counts.items()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conformance", action="store_true", help="print which promised behaviours are proved by tests")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--conformance"):
        config.pluginmanager.register(Conformance(), "atoll-conformance")
