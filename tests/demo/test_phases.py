"""The phases of a demo without their work: whose folder it is, and what is said."""

import dataclasses
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from arm_rl.core.config import ConfigError
from arm_rl.demo import demos
from arm_rl.demo.demos import DIGITS, THREE_TRACKS
from arm_rl.demo.phases import Demo
from jobs import demo


def open_demo(folder: Path, *, spec=DIGITS, seed=0, size=None) -> None:
    Demo(spec, folder, seed, size or spec.full).open_folder()


@pytest.fixture
def finished(tmp_path) -> Path:
    """The folder of a finished demo with seed 0."""
    open_demo(tmp_path)
    (tmp_path / "seconds.json").write_text(json.dumps(dict.fromkeys(DIGITS.titles, 1.0)))
    return tmp_path


def test_the_same_demo_enters_its_folder_again(finished):
    before = (finished / "settings.json").read_text()
    open_demo(finished)
    assert (finished / "settings.json").read_text() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "--seed: 1 now, 0 before; "),
        ({"size": DIGITS.short}, "--short: True now, False before; "),
        ({"spec": THREE_TRACKS}, "--tools: True now, False before; "),
        ({"spec": dataclasses.replace(DIGITS, stage1=("num_steps=13",))}, "stage 1: "),
        (
            {"size": dataclasses.replace(DIGITS.full, train=3601)},
            "sizes.train: 3601 now, 3600 before; ",
        ),
    ],
)
def test_another_demo_is_refused_with_what_differs_and_what_to_do(finished, changes, message):
    with pytest.raises(ConfigError) as refused:
        open_demo(finished, **changes)
    assert str(refused.value).startswith(message)
    assert str(refused.value).endswith(": choose another --out, or delete that folder")
    assert str(finished) in str(refused.value)


def test_a_changed_configuration_file_or_plan_is_refused(finished, tmp_path, monkeypatch):
    changed = tmp_path / "changed.yaml"
    changed.write_text(Path(DIGITS.config).read_text().replace("num_steps: 36", "num_steps: 37"))
    load = demos.load

    def load_changed(cls, path, overrides=()):
        return load(cls, changed if path == DIGITS.config else path, overrides)

    monkeypatch.setattr(demos, "load", load_changed)
    with pytest.raises(ConfigError, match=r"^configs/demo.yaml.num_steps: 37 now, 36 before; "):
        open_demo(finished)
    monkeypatch.undo()
    monkeypatch.setattr(demos, "PLAN_VERSION", demos.PLAN_VERSION + 1)
    with pytest.raises(ConfigError, match="^version of the plan: "):
        open_demo(finished)


def test_a_folder_of_a_version_that_kept_no_settings_is_refused(finished):
    (finished / "settings.json").unlink()
    with pytest.raises(ConfigError, match="holds a demo of an earlier version.* choose another --out"):
        open_demo(finished)
    shutil.rmtree(finished)
    open_demo(finished)


