"""The saga of examples/transfer.py, run as its readers run it."""

from __future__ import annotations

import re

import pytest
import transfer


async def test_transfers_come_to_every_end_and_the_money_stays(capsys: pytest.CaptureFixture[str]) -> None:
    """M06, M10: credited, refused by either side, and given up in time; the sum of all balances is what it was."""
    await transfer.main(on_cluster=False)
    shown = capsys.readouterr().out
    assert "alice to bob, 30: done\n" in shown
    assert "bob to zoe, 10: returned to the payer, there is no such account" in shown
    assert "emil to bob, 1000000: refused by the payer, 999960 are missing" in shown
    assert "alice to emil, 50: returned to the payer, it may not hold more than 60" in shown
    assert "alice to dora, 150: returned to the payer, nobody accepted it in time" in shown
    assert "alice to dora, 120, accepted by her: done" in shown
    after, before = re.findall(r"together (\d+), and before (\d+)", shown)[0]
    assert after == before == "740"
