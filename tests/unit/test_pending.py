"""Pending work as it is now: the overlay over a page of the tables, however much happens between view and answer."""

from __future__ import annotations

from store_rows import KIND, accepted, letter, mail, message, timer

from atoll.persistence.overlay import Overlay
from atoll.persistence.pending import BEFORE_ALL_TIMERS, PendingView
from atoll.persistence.records import DeadLetterRow, Delivery, MailboxRow, OutboxRow, Record, TimerRow, outbox_number

KEY = (KIND, "a")


class Shard:
    """An overlay with a position."""

    def __init__(self, position: int = 0) -> None:
        self.overlay = Overlay()
        self.position = position

    def commit(self, delivery: Delivery | None = None, id: str = "a", *, deleted: bool = False) -> int:
        self.position += 1
        seq, time_ms = (self.position if deleted else 0), 1000 + self.position
        self.overlay.lay(Record(0, self.position, KIND, id, seq, time_ms, deleted=deleted, delivery=delivery))
        return self.position

    def take(self, id: str = "a") -> MailboxRow:
        entry = self.commit(Delivery(accepted=accepted(f"{id}/{self.position + 1}")), id)
        return mail(id, entry)

    def checkpoint(self) -> None:
        """A whole one."""
        self.overlay.freeze(self.position)
        self.overlay.written()


# ---- the mailbox


def test_the_overlay_follows_the_tables() -> None:
    """J15: entries that are not in the tables yet come behind those that are."""
    shard = Shard(10)
    new = [shard.take(), shard.take()]
    shard.take("b")
    rows = [mail("a", 3), mail("a", 7)]
    assert PendingView(shard.overlay).mailbox(KEY, rows, 0, 10) == ([*rows, *new], None)
    assert PendingView(shard.overlay).mailbox(KEY, rows[1:], 3, 10) == ([rows[1], *new], None)
    assert PendingView(shard.overlay).mailbox(KEY, [], 11, 10) == (new[1:], None)


def test_a_full_page_of_the_tables_bounds_the_page() -> None:
    """J15: behind it may be entries older than those of the overlay."""
    shard = Shard(10)
    new = [shard.take(), shard.take()]
    rows = [mail("a", 3), mail("a", 7)]
    view = PendingView(shard.overlay)
    assert view.mailbox(KEY, rows, 0, 2) == (rows, 7)
    assert view.mailbox(KEY, [mail("a", 8)], 7, 2) == ([mail("a", 8), new[0]], 11)
    assert view.mailbox(KEY, [], 11, 2) == ([new[1]], None)


def test_what_is_done_makes_a_page_short_but_not_the_last() -> None:
    """J15: an empty page with a place to go on is not the end."""
    shard = Shard(10)
    shard.commit(Delivery(done=3))
    shard.commit(Delivery(done=7))
    view = PendingView(shard.overlay)
    assert view.mailbox(KEY, [mail("a", 3), mail("a", 7)], 0, 2) == ([], 7)
    assert view.mailbox(KEY, [mail("a", 3), mail("a", 4)], 0, 2) == ([mail("a", 4)], 4)
    assert view.mailbox(KEY, [mail("a", 7)], 4, 2) == ([], None)


def test_attempts_are_current() -> None:
    """J15: also those of an entry that the tables have without them."""
    shard = Shard(10)
    own = shard.take()
    shard.commit(Delivery(attempts=((3, 1), (own.entry, 1))))
    shard.overlay.freeze(shard.position)
    shard.commit(Delivery(attempts=((3, 2), (own.entry, 2))))
    found = PendingView(shard.overlay).mailbox(KEY, [mail("a", 3)], 0, 10)
    assert found == ([mail("a", 3, attempts=2), mail("a", own.entry, attempts=2)], None)


def test_checkpoints_between_view_and_answer_bring_nothing_back() -> None:
    """PR10: the entry was pending when the view was made; it ran, and two checkpoints wrote both to the tables before
    they were read."""
    shard = Shard(10)
    entry, other = shard.take(), shard.take()
    view = PendingView(shard.overlay)
    shard.checkpoint()
    shard.commit(Delivery(done=entry.entry))
    shard.checkpoint()
    shard.commit(Delivery(attempts=((other.entry, 1),)))
    newest = shard.take()
    counted = mail("a", other.entry, attempts=1)
    assert view.mailbox(KEY, [other], 0, 10) == ([counted, newest], None)
    assert view.mailbox(KEY, [], 0, 10) == ([counted, newest], None), "read before the checkpoints"
    assert view.mailboxes() == {KEY}


def test_who_has_mail_that_the_tables_do_not_show() -> None:
    """J15: those entities are woken after a takeover, besides those of the tables."""
    shard = Shard()
    frozen, done = shard.take("a"), shard.take("b")
    shard.overlay.freeze(shard.position)
    shard.commit(Delivery(done=done.entry), "b")
    shard.commit(Delivery(attempts=((1, 1),)), "c")
    shard.take("d")
    view = PendingView(shard.overlay)
    assert view.mailboxes() == {(KIND, "a"), (KIND, "d")}
    shard.commit(Delivery(done=frozen.entry), "a")
    assert view.mailboxes() == {(KIND, "d")}
    assert PendingView(Overlay()).mailboxes() == set()


