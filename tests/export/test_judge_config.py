"""How a judge is asked: as it was trained, where its folder says so."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from arm_rl.core.config import ConfigError, SessionConfig, TemplateConfig
from arm_rl.core.config_file import load, save
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.export.judge_config import FILE, JudgeSetup, write_setup
from arm_rl.judge.judge import Judge
from jobs.serve import main as serve
from tools import ToolFileError


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
    usual = JudgeSetup.read(tmp_path)
    assert usual == JudgeSetup.read("of/the-hub")
    assert (usual.tools, usual.limits, usual.model) == ((), SessionConfig(), None)
    save(demo(TrainConfig, "demo", tmp_path), tmp_path / FILE)
    save(demo(SftConfig, "demo_sft", tmp_path), tmp_path / "other.yaml")
    assert JudgeSetup.read(tmp_path, tmp_path / "other.yaml").limits == SessionConfig()
    changed = JudgeSetup.read(tmp_path).with_changes(tools=(), template=None)
    assert changed.tools == ()
    assert changed.template != TemplateConfig()


def test_an_export_holds_its_tool_files_and_prompts(tmp_path, judge_folder, monkeypatch):
    config = demo(TrainConfig, "demo", tmp_path)
    write_setup(config, tmp_path)
    for name in judge_folder.iterdir():
        (tmp_path / name.name).symlink_to(name)
    monkeypatch.chdir("/")
    setup = JudgeSetup.read(tmp_path)
    tools, _ = setup.load_tools_and_template(tmp_path)
    assert list(tools) == ["image_zoom_in_tool"]
    assert Path(setup.template.question).read_text()
    assert setup.limits == config.session
    Judge.load(tmp_path)
    Judge.connect("http://localhost/v1", "judge", folder=tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    assert JudgeSetup.read(tmp_path.name).load_tools_and_template(tmp_path)[1]


def test_a_model_without_a_setup_finds_the_usual_prompts_from_any_folder(judge_folder, monkeypatch):
    monkeypatch.chdir("/")
    assert Judge.load(judge_folder)


def test_tool_files_of_one_name_are_kept_apart_and_their_paths_hold(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder / "index").mkdir(parents=True)
        entry = {"class_name": f"{folder}.Tool", "config": {"index": f"{folder}/index", "top_k": 5, "engine": "a"}}
        (tmp_path / folder / "tools.yaml").write_text(OmegaConf.to_yaml({"tools": [entry]}))
    secret = "# a comment\ntools: [{mcp: {command: [python, a/tools.yaml]}, key: '${oc.env:NOT_SET}'}]\n"
    (tmp_path / "secret.yaml").write_text(secret.replace("a/tools.yaml", "none.py"))
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "runs"):
        (tmp_path / folder).symlink_to(root / folder)
    files = "tools.files=[a/tools.yaml, b/tools.yaml, secret.yaml]"
    write_setup(load(TrainConfig, "configs/demo.yaml", ["model.path=m", files]), tmp_path / "export")
    setup = JudgeSetup.read("export")
    assert [Path(file).name for file in setup.tools] == ["tools.yaml", "tools-2.yaml", "secret.yaml"]
    for folder, file in zip("ab", setup.tools, strict=False):
        assert OmegaConf.load(file).tools[0].config == {
            "index": str(tmp_path / folder / "index"),
            "top_k": 5,
            "engine": "a",
        }
    assert Path(setup.tools[2]).read_text() == secret.replace("a/tools.yaml", "none.py")


UNTRUSTED = [
    ({"mcp": {"command": ["touch", "@RAN@"]}, "tools": ["a"]}, r"tools\[0\] would run the command 'touch "),
    ({"mcp": {"url": "http://127.0.0.1:9/mcp"}, "tools": ["a"]}, "would connect to the MCP server 'http://127.0.0.1:9"),
    ({"class_name": "planted.Tool"}, "would import and run the class 'planted.Tool'"),
    ({"class_name": "web_search", "config": {"api_key_variable": "HOME"}}, "would choose where web_search sends"),
    ({"class_name": "web_search", "config": {"base_url": "http://evil"}}, "would choose where web_search sends"),
    ({"class_name": "web_search", "config": {"engine": "${oc.env:PATH}"}}, "would read environment variables"),
]


@pytest.mark.parametrize(("entry", "message"), UNTRUSTED, ids=range(len(UNTRUSTED)))
def test_a_model_folder_runs_nothing_of_its_own(tmp_path, monkeypatch, capsys, entry, message):
    """Neither the judge nor `serve` runs what a folder's own tool files name; a user who names or trusts them is obeyed."""
    ran, folder = tmp_path / "ran", tmp_path / "export"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planted.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tool: pass\n")
    tools = tmp_path / "tools.yaml"
    tools.write_text(json.dumps({"tools": [entry]}).replace("@RAN@", str(ran)))
    write_setup(load(TrainConfig, "configs/demo.yaml", ["model.path=m", f"tools.files=[{tools}]"]), folder)
    (folder / "config.json").write_text("{}")
    for ask in (Judge.load, lambda folder: Judge.connect("http://127.0.0.1:9/v1", "judge", folder=folder)):
        with pytest.raises(ToolFileError, match=message):
            ask(folder)
    assert serve([str(folder)]) == 1
    assert "--trust" in capsys.readouterr().err
    assert not ran.exists()
    JudgeSetup.read(folder, trust=True).require_trusted_tools()
    JudgeSetup.read(folder, folder / FILE).require_trusted_tools()


def test_a_prompt_that_is_gone_is_named(tmp_path):
    config = load(TrainConfig, "configs/demo.yaml", ["model.path=m", "template.system_prompt=gone.txt"])
    with pytest.raises(ConfigError, match="template.system_prompt: gone.txt: No such file .*: the export needs a copy"):
        write_setup(config, tmp_path)