def test_the_job_starts_nothing_in_another_demo_s_folder(finished, monkeypatch, capsys):
    monkeypatch.setattr("actors.cluster.connection.cluster", lambda: pytest.fail("a cluster was started"))
    assert demo.main(["--seed", "1", "--out", str(finished)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --seed: 1 now, 0 before; ")
    assert "choose another --out, or delete that folder" in error


def test_the_job_runs_the_demo_in_its_own_folder(finished, monkeypatch):
    ran = []
    monkeypatch.setattr("actors.cluster.connection.cluster", nullcontext)
    monkeypatch.setattr(Demo, "run", lambda self: ran.append(self.seed))
    assert demo.main(["--out", str(finished)]) == 0
    assert ran == [0]


def evaluation(accuracy: float, **others: float) -> dict[str, float]:
    shown = {"tool_calls": 1.0, "tool_rate": 1.0, "box_hit": 0.9, "accuracy_without_tools": 0.5, "num_samples": 480.0}
    return {"accuracy": accuracy, **shown, **others}


def write_stages(folder: Path, cold_start: float, trained: float) -> None:
    """Write what the stages of a demo leave behind, with made-up numbers."""
    for stage in ("base", "sft", "stage1", "stage2"):
        (folder / stage / "trajectories").mkdir(parents=True)
    (folder / "base" / "evaluation.json").write_text(json.dumps(evaluation(0.5)))
    evaluations = {"sft": [], "stage1": [(0, cold_start), (12, 0.8)], "stage2": [(75, trained)]}
    for stage, accuracies in evaluations.items():
        lines = [{"step": 1, "stage": stage, "learner/loss": 1.0}]
        for step, accuracy in accuracies:
            named = {f"evaluation/{name}": value for name, value in evaluation(accuracy).items()}
            lines.append({"step": step, "stage": stage, **named})
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def judged_pairs(monkeypatch) -> dict[str, float]:
    """Accuracy by pair of digits, in place of what the trajectories say."""
    pairs = {"4 or 7": 0.93, "7 or 4": 0.99}
    monkeypatch.setattr(Demo, "_accuracy_by_pair", lambda self: pairs)
    return pairs


def test_a_finished_demo_says_what_happened_and_keeps_its_marks(finished, judged_pairs, capsys):
    write_stages(finished, 0.61, 0.98)
    (finished / "base_model").mkdir()
    skills = {name: {"value": 0.99, "mark": 0.95, "reached": True} for name in ("matching", "answers")}
    (finished / "base_model" / "skills.json").write_text(json.dumps({"skills": skills}))
    Demo(DIGITS, finished, 0, DIGITS.full).run()
    shown = capsys.readouterr().out
    assert "The tool alone lifts accuracy from 0.50 to 0.98" in shown
    assert "All 4 marks are met." in shown
    assert "WARNING" not in shown
    summary = json.loads((finished / "summary.json").read_text())
    values = [(mark["value"], mark["met"]) for mark in summary["marks"]]
    assert values == [(0.98, True), (0.93, True), (0.5, True), (0.61, True)]
    assert summary["base"]["skills"] == skills
    assert summary["pairs"] == judged_pairs
    assert summary["stage2"]["accuracy"] == 0.98


def test_a_missed_mark_is_a_warning_and_no_failure(finished, judged_pairs, monkeypatch, capsys):
    write_stages(finished, 0.61, 0.898)
    (finished / "base_model").mkdir()
    skills = {"matching": {"value": 0.6, "mark": 0.95, "reached": False}}
    (finished / "base_model" / "skills.json").write_text(json.dumps({"skills": skills}))
    monkeypatch.setattr("actors.cluster.connection.cluster", nullcontext)
    assert demo.main(["--out", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "WARNING: mark missed: accuracy after stage 2 is 0.898; at least 0.95 is expected" in shown
    assert (
        "WARNING: the base model's training ended at its limit: matching is 0.600; at least 0.95 is expected" in shown
    )
    assert "marks are met" not in shown
    assert [mark["met"] for mark in json.loads((finished / "summary.json").read_text())["marks"]] == [
        False,
        True,
        True,
        True,
    ]


def test_a_short_run_has_no_marks(tmp_path, capsys):
    open_demo(tmp_path, size=DIGITS.short)
    (tmp_path / "seconds.json").write_text(json.dumps(dict.fromkeys(DIGITS.titles, 1.0)))
    write_stages(tmp_path, 0.5, 0.5)
    Demo(DIGITS, tmp_path, 0, DIGITS.short).run()
    shown = capsys.readouterr().out
    assert "learns nothing" in shown
    assert "WARNING" not in shown
    assert json.loads((tmp_path / "summary.json").read_text())["marks"] == []


def test_progress_inside_long_phases_is_read_from_what_they_write(tmp_path):
    run = Demo(DIGITS, tmp_path, 0, DIGITS.full)
    progress = {name: run._progress_of(name) for name in DIGITS.titles}
    assert {name for name, share in progress.items() if share() is not None} == {
        "base",
        "sft",
        "difficulty",
        "stage1",
        "stage2",
    }
    assert {share() for share in progress.values()} == {None, 0.0}
    for stage, step in (("sft", 15), ("stage1", 3), ("stage2", 9)):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text(json.dumps({"step": step, "stage": stage}) + "\n")
    (tmp_path / "sft-difficulty").mkdir()
    (tmp_path / "sft-difficulty" / "difficulty.jsonl").write_text("{}\n" * 384)
    run._note_base_progress(0.5)
    assert {name: progress[name]() for name in ("base", "difficulty", "stage1", "stage2")} == {
        "base": 0.5,
        "difficulty": 0.25,
        "stage1": 0.25,
        "stage2": 0.25,
    }
    assert 0 < progress["sft"]() < 1
