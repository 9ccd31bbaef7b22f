"""Statistics by hand-made numbers; what is read from run folders; tables and plot."""

import dataclasses
import json
import math
import shutil
import xml.etree.ElementTree as ElementTree

import pytest

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import load
from arm_rl.experiments.findings import results, setting
from arm_rl.experiments.findings.designs import DESIGNS, PAPER
from arm_rl.experiments.findings.plot import draw, plot
from arm_rl.experiments.findings.results import Results
from arm_rl.experiments.findings.runs import QUICK, Findings
from arm_rl.experiments.findings.statistics import Estimate, difference, estimate
from arm_rl.experiments.findings.tables import markdown
from jobs.findings import write


def test_an_interval_is_student_s():
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])  # deviation sqrt(2.5), t of 4 degrees at 97.5 %: 2.776
    assert found.mean == 3
    assert found.high - found.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5))
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert found.num_seeds == 5


def test_one_seed_says_nothing_of_how_sure():
    found = estimate([0.5])
    assert (found.mean, found.low, found.high) == (0.5, -math.inf, math.inf)
    assert found.verdict_above(0) == found.verdict_below(0) == "open"
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_a_difference_is_paired_by_seed():
    first, second = {0: 1.0, 1: 2.0, 2: 9.0}, {1: 1.9, 0: 0.9, 5: 0.0}
    found = difference(first, second)
    assert found is not None
    assert found.num_seeds == 2
    assert found.mean == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(0, abs=1e-9), "both seeds differ by the same"
    assert difference(first, {7: 1.0}) is None


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [(0.1, 0.3, "holds", "does not hold"), (-0.3, -0.1, "does not hold", "holds"), (-0.1, 0.1, "open", "open")],
)
def test_a_verdict_needs_the_whole_interval(low, high, above, below):
    found = Estimate(mean=(low + high) / 2, low=low, high=high, num_seeds=5)
    assert (found.verdict_above(0), found.verdict_below(0)) == (above, below)


def judged(accuracy: float, calls: float, **more: float) -> dict[str, float]:
    kinds = {
        "accuracy/engraved": accuracy,
        "accuracy/plain": accuracy,
        "tool_calls/engraved": calls,
        "tool_calls/plain": calls,
    }
    return {"accuracy": accuracy, "tool_calls": calls, **kinds, **more}


@pytest.fixture
def root(tmp_path):
    """Three seeds of three designs; the last seed of one of them is not finished."""
    for seed in range(3):
        ways = {"accuracy_without_tools": 0.6, "accuracy_with_prefill": 0.55 + 0.01 * seed}
        cold = tmp_path / str(seed) / "cold_start" / "evaluation.json"
        cold.parent.mkdir(parents=True)
        cold.write_text(json.dumps(judged(0.6, 0.1, **ways)))
        first = tmp_path / str(seed) / setting.STAGE1 / "metrics.jsonl"
        first.parent.mkdir()
        first.write_text(
            json.dumps({"stage": "stage1", "step": 1, "learner/loss": 0.1, "rollout/accuracy/engraved": 0.1}) + "\n"
        )
        for name, accuracy, calls in (("accuracy", 0.65, 0.0), (PAPER, 0.95, 1.0), ("call_bonus", 0.5, 3.0)):
            folder = tmp_path / str(seed) / name
            folder.mkdir()
            step = {
                "stage": name,
                "learner/loss": 0.1,
                "rollout/accuracy/engraved": 0.5,
                "tools/calls/engraved": 0.2,
                "tools/calls/plain": 0.1,
            }
            lines: list[dict] = [{"step": 1, **step}, {"step": 2, **step, "rollout/accuracy/plain": 0.7}]
            for value in (0.1, accuracy + 0.001 * seed):  # a run that was stopped after its evaluation judges again
                lines.append(
                    {
                        "stage": name,
                        "step": 2,
                        **{f"evaluation/{key}": one for key, one in judged(value, calls).items()},
                    }
                )
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            if (seed, name) != (2, "call_bonus"):
                (folder / "export").mkdir()
                (folder / "export" / "config.json").write_text("{}")
    return tmp_path