# ---- timers


def setting(*rows: TimerRow, gone: tuple[str, ...] = ()) -> Delivery:
    return Delivery(timers=tuple(row.timer for row in rows), timers_gone=gone)


def test_timers_come_in_the_order_in_which_they_are_due() -> None:
    """J15: of tables and overlay alike, up to the time that was asked for."""
    shard = Shard()
    shard.commit(setting(timer("a", "y", 5), timer("a", "z", 20)))
    shard.commit(setting(timer("b", "x", 1)), "b")
    rows = [timer("a", "x", 5), timer("c", "x", 5), timer("a", "w", 9)]
    page = [timer("b", "x", 1), timer("a", "x", 5), timer("a", "y", 5), timer("c", "x", 5), timer("a", "w", 9)]
    view = PendingView(shard.overlay)
    assert view.timers(rows, BEFORE_ALL_TIMERS, 10, 10) == (page, None)
    assert view.timers([], (9, KIND, "a", "w"), 20, 10) == ([timer("a", "z", 20)], None)


def test_a_timer_set_anew_is_not_at_its_old_place() -> None:
    """J15: whether it is due sooner, later or beyond the page now; nor is one that was cancelled or went with its entity."""
    shard = Shard()
    shard.commit(setting(timer("a", "later", 9), timer("a", "sooner", 2), timer("a", "beyond", 99), gone=("gone",)))
    shard.commit(setting(timer("b", "again", 7)), "b", deleted=True)
    rows = [timer("a", name, 5) for name in ("beyond", "gone", "later", "sooner", "stays")]
    rows += [timer("b", "again", 5), timer("b", "other", 5)]
    page = [timer("a", "sooner", 2), timer("a", "stays", 5), timer("b", "again", 7), timer("a", "later", 9)]
    assert PendingView(shard.overlay).timers(rows, BEFORE_ALL_TIMERS, 10, 10) == (page, None)


def test_pages_of_timers_end_where_the_tables_page_ended() -> None:
    """J15: a page full of cancelled timers is empty and not the last; one too full for its limit goes on in the overlay."""
    shard = Shard()
    shard.commit(setting(timer("a", "o", 7), timer("a", "p", 8), gone=("x", "y")))
    view = PendingView(shard.overlay)
    full = [timer("a", "x", 5), timer("a", "y", 5)]
    assert view.timers(full, BEFORE_ALL_TIMERS, 10, 2) == ([], (5, KIND, "a", "y"))
    last = [timer("b", "z", 9)]
    assert view.timers(last, (5, KIND, "a", "y"), 10, 2) == (
        [timer("a", "o", 7), timer("a", "p", 8)],
        (8, KIND, "a", "p"),
    )
    assert view.timers(last, (8, KIND, "a", "p"), 10, 2) == (last, None)


def test_timers_are_laid_in_the_order_of_the_sets() -> None:
    """PR10: a deletion that was frozen does not take what was set since; one since then takes what was frozen."""
    shard = Shard()
    shard.commit(setting(timer("b", "x", 5)), "b")
    shard.commit(deleted=True)
    shard.overlay.freeze(shard.position)
    shard.commit(setting(timer("a", "x", 6)))
    shard.commit(None, "b", deleted=True)
    found = PendingView(shard.overlay).timers([timer("a", "y", 5)], BEFORE_ALL_TIMERS, 10, 10)
    assert found == ([timer("a", "x", 6)], None)


# ---- outbox and dead letters


def test_undelivered_messages_in_the_order_in_which_they_were_sent() -> None:
    """J15: those of the tables, then those of the tail; what arrived is not sent again."""
    shard = Shard(10)
    position = shard.commit(Delivery(outbox=tuple(message(index).message for index in range(3))))
    shard.overlay.freeze(shard.position)
    shard.commit(Delivery(delivered=(outbox_number(3, 0), outbox_number(position, 1))))
    rows = [message(outbox_number(3, 0)), message(outbox_number(4, 0))]
    assert PendingView(shard.overlay).outbox(rows) == [
        rows[1],
        OutboxRow(outbox_number(position, 0), message(0).message),
        OutboxRow(outbox_number(position, 2), message(2).message),
    ]


def test_a_dead_letter_by_its_number() -> None:
    """J15: from wherever it is; none when it was replayed or dropped, or never was."""
    shard = Shard(10)
    number = shard.commit(Delivery(dead=letter(11).letter))
    shard.overlay.freeze(shard.position)
    shard.commit(Delivery(letter_gone=5))
    view = PendingView(shard.overlay)
    assert view.dead_letter(4, [letter(4)]) == letter(4)
    assert view.dead_letter(3, [letter(4)]) is None
    assert view.dead_letter(5, [letter(5)]) is None
    assert view.dead_letter(number, []) == DeadLetterRow(number, KIND, "a", letter(11).letter)
    shard.commit(Delivery(letter_gone=number))
    assert view.dead_letter(number, []) is None
