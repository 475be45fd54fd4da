"""Work that waits, as it is now: the overlay laid over what was read from the tables. Pure.

    view = PendingView(shard.overlay)                                   first (rule 10),
    rows = await store.read_mailbox(shard, kind, id, after, limit)      then the tables,
    entries, after = view.mailbox((kind, id), rows, after, limit)       then both together

A checkpoint may end in between, or two, and move to the tables what the view was made with: entities have a seq that
tells old from new, pending work has not. So a view keeps the sets that were not in the tables when it was made and all
that came after them, and says what is true at the moment when it is asked.

A page ends where the page of the tables ended: what the overlay has behind that belongs to a later one. Work that is
done leaves a page short or empty though more follows, so only the second value tells whether there is more: read on
from there, until it is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from ..actors.stored import StoredTimer
from .overlay import Dirty, EntityKey, Overlay
from .records import DeadLetterRow, MailboxRow, OutboxRow, TimerRow

TimerPlace = tuple[int, str, str, str]
"""(due_ms, kind, ID, name): the order in which timers are read."""
BEFORE_ALL_TIMERS: TimerPlace = (-1, "", "", "")

Place = TypeVar("Place", int, TimerPlace)
Row = TypeVar("Row")


class PendingView:
    """Of one shard. Make it before the tables are read."""

    __slots__ = ("_oldest",)

    def __init__(self, overlay: Overlay) -> None:
        self._oldest = overlay.dirty if overlay.frozen is None else overlay.frozen

    def _layers(self) -> Iterator[Dirty]:
        layer: Dirty | None = self._oldest
        while layer is not None:
            yield layer
            layer = layer.later

    def mailbox(
        self, key: EntityKey, rows: Sequence[MailboxRow], after: int, limit: int
    ) -> tuple[list[MailboxRow], int | None]:
        """The pending entries of one entity above `after` in order, at most `limit`, given what `read_mailbox` returned
        for the same arguments; and the entry to go on after, None when there are no more."""
        entries: dict[int, MailboxRow | None] = {row.entry: row for row in rows}
        for layer in self._layers():
            entries.update(layer.mailbox.get(key, {}))
            if layer.attempts:
                for entry, row in entries.items():
                    attempts = layer.attempts.get((*key, entry))
                    if row is not None and attempts is not None:
                        entries[entry] = replace(row, attempts=attempts)
        return _page(entries, [row.entry for row in rows], after, limit)

    def mailboxes(self) -> set[EntityKey]:
        """Entities with pending entries that the tables do not show, or did not when the view was made."""
        entries: dict[EntityKey, dict[int, MailboxRow | None]] = {}
        for layer in self._layers():
            for key, some in layer.mailbox.items():
                entries.setdefault(key, {}).update(some)
        return {key for key, some in entries.items() if any(row is not None for row in some.values())}

    def timers(
        self, rows: Sequence[TimerRow], after: TimerPlace, through_ms: int, limit: int
    ) -> tuple[list[TimerRow], TimerPlace | None]:
        """The timers behind `after` that are due by `through_ms`, in order, at most `limit`, given what `read_timers`
        returned for the same arguments; and the place to go on after, None when there are no more. A timer that is set
        anew to an earlier place while somebody pages is not met again."""
        names: dict[EntityKey, dict[str, StoredTimer | None]] = {}
        for row in rows:
            names.setdefault((row.kind, row.id), {})[row.timer.name] = row.timer
        for layer in self._layers():
            for key in layer.timers_cleared:
                names.pop(key, None)
            for key, some in layer.timers.items():
                names.setdefault(key, {}).update(some)
        timers = {
            (timer.due_ms, kind, id, name): TimerRow(kind, id, timer)
            for (kind, id), some in names.items()
            for name, timer in some.items()
            if timer is not None and timer.due_ms <= through_ms
        }
        return _page(timers, [(row.timer.due_ms, row.kind, row.id, row.timer.name) for row in rows], after, limit)

    def outbox(self, rows: Iterable[OutboxRow]) -> list[OutboxRow]:
        """The messages that were not delivered, in order of number, given those of `read_pending`."""
        messages = {row.number: row for row in rows}
        for layer in self._layers():
            for number, message in layer.outbox.items():
                if message is None:
                    messages.pop(number, None)
                else:
                    messages[number] = OutboxRow(number, message)
        return [row for _number, row in sorted(messages.items())]

    def dead_letter(self, number: int, rows: Iterable[DeadLetterRow]) -> DeadLetterRow | None:
        """The one under `number`, given what `read_dead_letters(shard, number - 1, 1)` returned; None when there is
        none (any more)."""
        found = next((row for row in rows if row.number == number), None)
        for layer in self._layers():
            found = layer.letters.get(number, found)
        return found


def _page(
    items: Mapping[Place, Row | None], read: Sequence[Place], after: Place, limit: int
) -> tuple[list[Row], Place | None]:
    """The first `limit` items behind `after`, but none behind a full page of the tables (`read`: the places in it); and
    the place to go on after."""
    end = read[-1] if read and len(read) >= limit else None
    found = [place for place, item in items.items() if item is not None and after < place]
    places = sorted(place for place in found if end is None or place <= end)
    page = [item for place in places[:limit] if (item := items[place]) is not None]
    return page, places[limit - 1] if len(places) > limit else end
