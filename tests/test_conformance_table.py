"""The conformance table tells the truth: only what ran and passed is called passed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import Outcome, ids_in, states
from conformance_rows import ROWS

HELPERS = Path(__file__).parent / "helpers"


def test_ids_are_found_and_lookalikes_are_not() -> None:
    text = "The promise (J" + "03, PR" + "07); the p99 of X12, H264 and J" + "123 are something else."
    assert ids_in(text) == {"J" + "03", "PR" + "07"}
    assert ids_in(None) == frozenset()


def test_a_row_is_passed_only_when_all_its_tests_that_ran_passed() -> None:
    found = states(
        {
            "J01": [Outcome.PASSED, Outcome.NOT_RUN],
            "J02": [Outcome.PASSED, Outcome.FAILED],
            "J03": [Outcome.NOT_RUN],
        }
    )
    assert [found[row] for row in ("J01", "J02", "J03", "J04")] == ["passed", "failed", "not run", "no test"]
    assert list(found) == list(ROWS)


def test_a_run_prints_the_table_before_its_summary(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(f"import sys; sys.path.insert(0, {str(HELPERS)!r})\npytest_plugins = ['conformance']")
    pytester.makepyfile(
        """
        import pytest

        def test_passes(): "J01 and J02"
        def test_fails():
            "J02"
            raise AssertionError
        @pytest.mark.skip
        def test_skipped(): "J03"
        @pytest.mark.xfail
        def test_expected_to_fail():
            "J04"
            raise AssertionError
        class TestClass:
            "J05"
            def test_inside(self): ...
        @pytest.fixture
        def broken():
            raise AssertionError
        def test_cannot_start(broken): "J06"
        def test_unknown(): "J99"
        """
    )
    result = pytester.runpytest_subprocess("--conformance", "-p", "no:cacheprovider")
    result.stdout.re_match_lines(
        [
            r"^J01 +passed +1 ",
            r"^J02 +failed +2 ",
            r"^J03 +not run +1 ",
            r"^J04 +failed +1 ",
            r"^J05 +passed +1 ",
            r"^J06 +failed +1 ",
            r"^J07 +no test +\w",
            r"^J99 is named by .*test_unknown and is no row",
            r"^2 passed, 3 failed, 1 not run, \d+ no test$",
            r"^=+ .*1 failed.* in .*=$",
        ]
    )
