"""Luck that can be had again: a test that draws prints its seed, and ATOLL_TEST_SEED=<seed> replays it."""

from __future__ import annotations

import os
import random


class Luck(random.Random):
    """A random generator that says its seed, in every failure message that shows it."""

    def __init__(self) -> None:
        asked = os.environ.get("ATOLL_TEST_SEED")
        self.first_seed = int(asked) if asked else random.SystemRandom().randrange(2**32)
        super().__init__(self.first_seed)
        print(self)  # noqa: T201  pytest shows it when the test fails

    def __repr__(self) -> str:
        return f"replay with ATOLL_TEST_SEED={self.first_seed}"
