"""What the rule tests about delivery share."""

from __future__ import annotations

import pytest
from post import RUNS


@pytest.fixture(autouse=True)
def no_runs() -> None:
    """Every test counts its own."""
    RUNS.clear()
