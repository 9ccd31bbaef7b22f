"""The ledger: everything that was drawn is somewhere, once."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from arm_rl.run import checkpoint
from arm_rl.training.ledger import Ledger, LedgerError
from arm_rl.training.select import FATES
from jobs.report import show_ledgers


@given(
    group_size=st.integers(1, 4),
    epoch_size=st.integers(1, 7),
    actions=st.lists(
        st.one_of(st.none(), st.tuples(st.integers(0, 99), st.lists(st.sampled_from(FATES), min_size=4, max_size=4)))
    ),
)
def test_everything_drawn_is_somewhere_once(group_size, epoch_size, actions):
    """Draws (None) and settlings of any pending group, in any order, with a checkpoint in between each of them."""
    ledger = Ledger(group_size)
    pending, expected, num_drawn = [], [], 0
    for action in actions:
        if action is None:
            ledger.draw(num_drawn, num_drawn // epoch_size)
            pending.append(num_drawn)
            num_drawn += 1
        elif pending:
            number = pending.pop(action[0] % len(pending))
            ledger.settle(number, action[1][:group_size])
            expected += [(number // epoch_size, fate) for fate in action[1][:group_size]]
            with pytest.raises(LedgerError, match=f"group {number} is settled twice"):
                ledger.settle(number, action[1][:group_size])
        ledger.check(pending)
        ledger = Ledger.of(json.loads(json.dumps(ledger.state())))
    table = ledger.table()
    for epoch, row in table.items():
        assert row["drawn"] == group_size * min(epoch_size, num_drawn - epoch * epoch_size)
        assert {fate: row[fate] for fate in FATES} == {fate: expected.count((epoch, fate)) for fate in FATES}
    assert sum(row["pending"] for row in table.values()) == group_size * len(pending)


def test_its_state_does_not_grow_with_what_is_settled():
    ledger = Ledger(8)
    sizes = []
    for number in range(3000):
        ledger.draw(number, number // 1000)
        ledger.settle(number, ["trained"] * 8)
        sizes.append(len(json.dumps(ledger.state())))
    assert max(sizes) < 300


@pytest.mark.parametrize("pending", [[0], [0, 1, 2], [0, 0, 1], []])
def test_what_is_not_there_or_should_not_be_is_noticed(pending):
    ledger = Ledger(2)
    for number in range(2):
        ledger.draw(number, 0)
    ledger.check([1, 0])
    with pytest.raises(LedgerError, match="got lost"):
        ledger.check(pending)


def test_a_group_of_another_size_or_drawn_out_of_order_is_refused():
    ledger = Ledger(2)
    ledger.draw(0, 0)
    with pytest.raises(LedgerError, match="group 0 has 3 trajectories, not 2"):
        ledger.settle(0, ["flat"] * 3)
    with pytest.raises(LedgerError, match="group 2 was drawn after 1 others"):
        ledger.draw(2, 0)
    with pytest.raises(LedgerError, match="group 7 is settled twice, or was never drawn"):
        ledger.settle(7, ["flat"] * 2)


def test_the_report_prints_the_newest_one_of_each_stage(tmp_path):
    ledger = Ledger(2)
    for number in range(5):
        ledger.draw(number, number // 3)
    ledger.settle(0, ["trained"] * 2)
    ledger.settle(3, ["trained", "broken"])
    for step, state in ((1, Ledger(2).state()), (2, ledger.state())):
        with checkpoint.write_checkpoint(
            tmp_path / "stage2" / "checkpoints", step, {"collector": {"ledger": state}}, 2
        ):
            pass
    with checkpoint.write_checkpoint(tmp_path / "sft" / "checkpoints", 4, {"step": 4}, 2):
        pass
    output = io.StringIO()
    show_ledgers(tmp_path, Console(file=output, width=120))
    lines = [line.split("│")[1:-2] for line in output.getvalue().splitlines() if "│" in line]
    rows = {name.strip(): [int(number) for number in numbers] for name, *numbers in lines if name.strip()}
    assert rows["drawn"] == [6, 4, 10]
    assert rows["trained"] == [2, 1, 3]
    assert rows["broken"] == [0, 1, 1]
    assert rows["pending"] == [4, 2, 6]
    assert "stage2: trajectories at step 2" in output.getvalue()
    assert "sft" not in output.getvalue()
