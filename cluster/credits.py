"""Credits: how much a host lets one connection send. Both ends keep the same account of it. Pure.

    client                                            host
      |  <------ Welcome: the first limits               |
      |  Call, Call, Call ...                            |  taken
      |------------------------------------------------->|
      |  Answer / Moved / OutOfOrder                     |  done: what these calls took is free again
      |<-------------------------------------------------|
      |  Credit: new limits, some replies behind         |  limit = done + window
      |<-------------------------------------------------|

Rules:
- All numbers are totals since the connection opened (as QUIC's MAX_DATA, RFC 9000, section 4.1): of calls, each sending
  of one counts, and of the bytes of their arguments. So nothing has to be settled after a reconnect, where both begin
  anew, and a command that its caller gave up is free again when the host says so, not before.
- A call may leave while both totals are below their limits: one of any size goes, over the bytes then, but no second.
- A limit that was granted stands. When the window narrows, less comes back from then on: who keeps to what it was told
  is never wrong, however late it hears of it.
- The window of hosts' asks does not narrow: a turn may wait for one, and what narrows the window for the turn.
"""

from __future__ import annotations

from ..sharding.messages import Credit

STEP = 4
"""Credits per window: each costs a message, and with the first three quarters under way nobody waits for the next."""


class Grant:
    """The host's account of one connection."""

    __slots__ = (
        "_bytes_due",
        "_bytes_max",
        "_commands_due",
        "_commands_max",
        "_done_bytes",
        "_done_commands",
        "_taken_bytes",
        "_taken_commands",
        "_window_bytes",
        "_window_commands",
        "bytes",
        "commands",
    )

    def __init__(self, granted: Credit, window_commands: int, window_bytes: int) -> None:
        """`granted`: what the peer was told when the connection opened. The window: what it may have under way."""
        self.commands = granted.commands
        """The limits that the peer knows."""
        self.bytes = granted.bytes
        self._commands_max = self._window_commands = window_commands
        self._bytes_max = self._window_bytes = window_bytes
        self._taken_commands = self._taken_bytes = 0
        self._done_commands = self._done_bytes = 0
        self._measure()

    def _measure(self) -> None:
        """What must be done until the next credit is due."""
        self._commands_due = self.commands - self._window_commands + max(1, self._window_commands // STEP)
        self._bytes_due = self.bytes - self._window_bytes + max(1, self._window_bytes // STEP)

    @property
    def held_commands(self) -> int:
        """Calls that arrived, and are neither answered nor sent back."""
        return self._taken_commands - self._done_commands

    @property
    def held_bytes(self) -> int:
        return self._taken_bytes - self._done_bytes

    def take(self, commands: int, argument_bytes: int, last_bytes: int) -> bool:
        """So many calls arrived in one frame; the last one's arguments have `last_bytes`. False: more than the peer was
        told that it may send."""
        self._taken_commands += commands
        self._taken_bytes += argument_bytes
        return self._taken_commands <= self.commands and self._taken_bytes - last_bytes < self.bytes

    def give_back(self, argument_bytes: int) -> bool:
        """A call is done with. True: it is time for a credit."""
        self._done_commands += 1
        self._done_bytes += argument_bytes
        return self._done_commands >= self._commands_due or self._done_bytes >= self._bytes_due

    def narrow(self, share: float) -> bool:
        """From now on only this share of the window is granted, at least one call. True: it is time for a credit."""
        self._window_commands = max(1, int(self._commands_max * share))
        self._window_bytes = max(1, int(self._bytes_max * share))
        self._measure()
        return self._done_commands >= self._commands_due or self._done_bytes >= self._bytes_due

    def credit(self) -> Credit:
        """The limits as they are now, for the peer."""
        self.commands = max(self.commands, self._done_commands + self._window_commands)
        self.bytes = max(self.bytes, self._done_bytes + self._window_bytes)
        self._measure()
        return Credit(self.commands, self.bytes)


class Allowance:
    """The client's account of one connection."""

    __slots__ = ("_bytes", "_commands", "_sent_bytes", "_sent_commands")

    def __init__(self) -> None:
        """Nothing may be sent until the first limits are known."""
        self._commands = self._bytes = 0
        self._sent_commands = self._sent_bytes = 0

    @property
    def room(self) -> bool:
        """One more call may leave."""
        return self._sent_commands < self._commands and self._sent_bytes < self._bytes

    def sent(self, argument_bytes: int) -> None:
        self._sent_commands += 1
        self._sent_bytes += argument_bytes

    def granted(self, credit: Credit) -> None:
        """Limits only rise."""
        self._commands = max(self._commands, credit.commands)
        self._bytes = max(self._bytes, credit.bytes)
