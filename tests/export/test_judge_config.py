"""How a judge is asked: as it was trained, where its folder says so."""

from arm_rl.core.config import SessionConfig, TemplateConfig
from arm_rl.core.config_file import load, save
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.export.judge_config import FILE, JudgeSetup


def demo(cls, name, tmp_path):
    return load(cls, f"configs/{name}.yaml", [f"model.path={tmp_path}", "model.max_pixels=16384"])


def test_an_export_is_asked_as_it_was_trained(tmp_path):
    config = demo(TrainConfig, "demo", tmp_path)
    save(config, tmp_path / FILE)
    setup = JudgeSetup.read(tmp_path)
    assert (setup.tools, setup.template, setup.limits) == (config.tools.files, config.template, config.session)
    assert setup.max_model_len == config.rollout.max_model_len
    assert setup.template.question == "configs/prompts/digits_question.jinja"


def test_views_are_as_large_as_in_training(tmp_path, judge_folder):
    setup = JudgeSetup.from_config(demo(TrainConfig, "demo", tmp_path))
    assert setup.load_tools_and_template(judge_folder)[1].view.max_pixels == 16384
    assert JudgeSetup().load_tools_and_template(judge_folder)[1].view.max_pixels != 16384


def test_a_cold_start_has_the_usual_limits(tmp_path):
    setup = JudgeSetup.from_config(demo(SftConfig, "demo_sft", tmp_path))
    assert (setup.limits, setup.max_model_len) == (SessionConfig(), None)
    assert setup.tools == ("configs/tools/digits.yaml",)


def test_a_foreign_model_has_no_tools_and_another_file_goes_before_the_folders(tmp_path):
    assert JudgeSetup.read(tmp_path) == JudgeSetup.read("of/the-hub") == JudgeSetup()
    save(demo(TrainConfig, "demo", tmp_path), tmp_path / FILE)
    save(demo(SftConfig, "demo_sft", tmp_path), tmp_path / "other.yaml")
    assert JudgeSetup.read(tmp_path, tmp_path / "other.yaml").limits == SessionConfig()
    changed = JudgeSetup.read(tmp_path).with_changes(tools=(), template=None)
    assert changed.tools == ()
    assert changed.template != TemplateConfig()
