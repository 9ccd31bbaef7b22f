"""The findings' job in a few steps: real runs on shared engines, which begin with the weights of their own start; and going on."""

import json
from pathlib import Path

import pytest

from arm_rl.experiments.findings import results
from arm_rl.experiments.findings.runs import QUICK, Findings
from arm_rl.run.metrics_log import read_lines
from jobs.findings import write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DESIGNS = ("adaptive_staged", "accuracy")


@pytest.fixture(scope="module")
def root(local_ray, tmp_path_factory) -> Path:
    """The folder after both designs of one seed."""
    root = tmp_path_factory.mktemp("findings")
    Findings(root, QUICK, split="test", log=lambda text: None).run([0], DESIGNS)
    return root


def test_every_run_samples_from_the_weights_that_it_learns(root):
    for name in ("stage1", *DESIGNS):
        steps = [line for line in read_lines(root / "0" / name / "metrics.jsonl") if "learner/loss" in line]
        assert steps
        assert all(line["learner/logprob_gap"] < 1e-5 for line in steps), "the engines served another run before"
        assert {"rollout/accuracy/engraved", "rollout/accuracy/plain"} & set(steps[0])


def test_the_cold_start_is_judged_in_three_ways_and_designs_once_or_more(root):
    cold = json.loads((root / "0" / "cold_start" / "evaluation.json").read_text())
    for kind in ("engraved", "plain"):
        for way in ("accuracy", "accuracy_without_tools", "accuracy_with_prefill", "tool_calls_with_prefill"):
            assert cold[f"{way}/{kind}"] >= 0
    found = results.read(root)
    assert found.designs == ["accuracy", "adaptive_staged"]
    assert found.values("adaptive_staged", "accuracy_with_prefill").keys() == {0}
    assert found.values("accuracy", "accuracy_with_prefill") == {}
    assert write(root).is_file()


def test_what_is_done_is_not_done_again(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    said: list[str] = []
    Findings(root, QUICK, split="test", log=said.append).run([0], DESIGNS)  # nothing is started: there is no cluster
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before