def test_finished_runs_are_read_and_claims_are_weighed(root):
    found = results.read(root)
    assert found.designs == ["accuracy", "call_bonus", PAPER]
    assert found.values("accuracy", "accuracy") == pytest.approx({0: 0.65, 1: 0.651, 2: 0.652})
    assert set(found.values("call_bonus", "accuracy")) == {0, 1}
    curve = found.curves["accuracy"][0]
    assert curve["accuracy/engraved"] == [0.5, 0.5]
    assert math.isnan(curve["accuracy/plain"][0])
    assert curve["accuracy/plain"][1] == 0.7
    assert found.curves[PAPER][0]["accuracy/engraved"] == pytest.approx([0.1, 0.3, 1.1 / 3]), (
        "with the step of its first stage"
    )
    verdicts = {claim.text: claim.verdict for claim in results.claims(found)}
    assert verdicts["accuracy only is less accurate than it"] == "holds"
    assert verdicts["a fixed bonus a call uses the tool more than the paper's reward"] == "holds"
    assert verdicts["before training, forcing the tool does not help"] == "holds"
    assert verdicts["after training, it helps"] == "not measured"
    assert verdicts["a fixed bonus a sample is less accurate than it"] == "not measured"


def test_a_claim_that_does_not_hold_is_said():
    same = {seed: judged(0.95 + 0.001 * seed, 1.0) for seed in range(3)}
    more = {seed: judged(0.96 + 0.001 * seed, 1.1) for seed in range(3)}
    verdicts = {
        one.text: one.verdict for one in results.claims(Results(judged={"accuracy": more, PAPER: same}, curves={}))
    }
    assert verdicts["accuracy only uses the tool less than the paper's reward"] == "does not hold"
    assert verdicts["accuracy only is less accurate than it"] == "does not hold"


def test_curves_are_means_over_the_last_steps():
    assert results.smooth([1.0, 3.0, math.nan]) == [1.0, 2.0, 2.0]
    assert results.smooth([float(number) for number in range(20)])[-1] == pytest.approx(14.5)


def test_tables_and_plot_tell_what_is_there(root):
    path = write(root)
    table = (root / "table.md").read_text()
    assert "| accuracy only | 0.651 ± 0.002 |" in table
    assert "| 3 | 0.650 |" in table, "its worst seed"
    assert (
        "| a fixed bonus a call uses the tool more than the paper's reward | +2.000 (+2.000 to +2.000) | holds |"
        in table
    )
    assert DESIGNS["adaptive"].title + " |" not in table.split("claim")[0], "not run"
    ElementTree.fromstring((root / "plot.svg").read_text())
    drawn = [line for axes in draw(results.read(root)).axes for line in axes.lines]
    assert len(drawn) == 4 * (3 + 1) * 2 + 4 * (2 + 1), "seeds and their mean, in four panels"
    summary = json.loads(path.read_text())
    assert summary["judged"][PAPER]["accuracy"]["num_seeds"] == 3
    assert summary["judged"]["accuracy"]["accuracy"]["high"] > 0.65


def test_one_seed_is_told_without_bounds(root):
    for seed in (1, 2):
        shutil.rmtree(root / str(seed))
    judged = json.loads(write(root).read_text())["judged"]["accuracy"]["accuracy"]
    assert judged == {"mean": 0.65, "low": None, "high": None, "num_seeds": 1}
    assert "| accuracy only | 0.650 |" in (root / "table.md").read_text()


def test_nothing_is_no_error(tmp_path):
    found = results.read(tmp_path)
    assert "not measured" in markdown(found)
    ElementTree.fromstring(plot(found))


def test_runs_of_another_setting_are_not_mixed_in(tmp_path, monkeypatch):
    findings = Findings(tmp_path, QUICK, split="test", log=lambda text: None)
    findings._check_setting()
    findings._check_setting()
    monkeypatch.setattr(setting, "TEACHER", dataclasses.replace(setting.TEACHER, call_share=0.5))
    with pytest.raises(ConfigError, match=r"teacher.call_share: 0.5 now, 0.13 before; .* choose another --out"):
        findings._check_setting()
    monkeypatch.undo()
    monkeypatch.setattr(setting, "load", lambda cls, file: dataclasses.replace(load(cls, file), num_epochs=7))
    with pytest.raises(ConfigError, match=r"configs/findings.yaml.num_epochs: 7 now, "):
        findings._check_setting()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="split: "):
        Findings(tmp_path, QUICK, split="validation", log=lambda text: None)._check_setting()
