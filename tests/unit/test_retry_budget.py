"""Retries as a share of the traffic."""

from __future__ import annotations

from atoll.cluster.retry_budget import PURSE_MAX, RETRIES_PER_S, RETRY_RATIO, RetryBudget


def test_in_the_long_run_retries_are_a_share_of_the_traffic() -> None:
    """S18: ten thousand calls a second that all fail are not twenty thousand."""
    budget, retries = RetryBudget(0.0), 0
    for number in range(100_000):
        budget.earn()
        retries += budget.spend(1, number * 0.0001)
    seconds = 10
    assert retries <= 100_000 * RETRY_RATIO + seconds * RETRIES_PER_S + PURSE_MAX
    assert retries >= 100_000 * RETRY_RATIO


def test_a_quiet_sender_may_try_again_all_the_same() -> None:
    budget = RetryBudget(0.0)
    spent = sum(budget.spend(1, now / 100) for now in range(6000))
    assert PURSE_MAX + 60 * RETRIES_PER_S - 2 <= spent <= PURSE_MAX + 60 * RETRIES_PER_S


def test_a_large_repeat_is_paid_for_afterwards_within_two_seconds() -> None:
    budget = RetryBudget(0.0)
    assert budget.spend(1000, 0.0)
    assert not budget.spend(1, 2.0)
    assert budget.spend(1, 2.11)


def test_no_more_is_saved_up_than_a_purse() -> None:
    budget = RetryBudget(0.0)
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend(1, 1000.0) for _ in range(1000)) == PURSE_MAX
