"""Model folders that cannot be used: refused where the inputs are read, before an actor starts and before there is a run folder."""

import asyncio
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from arm_rl.core.config_file import build
from arm_rl.core.errors import UserError
from arm_rl.core.stage_config import TrainConfig
from arm_rl.demo import dataset
from arm_rl.training.grpo import train_grpo
from arm_rl.training.inputs import read_inputs, read_template

WEIGHTS = "model.safetensors"


def edit(name, **changes):
    """Sets keys of a JSON file; ... removes one."""

    def edited(folder):
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edited


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def remove(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def cut(name, number):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:number])


def weights(change):
    """Changes the weights in their file; a text for one renames it."""

    def changed(folder):
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def sharded(present):
    """Two files with an index, of which `present` are there."""

    def split(folder):
        held = load_file(folder / WEIGHTS)
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        parts = {
            name: {key: value for key, value in held.items() if (len(key) % 2 == 0) == (name == names[0])}
            for name in names
        }
        for name in names[:present]:
            save_file(parts[name], folder / name, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        index = {"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return split


LLAMA = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
NOT_SPECIAL = "which is no special token of the tokenizer"

FOLDERS = {
    "no config": (remove("config.json"), "config.json: No such file"),
    "a broken config": (put("config.json", "{"), "config.json: not a JSON file"),
    "a list as config": (put("config.json", "[]"), "config.json: a JSON object is needed"),
    "an empty config": (put("config.json", "{}"), "no usable processor or config: .*`model_type` key"),
    "a config of bytes": (put("config.json", b"\xff\xfe\0"), "config.json: not a JSON file"),
    "another architecture": (put("config.json", LLAMA), f"image_token_id of config.json is None, {NOT_SPECIAL}"),
    "an unknown architecture": (
        edit("config.json", model_type="nonsense"),
        "no usable processor or config: .*`nonsense`",
    ),
    "code of its own": (
        edit("config.json", model_type="x", auto_map={"AutoConfig": "c.X"}),
        "no usable processor .*custom code",
    ),
    "another image token": (
        edit("config.json", image_token_id=5),
        f"image_token_id of config.json is 5, {NOT_SPECIAL}",
    ),
    "no image token": (
        edit("config.json", image_token_id=...),
        f"image_token_id of config.json is 151655, {NOT_SPECIAL}",
    ),
    "no tokenizer": (remove("tokenizer*"), NOT_SPECIAL),
    "a broken tokenizer": (put("tokenizer.json", "{"), "tokenizer.json: not a JSON file"),
    "a tokenizer of nothing": (put("tokenizer.json", "{}"), "no usable processor or config: KeyError"),
    "a broken tokenizer_config": (put("tokenizer_config.json", "{"), "tokenizer_config.json: not a JSON file"),
    "no tokenizer_config": (
        remove("tokenizer_config.json"),
        "the chat template does not end a turn with '<|endoftext|>'",
    ),
    "no end token": (
        edit("tokenizer_config.json", eos_token=...),
        "the tokenizer's eos_token is None; the special token that ends",
    ),
    "no processor": (remove("*processor*"), "no usable processor or config: .*image processor"),
    "a broken processor": (put("preprocessor_config.json", "{"), "preprocessor_config.json: not a JSON file"),
    "no chat template": (remove("chat_template*"), "has no chat template"),
    "an empty chat template": (put("chat_template.jinja", ""), "has no chat template"),
    "a broken chat template": (
        put("chat_template.jinja", "{% for"),
        "the chat template fails .*unexpected 'end of template'",
    ),
    "a chat template that refuses": (
        put("chat_template.jinja", "{{ raise_exception('no') }}"),
        "the chat template fails .*: no",
    ),
    "a chat template of nothing": (
        put("chat_template.jinja", "{{ a.b.c }}"),
        "the chat template fails .*: 'a' is undefined",
    ),
    "a chat template without images": (
        put("chat_template.jinja", "x"),
        "the chat template does not write an image as one '<|image_pad|>'",
    ),
    "no weights": (
        remove(WEIGHTS),
        "no weights: model.safetensors or model.safetensors.index.json is needed .*other weights: none",
    ),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "no weights: model.safetensors .*other weights: pytorch_model.bin",
    ),
    "empty weights": (put(WEIGHTS, ""), "model.safetensors: not a whole safetensors file"),
    "weights of text": (
        put(WEIGHTS, "hello world, this is no model"),
        "model.safetensors: not a whole safetensors file",
    ),
    "weights cut in the header": (cut(WEIGHTS, 500), "model.safetensors: not a whole safetensors file"),
    "weights cut at the end": (cut(WEIGHTS, -500), "model.safetensors: not a whole safetensors file"),
    "a missing shard": (
        sharded(1),
        "index.json names model-00002-of-00002.safetensors, which is not there: 2 files are needed",
    ),
    "an index of nothing": (
        put(f"{WEIGHTS}.index.json", "{}"),
        "index.json: a weight_map from weights to files is needed",
    ),
    "an index that leads out": (
        put(f"{WEIGHTS}.index.json", json.dumps({"weight_map": {"a": "../other.safetensors"}})),
        "index.json names ../other.safetensors, which is not there",
    ),
    "a missing weight": (
        weights(lambda held: {key: value for key, value in held.items() if "layers.1.mlp.up_proj" not in key}),
        r"no weight of the shape \[256, 128\] for model.language_model",
    ),
    "another vocabulary": (
        weights(
            lambda held: {key: value[:100].clone() if "embed_tokens" in key else value for key, value in held.items()}
        ),
        r"no weight of the shape \[\d+, 128\] for model.language_model.embed_tokens.weight",
    ),
}


@pytest.fixture
def folder(judge_folder, tmp_path):
    return shutil.copytree(judge_folder, tmp_path / "model")


@pytest.fixture
def config(folder, tmp_path):
    def config(**sections):
        values = {
            "run": {"name": "x", "root": str(tmp_path / "runs")},
            "model": {"path": str(folder)},
            "template": {"system_prompt": "configs/prompts/digits.txt"},
            "tools": {"files": ["configs/tools/digits.yaml"]},
            "data": {"train": [str(tmp_path / "none.parquet")]},
        }
        return build(TrainConfig, values | sections)

    return config


@pytest.mark.parametrize(("damage", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_broken_folder_is_refused_at_the_door(folder, config, tmp_path, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=f"^model.path: {folder}.*{message.replace('|', chr(92) + '|')}"):
        asyncio.run(train_grpo(config()))
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_that_is_larger_than_its_model(folder, config):
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["vocab_size"] = 100
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens, and the model of config.json has 100"):
        read_template(config())


def test_whole_folders_are_taken(folder, config):
    read_template(config())
    sharded(2)(folder)
    read_template(config())


BROKEN_RUNS = {
    "an absent model": ({"model": {"path": "no/such/folder"}}, "model.path: no/such/folder has no usable processor"),
    "an absent prompt": ({"template": {"system_prompt": "none.txt"}}, "template.system_prompt: none.txt: No such file"),
    "another tool format": (
        {"template": {"system_prompt": "configs/prompts/digits.txt", "tool_format": "morse"}},
        r"template.tool_format: one of \['hermes'\], not 'morse'",
    ),
    "an unknown reward": ({"reward": {"name": "stage3"}}, "reward.name: one of .*'stage2'.*, not 'stage3'"),
    "an absent tool file": ({"tools": {"files": ["none.yaml"]}}, "none.yaml: No such file"),
    "absent data": ({}, "none.parquet: not a readable parquet file"),
}


@pytest.mark.parametrize(("sections", "message"), BROKEN_RUNS.values(), ids=BROKEN_RUNS)
def test_a_run_that_cannot_start_makes_no_folder(config, tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        asyncio.run(train_grpo(config(**sections)))
    assert not (tmp_path / "runs").exists()


def test_held_out_rows_are_checked_as_well(config, tmp_path):
    train = dataset.write(tmp_path / "train.parquet", seed=0, split="train", num_samples=2)
    good = {"data": {"train": [str(train)]}}
    assert len(read_inputs(config(**good)).samples) == 2
    (tmp_path / "held_out.parquet").write_text("?")
    with pytest.raises(UserError, match=r"held_out.parquet: not a readable parquet file"):
        read_inputs(config(data={"train": [str(train)], "held_out": [str(tmp_path / "held_out.parquet")]}))
