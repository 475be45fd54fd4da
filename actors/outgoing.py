"""What one turn leaves to be done after it: the messages that it sent, the timers that it set and cancelled.

All of it is encoded and bounded when it is staged, goes into the record of the turn's other effects, and is forgotten
with a turn that failed. What the host does with it afterwards is the host's business.
"""

from __future__ import annotations

from .errors import InvalidCommand, Overloaded
from .settings import Settings
from .stored import StoredMessage, StoredTimer


class OutboxFull(Overloaded):
    """The host has no room for another message now. A class of its own, so that a turn which ends with it is told
    from one that failed because somebody whom it asked was overloaded."""


class Outgoing:
    """See above. A method that raises has staged nothing and dropped nothing."""

    __slots__ = ("_bytes", "_sends_max", "_settings", "messages", "timers", "timers_gone")

    def __init__(self, settings: Settings, sends_max: int) -> None:
        """`sends_max`: messages that the outbox has room for."""
        self._settings = settings
        self._sends_max = sends_max
        self._bytes = 0
        """Of the arguments of all messages and timers here."""
        self.messages: list[StoredMessage] = []
        self.timers: dict[str, StoredTimer] = {}
        """By name; never one of those in `timers_gone`."""
        self.timers_gone: dict[str, None] = {}
        """The names, in order."""

    def send(self, message: StoredMessage) -> None:
        """Raises `OutboxFull`; `InvalidCommand` and `ValueError` for what is over a limit."""
        settings = self._settings
        size = self._size_with(f"{message.kind}.{message.method}", message.arguments)
        if len(self.messages) >= settings.messages_per_turn_max:
            raise ValueError(f"more than messages_per_turn_max ({settings.messages_per_turn_max}) messages in one turn")
        if len(self.messages) >= self._sends_max:
            raise OutboxFull(
                f"the outbox is full: it has room for {self._sends_max} messages, this command sends more; "
                f"nothing of it was kept, repeat it later"
            )
        self._bytes = size
        self.messages.append(message)

    def schedule(self, timer: StoredTimer) -> None:
        """In place of what was scheduled or cancelled under its name. Raises as `send`, without `OutboxFull`."""
        replaced = self.timers.get(timer.name)
        size = self._size_with(timer.method, timer.arguments, b"" if replaced is None else replaced.arguments)
        self._check_count(timer.name)
        self._bytes = size
        self.timers_gone.pop(timer.name, None)
        self.timers[timer.name] = timer

    def cancel(self, name: str) -> None:
        """Raises `ValueError` over the limit."""
        self._check_count(name)
        self._forget(name)
        self.timers_gone[name] = None

    def delete(self) -> None:
        """The entity is deleted, and all its timers with it, so those of this turn too. Messages stay."""
        for name in list(self.timers):
            self._forget(name)
        self.timers_gone.clear()

    def _forget(self, name: str) -> None:
        timer = self.timers.pop(name, None)
        if timer is not None:
            self._bytes -= len(timer.arguments)

    def _check_count(self, name: str) -> None:
        most = self._settings.timers_per_turn_max
        if (
            len(self.timers) + len(self.timers_gone) >= most
            and name not in self.timers
            and name not in self.timers_gone
        ):
            raise ValueError(f"more than timers_per_turn_max ({most}) timers set or cancelled in one turn")

    def _size_with(self, label: str, arguments: bytes, replaced: bytes = b"") -> int:
        """Bytes with these arguments staged."""
        most, together = self._settings.arguments_bytes_max, self._settings.outgoing_bytes_max
        if len(arguments) > most:
            raise InvalidCommand(
                f"{label}: the arguments have {len(arguments)} bytes, more than arguments_bytes_max ({most})"
            )
        size = self._bytes - len(replaced) + len(arguments)
        if size > together:
            raise ValueError(
                f"the arguments of all that one turn sends and schedules have {size} bytes, more than "
                f"outgoing_bytes_max ({together})"
            )
        return size
