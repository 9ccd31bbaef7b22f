"""Configurations that cannot work, beside those of tests/core/test_config.py: the key and what would be right, and no folder is made."""

import sys

import pytest

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from jobs import train
from jobs.command_line import run_job

LEAST = "run: {name: x}\nmodel: {path: m}\ndata: {train: [a]}\n"

OVERRIDES = [
    ("run.name=' '", "run.name: a name for a folder, not ' '"),
    ("run.name=", "run.name: None cannot be used"),
    ("run.name==x", "run.name: a name for a folder, not '=x'"),
    (f"run.name={'x' * 300}", "run.name: a name for a folder, not 'xxx"),
    ("run.name=x\0y", r"run.name: a name for a folder, not 'x\\x00y'"),
    ("run.name=${run.name}", "run.name: Recursive interpolation"),
    (
        "run.name=${oc.env:HOME}",
        "run.name: '\\${oc.env:HOME}' cannot be used: environment variables decide nothing here",
    ),
    ("data.train=[a,'x/${ oc.env:HOME}']", "data.train: .* cannot be used: environment variables decide nothing here"),
    (
        ("run.root=env", "run.name=${oc.${run.root}:HOME}"),
        ".*the environment variable HOME cannot be used: environment variables decide",
    ),
    ("run.name=${no.such.key}", "run.name: .*no.such.key.* not found"),
    ("--run.name=x", "--run: unknown key in .*; did you mean run\\?"),
    ("run=[]", "run: 'run=\\[\\]' cannot be used here"),
    ("model={path: x, pth: y}", "model.pth: unknown key in .*; did you mean model.path\\?"),
    ("model.path=", "model.path: None cannot be used"),
    ("data.train=['']", "data.train: names of files, not \\[''\\]"),
    ("data.train=[a,a]", "data.train: each file once, not \\['a', 'a'\\]"),
    ("data.held_out=[b,b]", "data.held_out: each file once"),
    ("data.broken_rows=ignore", "data.broken_rows: 'ignore' cannot be used: .*\\['stop', 'skip'\\]"),
    ("data.image_root=/no/such/folder", "data.image_root: there is no folder '/no/such/folder'"),
    ("tools.timeout_seconds=.inf", "tools.timeout_seconds: above 0, not inf"),
    ("tools.timeout_seconds=.nan", "tools.timeout_seconds: above 0, not nan"),
    ("rollout.block_size=0", "rollout.block_size: at least 1, not 0"),
    (("placement.use_gpu=false", "rollout.block_size=33"), "rollout.block_size: a multiple of 32 on CPU, not 33"),
    ("rollout.gpu_memory_utilization=.nan", "rollout.gpu_memory_utilization: above 0 and at most 1, not nan"),
    ("run.max_broken_sessions=.nan", "run.max_broken_sessions: between 0 and 1, not nan"),
    ("algorithm.clip_low=.nan", "algorithm.clip_low: between 0 and 1, not nan"),
    ("algorithm.clip_high=.inf", "algorithm.clip_high: above 0, not inf"),
    ("algorithm.kl_coefficient=.inf", "algorithm.kl_coefficient: not negative and finite, not inf"),
    ("algorithm.entropy_coefficient=.nan", "algorithm.entropy_coefficient: a finite number, not nan"),
    ("algorithm.importance_cap=.nan", "algorithm.importance_cap: above 0, not nan"),
    ("learner.weight_decay=.inf", "learner.weight_decay: not negative and finite, not inf"),
    ("learner.learning_rate=nan", "learner.learning_rate: not negative and finite, not nan"),
    ("learner.betas=[.nan,0.9]", "learner.betas: each from 0 to below 1"),
    ("learner.max_grad_norm=.nan", "learner.max_grad_norm: above 0, not nan"),
    ("learner.warmup_ratio=.nan", "learner.warmup_ratio: between 0 and 1, not nan"),
    ("learner.collective_timeout_seconds=0", "learner.collective_timeout_seconds: above 0, not 0"),
    ("learner.call_timeout_seconds=.inf", "learner.call_timeout_seconds: above 0, not inf"),
    ("run.stall_seconds=0", "run.stall_seconds: above 0, not 0"),
    ("learner.zero_stage=2.0", "learner.zero_stage: 2.0 cannot be used"),
    ("session.last_turn_notice=", "session.last_turn_notice: None cannot be used"),
]


@pytest.mark.parametrize(("overrides", "message"), OVERRIDES, ids=[message for _, message in OVERRIDES])
def test_an_override_is_refused_with_its_key(tmp_path, overrides, message):
    (tmp_path / "c.yaml").write_text(LEAST)
    with pytest.raises(ConfigError, match=f"^{message}"):
        load(TrainConfig, tmp_path / "c.yaml", [overrides] if isinstance(overrides, str) else overrides)


FILES = {
    "UTF-16": (LEAST.encode("utf-16"), r"c.yaml: line 1: not UTF-8 text \(the file is UTF-16\)"),
    "Latin-1": (b"run: {name: \xe9}", r"c.yaml: line 1: not UTF-8 text \(byte 0xe9 at column 13\)"),
    "a null": (b"\0", "c.yaml: not a YAML file: unacceptable character"),
    "a Python object": (
        b"run: !!python/object/apply:os.system ['touch made']",
        "c.yaml: not a YAML file: could not determine",
    ),
    "aliases of aliases": (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "a: unknown key in .*c.yaml"),
    "an alias of itself": (b"run: &a {name: *a}", "c.yaml: not a YAML file"),
    "two documents": (b"run: {name: x}\n---\nrun: {name: y}", "c.yaml: not a YAML file: expected a single document"),
    "a tab": (b"run:\n\tname: x", "c.yaml: not a YAML file: while scanning"),
    "a number as key": (b"run: {1: x}", "run.1: unknown key in .*c.yaml"),
    "3,000 lists deep": (
        b"a: " + b"[" * 3000 + b"]" * 3000,
        "c.yaml: not a YAML file: (maximum recursion|while increasing flow level)",
    ),
    "JSON cut short": (b'{"run": {"name": "x"', "c.yaml: not a YAML file"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_is_refused_with_its_name(tmp_path, content, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, tmp_path / "c.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["c.yaml"], "nothing was run"


def test_a_job_ends_with_one_line_and_makes_no_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text(LEAST)
    monkeypatch.setattr(
        sys, "argv", ["train", str(tmp_path / "c.yaml"), f"run.root={tmp_path}", "algorithm.group_size=1"]
    )
    assert run_job("train", "", TrainConfig, train.run) == 1
    shown = capsys.readouterr()
    assert shown.err == "error: algorithm.group_size: at least 2 (an advantage needs a group), not 1\n"
    assert not (tmp_path / "x").exists()
