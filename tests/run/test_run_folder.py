"""A run's folder: entered again only with the configuration that it was made with."""

import dataclasses
import errno
import json
import os

import pytest
from omegaconf import OmegaConf

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import build, load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.run import checkpoint
from arm_rl.run.folder import export_folder, is_finished, open_run, require_same_settings


@pytest.fixture
def make(tmp_path):
    """A configuration whose runs lie in a temporary folder; sections as keywords."""

    def make(cls=TrainConfig, **changes):
        values = {"run": {"name": "x", "root": str(tmp_path)}, "model": {"path": "m"}, "data": {"train": ["a.parquet"]}}
        for key, value in changes.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return build(cls, values)

    return make


def test_a_new_run_gets_a_folder_with_its_configuration(make, tmp_path):
    config = make(learner={"learning_rate": 3e-6})
    assert open_run(config) == tmp_path / "x"
    assert load(TrainConfig, tmp_path / "x" / "config.yaml") == config


def test_the_same_run_is_entered_again(make, tmp_path):
    open_run(make())
    (tmp_path / "x" / "metrics.jsonl").write_text("{}")
    assert open_run(make()) == tmp_path / "x"
    assert (tmp_path / "x" / "metrics.jsonl").read_text() == "{}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learner": {"learning_rate": 1e-5}},
            "learner.learning_rate: 1e-05 now, 2e-06 before; .*/x holds a run with it: choose another run.name",
        ),
        ({"learner": {"betas": [0.9, 0.99]}}, r"learner.betas: \[0.9, 0.99\] now, \[0.9, 0.95\] before"),
        ({"data": {"train": ["b.parquet"]}}, r"data.train: \['b.parquet'\] now, \['a.parquet'\] before"),
        ({"data": {"train": ["a.parquet", "b.parquet"]}}, "data.train: "),
        ({"run": {"seed": 1}}, "run.seed: 1 now, 0 before"),
        ({"reward": {"name": "stage1"}}, "reward.name: 'stage1' now, 'stage2' before"),
        ({"model": {"min_pixels": 100}}, "model.min_pixels: 100 now, None before"),
        ({"algorithm": {"scale_by_std": False}}, "algorithm.scale_by_std: False now, True before"),
    ],
)
def test_another_configuration_is_refused_with_the_key(make, tmp_path, changes, message):
    open_run(make())
    before = (tmp_path / "x" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=message):
        open_run(make(**changes))
    assert (tmp_path / "x" / "config.yaml").read_text() == before


def test_a_run_of_another_kind_is_refused(make):
    open_run(make())
    with pytest.raises(
        ConfigError, match=r"choose another run.name, or remove that folder; .*jobs.export .* model.path=.*/x/export"
    ):
        open_run(make(SftConfig))


def test_a_key_that_came_later_had_its_default_before(make, tmp_path):
    open_run(make())
    file = tmp_path / "x" / "config.yaml"
    older = OmegaConf.load(file)
    del older.algorithm["max_mismatch"]
    OmegaConf.save(older, file)
    with pytest.raises(ConfigError, match=r"algorithm.max_mismatch: 9.0 now, 2.0 before"):
        open_run(make(algorithm={"max_mismatch": 9.0}))
    open_run(make())
    assert "max_mismatch" in OmegaConf.load(file).algorithm


def test_a_run_may_go_on_for_longer_and_write_something_else(make, tmp_path):
    open_run(make())
    longer = make(
        num_steps=500, num_epochs=7, checkpoint={"every": 3}, metrics={"wandb": "disabled"}, evaluation={"every": 5}
    )
    open_run(longer)
    assert load(TrainConfig, tmp_path / "x" / "config.yaml") == longer


def test_what_may_change_are_keys_that_there_are(make):
    """A renamed section would otherwise be compared without anyone noticing."""
    from arm_rl.run import folder

    sections = {item.name: item.default_factory for item in dataclasses.fields(TrainConfig)}
    for key in folder._MAY_CHANGE:
        section, _, name = key.partition(".")
        assert section in sections
        assert not name or name in {item.name for item in dataclasses.fields(sections[section])}


def test_a_folder_is_entered_again_with_the_same_settings_only(tmp_path):
    file = tmp_path / "made" / "settings.json"
    settings = {"--seed": 0, "plan": {"steps": 3, "shares": (0.5, 0.5)}}
    require_same_settings(file, settings, remedy="choose another --out")
    require_same_settings(file, settings, remedy="choose another --out")
    before = file.read_text()
    changed = {"--seed": 1, "plan": {"steps": 4, "shares": [0.5, 0.4], "kinds": 2}}
    with pytest.raises(ConfigError) as refused:
        require_same_settings(file, changed, remedy="choose another --out")
    assert str(refused.value) == (
        "--seed: 1 now, 0 before; plan.steps: 4 now, 3 before; plan.shares: [0.5, 0.4] now, [0.5, 0.5] before "
        f"(and 1 more); {tmp_path / 'made'} holds results of the earlier settings: choose another --out"
    )
    assert file.read_text() == before


def test_a_setting_that_came_later_is_recorded_and_compared_from_then_on(tmp_path):
    file = tmp_path / "settings.json"
    require_same_settings(file, {"seed": 0}, remedy="")
    require_same_settings(file, {"seed": 0, "pixels": 64}, remedy="")
    assert json.loads(file.read_text()) == {"seed": 0, "pixels": 64}
    with pytest.raises(ConfigError, match="pixels: 32 now, 64 before"):
        require_same_settings(file, {"seed": 0, "pixels": 32}, remedy="")


def test_a_run_is_finished_when_its_steps_are_done_and_its_model_is_exported(tmp_path):
    assert not is_finished(tmp_path, 5)
    with checkpoint.write_checkpoint(tmp_path / "checkpoints", 4, {}, 2):
        pass
    with export_folder(tmp_path, 4) as target:
        target.mkdir()
        (target / "config.json").write_text("{}")
        assert not is_finished(tmp_path, 4), "not yet"
    assert not is_finished(tmp_path, 5)
    assert is_finished(tmp_path, 4)
    with pytest.raises(OSError, match="No space"), export_folder(tmp_path, 4):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not is_finished(tmp_path, 4), "the model that is there may be half of one"
    with export_folder(tmp_path, 4):
        pass
    (tmp_path / "export" / "config.json").unlink()
    assert not is_finished(tmp_path, 4)
