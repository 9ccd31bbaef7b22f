"""Secure by default: nothing is unpickled, who listens, what leads to files, and a planted key that must turn up nowhere."""

import ast
import asyncio
import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import ray

from actors.rollout import model_server
from actors.rollout.model_server import ModelServer, ServerFailed
from actors.scorer import score
from arm_rl.core import session, trajectory_file
from arm_rl.core.config import RewardConfig, SessionConfig
from arm_rl.core.config_file import load
from arm_rl.core.errors import UserError
from arm_rl.core.parsing import TOOL_FORMATS
from arm_rl.core.stage_config import TrainConfig
from arm_rl.report.static_report import write_report
from arm_rl.run.folder import open_run
from arm_rl.run.metrics import rollout_metrics
from arm_rl.run.metrics_log import MetricsLog
from tests.support.page_files import NOWHERE
from tests.support.scripted import ANSWER, Scripted, make_sample, raw_call
from tools import load_tools
from tools.documents.retrieval import DocumentByIndexTool
from tools.execution.local import LocalTools

ROOT = Path(__file__).parent.parent
SOURCES = ("arm_rl", "actors", "rewards", "tools", "jobs")
KEY = "sk-planted-7f3a91c2"

RUNS_CODE = {
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "torch.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
    "eval",
    "exec",
    "os.system",
    "os.popen",
}
KNOWN = {
    ("tools/python/sandbox_guest.py", "eval"),  # inside the sandbox, which is what it is for
    ("tools/python/sandbox_guest.py", "exec"),
    ("arm_rl/core/config_file.py", "yaml.load"),  # a loader of plain values, derived from yaml.SafeLoader
    ("actors/learner/rank.py", "torch.load"),  # random states of a checkpoint of ours
    ("arm_rl/core/config_file.py", "yaml.load"),  # with a loader that is YAML's safe one
}


def calls(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            yield ast.unparse(node.func), keywords


def test_no_data_becomes_code():
    found = set()
    for path in (path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        for name, keywords in calls(path):
            safe = name == "torch.load" and keywords.get("weights_only") is True
            if (name in RUNS_CODE and not safe) or any(
                keywords.get(word) for word in ("allow_pickle", "trust_remote_code", "shell")
            ):
                found.add((str(path.relative_to(ROOT)), name))
    assert found <= KNOWN


def test_a_model_is_served_to_this_machine_alone(tmp_path, monkeypatch):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(model_server, "tie_group_to_owner", lambda command, _: [str(program), *command])
    with pytest.raises(ServerFailed):
        ModelServer(tmp_path / "model", tmp_path / "log", use_gpu=False).start()
    assert "--host 127.0.0.1 " in (tmp_path / "log").read_text()


def test_a_local_cluster_lets_nobody_in_without_its_token(local_ray):
    """Ray listens on all interfaces, and who may talk to it runs code."""
    assert ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "report/../report", "x' OR '1'='1", "", "\0", "."])
def test_a_document_is_found_by_its_name_alone(documents_index, name):
    result = DocumentByIndexTool(index=str(documents_index)).call({"filename": name, "image_idx": 1}, NOWHERE)
    assert result.status == "bad_arguments"
    assert "known: report.pdf" in result.text


@pytest.fixture
def planted(monkeypatch):
    for name in ("SERPER_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "PLANTED_KEY"):
        monkeypatch.setenv(name, KEY)


ZOOM = {"class_name": "image_zoom_in_tool"}
NAMED = {"function": {"name": "a ${oc.env:PLANTED_KEY}", "parameters": {"properties": {}}}}
TALKS = [sys.executable, "-c", "import os, sys; sys.exit(os.environ['KEY'])"]
BROKEN_ENTRIES = [
    {"class_name": "web_search", "config": {"engine": "${oc.env:PLANTED_KEY}"}},
    {"class_name": "${oc.env:PLANTED_KEY}"},
    {"class_name": "${oc.env:'PLANTED_KEY'}"},
    {"class_name": "${ oc.env : PLANTED_KEY }"},
    {"class_name": "${oc.env:${oc.decode:PLANTED_KEY}}"},
    {**ZOOM, "execution": "${oc.env:PLANTED_KEY}"},
    {**ZOOM, "tool_schema": NAMED},
    {"mcp": {"command": TALKS, "env": {"KEY": "PLANTED_KEY"}}, "tools": ["a"]},
    {"mcp": {"url": "http://127.0.0.1:9/mcp", "headers": {"Authorization": KEY}}, "tools": ["a"]},
]


@pytest.mark.parametrize("entry", BROKEN_ENTRIES, ids=range(len(BROKEN_ENTRIES)))
def test_a_message_about_a_tool_file_holds_no_secret(tmp_path, planted, entry, caplog, capfd):
    (tmp_path / "t.yaml").write_text(json.dumps({"tools": [entry]}))
    with pytest.raises(UserError) as raised:
        load_tools([str(tmp_path / "t.yaml")])
    assert f"{tmp_path}/t.yaml: tools[0]" in str(raised.value)
    assert KEY not in str(raised.value) + caplog.text + "".join(capfd.readouterr())
    assert raised.value.__cause__ is None, "nor does what it came from"


def test_a_key_of_the_environment_turns_up_in_no_file_and_no_log(tmp_path, template, planted, caplog, capfd):
    """A run's parts, with a tool that uses a key and fails: run folder, Weights & Biases, trajectories, report and logs."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "tools.yaml").write_text(
        "tools: [{class_name: web_search, config: {base_url: 'http://127.0.0.1:9', api_key_variable: PLANTED_KEY, retries: 0}}]"
    )
    (tmp_path / "c.yaml").write_text("run: {name: x}\nmodel: {path: m}\ndata: {train: [a.parquet]}\n")
    overrides = [
        f"run.root={tmp_path}",
        f"tools.files=[{tmp_path / 'tools.yaml'}]",
        "metrics.wandb=offline",
        "metrics.tensorboard=true",
    ]
    config = load(TrainConfig, tmp_path / "c.yaml", overrides)
    folder = open_run(config)
    offered = load_tools(config.tools.files)
    template, tools = copy.copy(template), LocalTools(offered)
    template.schemas = {name: tool.schema for name, tool in offered.items()}
    sample = make_sample(tmp_path, tools=("web_search",))
    search = raw_call(json.dumps({"name": "web_search", "arguments": {"query": "a"}}))
    finished = asyncio.run(
        session.run(sample, Scripted(template, search, ANSWER), tools, SessionConfig(), template=template)
    )
    tools.close()
    assert [event.status for event in finished.trajectory.tool_events] == ["failed"]
    scored = [score(finished.trajectory, sample, RewardConfig(), TOOL_FORMATS["hermes"])]
    with MetricsLog(folder, config.metrics, config, 1, stage="s") as log:
        trajectories = folder / "trajectories" / "s-000001.parquet"
        trajectory_file.write(trajectories, scored, {sample.id: sample}, finished.images, stage="s", step=1)
        log.log_trajectories(trajectories)
        log.log(1, rollout_metrics(scored))
    write_report(folder)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "s-000001.parquet", "report.html"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in caplog.text + "".join(capfd.readouterr()) + repr(finished.trajectory)
