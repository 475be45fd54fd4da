"""What is said of something that fails again and again: once when it begins, every ten seconds while it lasts, and once
when it is over. Pure: it gets `now`.

    WORKS --failed--> FAILS (said, unless that was said less than ten seconds ago) --worked--> WORKS (said, if that was)
"""

from __future__ import annotations

import logging
from typing import Any

AGAIN_S = 10.0
"""Whoever looks after a failing store four times a second would else fill a disk with it in the night of an outage."""


class Outage:
    def __init__(self, log: logging.Logger, told: dict[str, Any] | None = None) -> None:
        """`told`: the `extra` of each line (logs.py)."""
        self._log = log
        self._told = told
        self._since: float | None = None
        """When it began to fail; None while it works."""
        self._said = False
        """That it fails, of this time."""
        self._quiet_until = float("-inf")

    def failed(self, now: float, what: str, *arguments: object) -> None:
        """`what` and `arguments` as for a log call."""
        if self._since is None:
            self._since, self._said = now, False
        if now < self._quiet_until:
            return
        self._quiet_until = now + AGAIN_S
        self._said = True
        self._log.warning(what, *arguments, extra=self._told)

    def worked(self, now: float, what: str) -> None:
        """`what` has a place for the seconds that it lasted."""
        since, self._since = self._since, None
        if since is not None and self._said:
            self._log.warning(what, now - since, extra=self._told)
