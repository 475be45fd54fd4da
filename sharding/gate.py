"""The output gate: no answer leaves before what it vouches for is durable, or before the lease vouches for it.

with effect       waits for its own record's commit; the commit is the proof, no lease is asked for
without effect    (queries, refusals, unchanged replies, failures) waits for the commit of what it saw, and then for a
                  valid lease, checked after the command arrived: nobody else can have written before that instant
"""

from __future__ import annotations

from collections import deque
from functools import partial

from .commit import CommitPath
from .lease import Lease
from .messages import Answer
from .resident import Pending


class OutputGate:
    def __init__(self, commits: CommitPath, lease: Lease) -> None:
        self._commits = commits
        self._lease = lease
        self._held: deque[tuple[Pending, Answer]] = deque()

    def effect(self, ticket: int, pending: Pending, answer: Answer) -> None:
        self._commits.when_committed(ticket, partial(_send, pending, answer))

    def read(self, ticket: int, pending: Pending, answer: Answer) -> None:
        """`ticket`: the newest record that what it saw rests on."""
        if ticket <= self._commits.committed:
            self._vouch(pending, answer)
        else:
            self._commits.when_committed(ticket, partial(self._vouch, pending, answer))

    def _vouch(self, pending: Pending, answer: Answer) -> None:
        if self._lease.valid():
            pending.reply(answer)
        else:
            self._held.append((pending, answer))

    def lease_renewed(self) -> None:
        """Let go of what was held. Its commands arrived before the renewal was sent or are checked again."""
        held, self._held = self._held, deque()
        for pending, answer in held:
            self._vouch(pending, answer)


def _send(pending: Pending, answer: Answer) -> None:
    pending.reply(answer)
