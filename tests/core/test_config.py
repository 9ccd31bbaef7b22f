"""Configurations: what is refused, with which key and which reason; what is shipped; what is written."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import build, describe, list_override, load, read_saved, save
from arm_rl.core.stage_config import SftConfig, TrainConfig
from tools import load_tools

ROOT = Path(__file__).parents[2]
LEAST = {"run": {"name": "x"}, "model": {"path": "m"}, "data": {"train": ["a.parquet"]}}


@pytest.fixture
def least(tmp_path):
    """The shortest file that is a whole configuration."""
    path = tmp_path / "least.yaml"
    path.write_text(yaml.safe_dump(LEAST))
    return path


def test_the_least_configuration(least):
    config = load(TrainConfig, least)
    assert (config.run.name, config.run.root, config.model.path, config.data.train) == (
        "x",
        "runs",
        "m",
        ("a.parquet",),
    )
    assert config.run.folder == Path("runs/x")
    assert config == TrainConfig(run=config.run, model=config.model, data=config.data)


def test_overrides_win_over_the_file_and_later_ones_over_earlier(least):
    config = load(
        TrainConfig,
        least,
        [
            "run.name=y",
            "learner.learning_rate=1e-4",
            "data.train=[b,c]",
            "num_steps=5",
            "rollout.block_size=32",
            "learner.betas=[0.8,0.9]",
            "num_steps=7",
        ],
    )
    assert (config.run.name, config.learner.learning_rate, config.data.train) == ("y", 1e-4, ("b", "c"))
    assert (config.num_steps, config.rollout.block_size, config.learner.betas) == (7, 32, (0.8, 0.9))


def test_a_value_may_refer_to_another(least):
    config = load(TrainConfig, least, ["run.name=${model.path}-${run.seed}"])
    assert config.run.name == "m-0"


WORDS = [
    "2026_11_29",
    "007",
    "3.10",
    "12:30:45",
    "on",
    "No",
    "1e3",
    "0x1F",
    "exp #3",
    "2026-11-29",
    ".inf",
    "a: b",
    "null",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_text_key_keeps_what_was_written_on_the_command_line(least, tmp_path, word):
    config = load(TrainConfig, least, [f"run.name={word}", f"model.path={word}", list_override("data.train", word)])
    assert (config.run.name, config.model.path, config.data.train) == (word, word, (word,))
    save(config, tmp_path / "saved.yaml")
    assert load(TrainConfig, tmp_path / "saved.yaml") == config
    assert read_saved(TrainConfig, tmp_path / "saved.yaml")["run"]["name"] == word


@pytest.mark.parametrize("word", [word for word in WORDS if not {*word} & {"#", " "} and word != "null"])
def test_a_text_key_keeps_what_was_written_in_a_file(tmp_path, word):
    path = tmp_path / "words.yaml"
    path.write_text(
        f"run: {{name: {word}, seed: 0x10}}\nmodel:\n  path: {word}\ndata: {{train: [{word}], weights: {{{word}: 1_0}}}}"
    )
    config = load(TrainConfig, path)
    assert (config.run.name, config.model.path, config.data.train) == (word, word, (word,))
    assert (config.run.seed, dict(config.data.weights)) == (16, {word: 10.0})
    assert load(TrainConfig, path, [f"data.held_out=[{word}]"]).data.held_out == (word,)


def test_quotes_and_null_keep_their_meaning(least):
    config = load(TrainConfig, least, ['run.name="on"', "model.attention=null", 'session.last_turn_notice="a\\nb"'])
    assert (config.run.name, config.model.attention, config.session.last_turn_notice) == ("on", None, "a\nb")
    assert load(TrainConfig, least, ["session.last_turn_notice=''"]).session.last_turn_notice == ""


def test_a_list_of_names_takes_any_character(least):
    names = ("a,b", "[c]", "d: e # f", "'g'", "h\\i")
    assert load(TrainConfig, least, [list_override("data.train", *names)]).data.train == names


def test_a_file_with_a_byte_order_mark_and_one_in_another_encoding(tmp_path):
    path = tmp_path / "marked.yaml"
    path.write_bytes(yaml.safe_dump(LEAST).encode("utf-8-sig"))
    assert load(TrainConfig, path).run.name == "x"
    path.write_bytes("run:\n  name: Müller\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"marked.yaml: line 2: not UTF-8 text \(byte 0xfc at column 10\)"):
        load(TrainConfig, path)
    path.write_bytes("run: {}".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"marked.yaml: line 1: not UTF-8 text \(the file is UTF-16\)"):
        load(TrainConfig, path)


REFUSED = [
    # What cannot run together.
    (
        ("learner.zero_stage=0", "learner.offload_optimizer=true"),
        "learner.offload_optimizer: only with learner.zero_stage from 1, not 0",
    ),
    (
        ("learner.zero_stage=2", "learner.offload_parameters=true"),
        "learner.offload_parameters: only with learner.zero_stage 3, not 2",
    ),
    (("model.attention=flash_attention_2", "model.dtype=float32"), "model.attention: flash_attention_2 only with "),
    (
        ("model.attention=flash_attention_2", "placement.use_gpu=false"),
        "model.attention: flash_attention_2 only with ",
    ),
    # Unknown keys.
    ("model.foo=1", "model.foo: unknown key in "),
    ("modle.path=a", "modle: unknown key in .*; did you mean model\\?"),
    ("rollout.temprature=1", "rollout.temprature: unknown key in .*; did you mean rollout.temperature\\?"),
    ("zzz=1", "zzz: unknown key in .*; --help lists the keys"),
    ("a.b.c=1", "a: unknown key in "),
    ("run..seed=1", "run.: unknown key in "),
    ("batch_size=4", "batch_size: unknown key in "),
    # Sections that are none, and values that are.
    ("model=3", "model: a section of keys is needed, not 3"),
    ("run=x", "run: a section of keys is needed, not 'x'"),
    ("session=null", "session: a section of keys is needed, not None"),
    ("learner=[1]", r"learner: a section of keys is needed, not \[1\]"),
    ("model.path.x=1", "model.path: .* cannot be used"),
    ("data.train.0=b", "data.train.0: .* cannot be used"),
    # Wrong types.
    ("algorithm.group_size=abc", "algorithm.group_size: 'abc' cannot be used: .* could not be converted to Integer"),
    ("algorithm.group_size=8.5", "algorithm.group_size: 8.5 cannot be used"),
    ("run.seed=1.0", "run.seed: 1.0 cannot be used"),
    ("run.seed=", "run.seed: None cannot be used: .* is not Optional"),
    ("evaluation.every=true", "evaluation.every: True cannot be used"),
    ("learner.learning_rate=fast", "learner.learning_rate: 'fast' cannot be used: .* could not be converted to Float"),
    ("placement.use_gpu=maybe", "placement.use_gpu: 'maybe' cannot be used"),
    ("data.train=a.parquet", "data.train: 'a.parquet' cannot be used"),
    ("data.train={a: 1}", "data.train: .* cannot be used"),
    ("data.train=[a", "data.train: .* cannot be used"),
    ("learner.betas=0.9", "learner.betas: 0.9 cannot be used"),
    ("learner.betas=[0.9]", r"learner.betas: \[0.9\] cannot be used"),
    ("learner.betas=[0.9,b]", "learner.betas: .* cannot be used"),
    ("learner.zero_stage=4", r"learner.zero_stage: 4 cannot be used: .* expected one of \[0, 1, 2, 3\]"),
    ("placement.kind=both", r"placement.kind: 'both' cannot be used: .* expected one of \['apart', 'shared'\]"),
    (
        "metrics.wandb=off",
        r"metrics.wandb: 'off' cannot be used: .* expected one of \['auto', 'online', 'offline', 'disabled'\]",
    ),
    ("algorithm.kl_kind=k4", "algorithm.kl_kind: 'k4' cannot be used"),
    ("algorithm.loss_aggregation=sum", "algorithm.loss_aggregation: 'sum' cannot be used"),
    ("learner.schedule=step", "learner.schedule: 'step' cannot be used"),
    ("model.dtype=float16", "model.dtype: 'float16' cannot be used"),
    ("run.name=${nowhere}", "run.name: Interpolation key 'nowhere' not found"),
    ("run.seed=${model.path}", "run.seed: .* could not be converted to Integer"),
    # No override at all.
    ("resume", "'resume': an override is written key=value"),
    ("=3", "'=3': an override is written key=value"),
    # Numbers that cannot be.
    ("run.name=a/b", "run.name: a name for a folder, not 'a/b'"),
    ("run.name=..", "run.name: a name for a folder, not '..'"),
    ("run.max_broken_sessions=1.5", "run.max_broken_sessions: between 0 and 1, not 1.5"),
    ("model.min_pixels=0", "model.min_pixels: at least 1, not 0"),
    ("model.max_pixels=-5", "model.max_pixels: at least model.min_pixels"),
    ("session.max_turns=0", "session.max_turns: at least 1, not 0"),
    ("session.max_prompt_tokens=0", "session.max_prompt_tokens: at least 1"),
    ("session.max_response_tokens=0", "session.max_response_tokens: at least 1"),
    ("session.max_tool_response_chars=10", "session.max_tool_response_chars: at least 32"),
    ("tools.num_executors=0", "tools.num_executors: at least 1, not 0"),
    ("tools.concurrency=0", "tools.concurrency: at least 1, not 0"),
    ("tools.timeout_seconds=0", "tools.timeout_seconds: above 0, not 0"),
    ("rollout.num_actors=0", "rollout.num_actors: at least 1, not 0"),
    ("rollout.tensor_parallel_size=0", "rollout.tensor_parallel_size: at least 1, not 0"),
    ("rollout.max_concurrent_sessions=0", "rollout.max_concurrent_sessions: at least 1, not 0"),
    ("rollout.temperature=-1", "rollout.temperature: from 0 to 2 .*, not -1"),
    ("rollout.temperature=.nan", "rollout.temperature: from 0 to 2 .*, not nan"),
    ("rollout.temperature=.inf", "rollout.temperature: from 0 to 2 .*, not inf"),
    ("rollout.temperature=0", "rollout.temperature: above 0 in training"),
    ("rollout.gpu_memory_utilization=1.1", "rollout.gpu_memory_utilization: above 0 and at most 1"),
    ("reward.num_scorers=0", "reward.num_scorers: at least 1, not 0"),
    ("reward.success=.nan", "reward.success: a finite number, not nan"),
    ("algorithm.samples_per_step=0", "algorithm.samples_per_step: at least 1"),
    ("algorithm.group_size=1", "algorithm.group_size: at least 2 .* not 1"),
    ("algorithm.clip_low=0", "algorithm.clip_low: between 0 and 1, not 0"),
    ("algorithm.clip_low=1.0", "algorithm.clip_low: between 0 and 1, not 1"),
    ("algorithm.clip_high=-0.1", "algorithm.clip_high: above 0, not -0.1"),
    ("algorithm.epochs_per_step=0", "algorithm.epochs_per_step: at least 1"),
    ("algorithm.fixed_length=0", "algorithm.fixed_length: at least 1, not 0"),
    ("algorithm.kl_coefficient=-1", "algorithm.kl_coefficient: not negative"),
    ("algorithm.max_empty_steps=0", "algorithm.max_empty_steps: at least 1, not 0"),
    ("learner.num_ranks=0", "learner.num_ranks: at least 1, not 0"),
    ("learner.num_threads=0", "learner.num_threads: at least 1, not 0"),
    ("learner.micro_batch_tokens=0", "learner.micro_batch_tokens: at least 1, not 0"),
    ("learner.learning_rate=-1", "learner.learning_rate: not negative and finite, not -1"),
    ("learner.warmup_ratio=2", "learner.warmup_ratio: between 0 and 1, not 2"),
    ("learner.max_grad_norm=0", "learner.max_grad_norm: above 0, not 0"),
    ("learner.betas=[0.9,1.0]", "learner.betas: each from 0 to below 1"),
    ("learner.weight_decay=-1", "learner.weight_decay: not negative"),
    ("placement.gpus_per_node=0", "placement.gpus_per_node: at least 1, not 0"),
    ("checkpoint.every=-1", "checkpoint.every: not negative"),
    ("checkpoint.keep=0", "checkpoint.keep: at least 1, not 0"),
    ("evaluation.num_samples=0", "evaluation.num_samples: at least 1, not 0"),
    ("metrics.trajectories_every=-1", "metrics.trajectories_every: not negative"),
    ("num_steps=0", "num_steps: at least 1, not 0"),
    ("num_epochs=0", "num_epochs: at least 1, not 0"),
    ("data.train=[]", "data.train: at least one parquet file is needed"),
    # Numbers that cannot work together.
    (
        "algorithm.mini_batch_samples=3",
        r"algorithm.mini_batch_samples: a divisor of algorithm.samples_per_step \(512\), not 3",
    ),
    ("algorithm.mini_batch_samples=1024", "algorithm.mini_batch_samples: a divisor of algorithm.samples_per_step"),
    ("algorithm.mini_batch_samples=0", "algorithm.mini_batch_samples: a divisor of algorithm.samples_per_step"),
    ("rollout.max_model_len=100", "rollout.max_model_len: at least session.max_prompt_tokens .* = 73192, not 100"),
    (
        "session.max_prompt_tokens=70000",
        "rollout.max_model_len: at least session.max_prompt_tokens .* = 78192, not 73728",
    ),
    ("learner.num_ranks=8193", r"learner.num_ranks: at most the trajectories of an optimizer step \(8192\), not 8193"),
    (
        "rollout.tensor_parallel_size=3",
        r"rollout.tensor_parallel_size: a divisor of placement.gpus_per_node \(8\), not 3",
    ),
    (("model.min_pixels=100", "model.max_pixels=50"), r"model.max_pixels: at least model.min_pixels \(100\), not 50"),
    (
        ("algorithm.samples_per_step=2", "algorithm.group_size=2", "learner.num_ranks=5"),
        r"learner.num_ranks: .* \(4\), not 5",
    ),
    (
        ("placement.kind=shared", "learner.num_ranks=4"),
        r"rollout.num_actors: learner.num_ranks \(4\) where GPUs are shared, not 1",
    ),
    (
        ("placement.kind=shared", "learner.num_ranks=4", "rollout.num_actors=2", "rollout.tensor_parallel_size=2"),
        "rollout.tensor_parallel_size: 1 where GPUs are shared",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[str(overrides) for overrides, _ in REFUSED])
def test_refused_with_key_and_reason(least, overrides, message):
    overrides = (overrides,) if isinstance(overrides, str) else overrides
    with pytest.raises(ConfigError, match=f"^{message}"):
        load(TrainConfig, least, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("placement.kind=shared", "learner.num_ranks=4", "rollout.num_actors=4"),
        ("placement.use_gpu=false", "rollout.tensor_parallel_size=3"),  # without GPUs there is nothing to divide
        ("algorithm.mini_batch_samples=256", "learner.num_ranks=16"),
        ("session.max_prompt_tokens=65536", "session.max_response_tokens=8192"),  # 73728 exactly
        ("learner.learning_rate=0",),
        ("evaluation.temperature=0",),
        ("checkpoint.every=0", "metrics.trajectories_every=0"),
    ],
)
def test_what_can_work_together_is_taken(least, overrides):
    load(TrainConfig, least, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model.path: a value is needed .* or as model.path=..."),
        ("run: {name: x}\nmodel: {path: m}\n", "data.train: at least one parquet file is needed"),
        ("model: {path: m}\ndata: {train: [a]}", "run.name: a value is needed"),
        ("run: {name: '???'}\nmodel: {path: m}\ndata: {train: [a]}", "run.name: a value is needed"),
        ("- a\n- b", "broken.yaml: a mapping of keys is needed"),
        ("just text", "just text: unknown key in .*broken.yaml"),
        ("3", "broken.yaml: "),
        ("run: [\n", "broken.yaml: not a YAML file"),
        ("run: {name: x}\nrun: {name: y}", "broken.yaml: not a YAML file: .*\n?.*\n?.*duplicate key"),
        ("run: {name: x}\n1: {name: y}", "1: unknown key in .*broken.yaml"),
        ("run: {name: x}\nlearner:", "learner: a section of keys is needed, not None"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(TrainConfig, path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        load(TrainConfig, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load(TrainConfig, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("session.max_turns=3", "session: unknown key"),
        ("batch_size=0", r"batch_size: at least learner.num_ranks \(1\), not 0"),
        ("learner.num_ranks=257", r"batch_size: at least learner.num_ranks \(257\), not 256"),
        ("num_epochs=0", "num_epochs: at least 1, not 0"),
        ("data.train=[]", "data.train: at least one parquet file"),
    ],
)
def test_the_cold_start_has_checks_of_its_own(least, override, message):
    load(SftConfig, least)
    with pytest.raises(ConfigError, match=message):
        load(SftConfig, least, [override])


def test_a_configuration_cannot_be_changed(least):
    config = load(TrainConfig, least)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.learner.learning_rate = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_steps = 1  # type: ignore[misc]


@pytest.mark.parametrize("cls", [TrainConfig, SftConfig])
def test_what_is_saved_loads_again(tmp_path, least, cls):
    overrides = [
        "learner.learning_rate=2e-6",
        "learner.betas=[0.85,0.999]",
        "run.name='007'",
        "data.held_out=['1','null']",
        "model.attention=sdpa",
    ]
    config = load(cls, least, overrides)
    assert (config.run.name, config.data.held_out) == ("007", ("1", "null"))
    save(config, tmp_path / "saved.yaml")
    assert load(cls, tmp_path / "saved.yaml") == config
    assert build(cls, dataclasses.asdict(config)) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path, shipped_place):
    config = load(SftConfig, path) if "sft" in path.name else load(TrainConfig, path)
    assert Path(config.template.system_prompt).read_text().strip()
    assert load_tools(config.tools.files), "a judge without tools"


def test_the_shipped_configurations_were_found():
    names = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert names >= {
        "demo.yaml",
        "demo_sft.yaml",
        "arm_thinker_sft.yaml",
        "arm_thinker_stage1.yaml",
        "arm_thinker_stage2.yaml",
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_the_papers_numbers_of_grpo(stage):
    config = load(TrainConfig, ROOT / f"configs/arm_thinker_stage{stage}.yaml")
    algorithm, learner, limits, reward = config.algorithm, config.learner, config.session, config.reward
    assert (algorithm.samples_per_step, algorithm.group_size, algorithm.mini_batch_samples) == (512, 16, 256)
    assert (algorithm.clip_low, algorithm.clip_high, algorithm.kl_coefficient, algorithm.entropy_coefficient) == (
        0.2,
        0.2,
        0,
        0,
    )
    assert (learner.learning_rate, learner.num_ranks, config.rollout.temperature, config.num_epochs) == (
        2e-6,
        16,
        1.0,
        3,
    )
    assert (limits.max_turns, limits.max_prompt_tokens, limits.max_response_tokens, limits.max_tool_response_chars) == (
        5,
        65000,
        8192,
        4096,
    )
    assert (reward.name, reward.format, reward.attempt, reward.accuracy, reward.success) == (
        f"stage{stage}",
        0.3,
        0.1,
        0.7,
        0.5,
    )


def test_the_papers_numbers_of_the_cold_start():
    config = load(SftConfig, ROOT / "configs/arm_thinker_sft.yaml")
    learner = config.learner
    assert (config.batch_size, config.num_epochs, config.model.dtype) == (256, 1, "bfloat16")
    assert (learner.learning_rate, learner.schedule, learner.warmup_ratio, learner.zero_stage) == (
        2e-5,
        "cosine",
        0.1,
        3,
    )
    assert (learner.freeze_vision, learner.freeze_projector) == (True, True)


def leaf_keys(cls, prefix=""):
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            yield from leaf_keys(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


@pytest.mark.parametrize("cls", [TrainConfig, SftConfig])
def test_the_help_lists_every_key_with_what_it_means(cls):
    lines = {line.split()[0]: line for line in describe(cls).splitlines()}
    assert sorted(lines) == sorted(leaf_keys(cls))
    for key, line in lines.items():
        assert line[2 + 40 + 1 + 24 + 1 :].strip(), f"{key} has no help text"
    assert "(needed)" in lines["run.name"]
    assert "2e-06" in lines["learner.learning_rate"]
    assert "%" not in describe(cls), "argparse would read it as a format"
