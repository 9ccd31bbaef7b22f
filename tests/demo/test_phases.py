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
    changed.write_text(Path(DIGITS.config).read_text().replace("num_steps: 75", "num_steps: 76"))
    load = demos.load

    def load_changed(cls, path, overrides=()):
        return load(cls, changed if path == DIGITS.config else path, overrides)

    monkeypatch.setattr(demos, "load", load_changed)
    with pytest.raises(ConfigError, match=r"^configs/demo.yaml.num_steps: 76 now, 75 before; "):
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
    monkeypatch.setattr(demo, "cluster", lambda: pytest.fail("a cluster was started"))
    assert demo.main(["--seed", "1", "--out", str(finished)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --seed: 1 now, 0 before; ")
    assert "choose another --out, or delete that folder" in error


def test_the_job_runs_the_demo_in_its_own_folder(finished, monkeypatch):
    ran = []
    monkeypatch.setattr(demo, "cluster", nullcontext)
    monkeypatch.setattr(Demo, "run", lambda self: ran.append(self.seed))
    assert demo.main(["--out", str(finished)]) == 0
    assert ran == [0]
