"""Memory of a plan: against published sizes, DeepSpeed's own estimators, a real DeepSpeed run on two ranks, and what autograd keeps."""

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import AutoModelForImageTextToText

from actors.learner.packed_attention import use_packed_attention
from actors.learner.policy_model import TokenScorer
from actors.learner.vision_tower import speed_up
from arm_rl.core.compute_config import LearnerConfig, RolloutConfig
from arm_rl.core.micro_batch import Segment
from arm_rl.plan import memory, shapes
from arm_rl.plan.hardware import GIB, GPUS
from arm_rl.plan.memory import activations, block_bytes, model_states
from arm_rl.plan.shapes import ModelShape, UnknownModel

PUBLISHED = {
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
}
DTYPES = {4: torch.float32, 2: torch.bfloat16}


def test_the_models_have_as_many_parameters_as_published():
    assert {name: ModelShape.of(f"Qwen/{name}-Instruct").parameters for name in shapes.KNOWN} == PUBLISHED


def test_a_folder_is_read(judge_folder):
    shape = ModelShape.of(str(judge_folder))
    model = AutoModelForImageTextToText.from_pretrained(judge_folder)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.trained(LearnerConfig()) == shape.embeddings + shape.blocks + shape.head


def test_an_unknown_model_is_named():
    with pytest.raises(UnknownModel, match=r"model\.path: 'runs/x/export' is no folder .* Qwen2.5-VL-7B"):
        ModelShape.of("runs/x/export")


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (1, 8), (2, 8), (16, 8)])
def test_states_are_those_of_deepspeeds_estimators(nodes, gpus):
    """Theirs count 16-bit gradients of a rank's share, which are our buckets; ours count float32 ones, as it is configured here."""
    parameters, ranks = 8_000_000_000, nodes * gpus
    for stage, estimate in ((2, estimate_zero2_model_states_mem_needs), (3, estimate_zero3_model_states_mem_needs)):
        largest = {} if stage == 2 else {"largest_layer_params": 0}
        common = {"num_gpus_per_node": gpus, "num_nodes": nodes, "additional_buffer_factor": 1, **largest}
        _, theirs = estimate(parameters, cpu_offload=False, **common)[:2]
        states = model_states(parameters, parameters, ranks=ranks, zero_stage=stage)
        buckets = 2 * parameters // ranks if stage == 2 else 0
        assert states.weights + states.gradients + states.optimizer + buckets == pytest.approx(theirs, rel=1e-6)
        offload = {} if stage == 2 else {"cpu_offload_params": False}
        host, theirs = estimate(parameters, cpu_offload=True, **common, **offload)[:2]
        states = model_states(parameters, parameters, ranks=ranks, zero_stage=stage, offload=True)
        assert states.weights == pytest.approx(theirs, rel=1e-6)
        if stage == 3 and nodes * 4 * gpus <= 16:  # beyond, theirs is what loading the model takes
            assert states.host * gpus == pytest.approx(host, rel=1e-6)


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    """What the tensors of a real run on two ranks take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = [sys.executable, str(Path(__file__).with_name("zero_states.py"))]
    folder, environment = Path(__file__).parents[2], {"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}
    ranks = [
        subprocess.Popen(
            [*script, rank, "2", str(port)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    said, _ = (rank.communicate()[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_states_are_those_of_a_deepspeed_run(measured):
    assert [(one["dtype"], one["stage"]) for one in measured] == [
        ("float32", 0),
        ("float32", 2),
        ("float32", 3),
        *[("bfloat16", s) for s in range(4)],
    ]
    for one in measured:
        element = 4 if one["dtype"] == "float32" else 2
        states = model_states(one["parameters"], one["trained"], ranks=2, zero_stage=one["stage"], element=element)
        # stage 3 keeps its buckets, here as large as the model
        bucket = element * one["parameters"] if one["stage"] == 3 else 0
        expected = states.weights + states.gradients + states.optimizer + bucket
        # the flat copy that is all-reduced may still be there
        if one["stage"] == 0 and one["before_step"] > 1.01 * expected:
            expected += element * one["trained"]
        assert one["before_step"] == pytest.approx(expected, rel=0.006), one
        if one["stage"] in (0, 2):  # the others keep their buffers of gradients
            assert one["after_step"] == pytest.approx(states.weights + states.optimizer, rel=0.001), one


def build(family: str, element: int, *, layers: int = 2, depth: int = 2) -> nn.Module:
    """A small model whose widths are all different."""
    sizes = shapes._sizes(64, 160, layers, 4, 2) | {"vocab_size": 256}
    config = shapes._qwen2_5(**sizes) if family == "2.5" else shapes._qwen3(**(sizes | {"head_dim": 16}))
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    tower = config.vision_config
    tower.depth, tower.hidden_size, tower.intermediate_size, tower.num_heads = depth, 32, 48, 2
    if family == "2.5":
        tower.fullatt_block_indexes = [0]
    else:
        tower.deepstack_visual_indexes = [0]
    model = AutoModelForImageTextToText.from_config(config, dtype=DTYPES[element], attn_implementation="sdpa")
    return model.train()


def kept_bytes(model: nn.Module, forward) -> int:
    """What autograd keeps of a forward pass, each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(size for address, size in kept.items() if address not in weights)


@pytest.mark.parametrize("element", [4, 2])
@pytest.mark.parametrize("family", ["2.5", "3"])
def test_blocks_keep_what_the_formula_says(family, element):
    tokens, patches = 128, 64

    def text(model):
        language_model = packed(model.model.language_model, [Segment(tokens)])
        embeddings = torch.randn(1, tokens, 64, dtype=DTYPES[element], requires_grad=True)
        return kept_bytes(model, lambda: language_model(embeddings))

    def tower(model):
        speed_up(model.model.visual)
        size = model.config.vision_config.patch_size
        pixels = torch.randn(patches, 6 * size * size, dtype=DTYPES[element])
        return kept_bytes(
            model, lambda: model.model.get_image_features(pixels, torch.tensor([[1, 8, 8]])).pooler_output
        )

    short, long = build(family, element), build(family, element, layers=4, depth=4)
    shape = ModelShape.of_config(short.config, "tiny")
    assert (text(long) - text(short)) / 2 == tokens * block_bytes(shape.text, element=element)
    assert (tower(long) - tower(short)) / 2 == patches * block_bytes(shape.tower, element=element)


def packed(language_model, segments):
    """Let a language model read a packed row of embeddings [1, T, H]; positions do not matter for memory."""
    use_packed_attention(language_model)
    positions = torch.arange(sum(segment.length for segment in segments)).expand(3, 1, -1)
    return lambda embeddings: language_model(
        inputs_embeds=embeddings, position_ids=positions, use_cache=False, segments=segments
    )[0]


@pytest.mark.parametrize("family", ["2.5", "3"])
@pytest.mark.parametrize("element", [4, 2])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_packed_row_keeps_what_the_formula_says(family, element, checkpointing):
    """Within 10 %, for a prompt of 512 tokens and 16 branches of 32, with the copies of the prompt's keys and values.

    The CPU's kernel also keeps a mask of the branches, which a GPU's kernel does without.
    """
    segments = [Segment(512), *[Segment(32, 0)] * 16]
    tokens, copied = 1024, 16 * 544 / 1024

    def kept(layers: int) -> int:
        model = build(family, element, layers=layers)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        language_model = packed(model.model.language_model, segments)
        embeddings = torch.randn(1, tokens, 64, dtype=DTYPES[element], requires_grad=True)
        return kept_bytes(model, lambda: language_model(embeddings))

    text = [ModelShape.of_config(build(family, element, layers=layers).config, "tiny").text for layers in (2, 4)]
    of_two, of_four = (
        activations(one, tokens, checkpointing=checkpointing, element=element, copied=copied) for one in text
    )
    masks = 0 if checkpointing else 2 * 32 * 544 * element
    assert kept(4) - kept(2) - masks == pytest.approx(of_four - of_two, rel=0.1)


@pytest.mark.parametrize("branches", [0, 4])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("element", [4, 2])
def test_the_peak_of_forward_and_backward_is_the_formulas(element, checkpointing, branches):
    """Within 13 %: not all is there at once where the formula adds it up. The masks of branches are the CPU's alone."""
    whole = build("2.5", element, layers=4)
    shape = ModelShape.of_config(whole.config, "tiny")
    model, tokens = whole.model.language_model, 2048
    segments = [Segment(1024), *[Segment(256, 0)] * branches] if branches else [Segment(512)] * 4
    copied = branches * (1024 + 256) / tokens
    language_model = packed(model, segments)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        language_model(model.embed_tokens(torch.randint(0, 256, (1, tokens)))).sum().backward()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    expected = weights * 2 + activations(
        shape.text, tokens, checkpointing=checkpointing, element=element, copied=copied
    )
    masks = (branches > 0) * 256 * 1280 * element * (1 if checkpointing else 4)
    assert peak["Total"] == pytest.approx(expected + masks, rel=0.13)


@pytest.mark.parametrize("element", [4, 2])
def test_the_heads_peak_is_the_formulas(element):
    vocabulary, tokens = 2048, 256
    weight = nn.Parameter(torch.randn(vocabulary, 16, dtype=DTYPES[element]))
    scorer = TokenScorer(weight, [1], None)
    hidden = torch.randn(tokens, 16, dtype=DTYPES[element], requires_grad=True)
    tracker = MemTracker()
    tracker.track_external(scorer)
    with tracker:
        logprobs, _ = scorer(
            hidden, torch.zeros(tokens, dtype=torch.int64), torch.zeros(tokens, dtype=torch.bool), 1.0, False
        )
        logprobs.sum().backward()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    assert peak["Total"] - weight.nbytes == pytest.approx(memory.logits(vocabulary, tokens), rel=0.05)


def test_a_learners_parts():
    shape, config = (
        ModelShape.of("Qwen2.5-VL-7B"),
        LearnerConfig(num_ranks=16, gradient_checkpointing=True, micro_batch_tokens=32768),
    )
    parts = memory.learner(shape, config)
    off = memory.learner(
        shape,
        LearnerConfig(num_ranks=16, gradient_checkpointing=True, micro_batch_tokens=32768, offload_optimizer=True),
    )
    assert (off["optimizer"], off["gradients"]) == (0, 0)
    assert off["host"] == 16 * shape.trained(LearnerConfig()) // 16
    adapters = memory.learner(shape, replace(config, lora_rank=16))
    assert adapters["weights"] == parts["weights"]
    assert adapters["optimizer"] < 0.01 * parts["optimizer"]
    trained = memory.learner(
        shape, LearnerConfig(num_ranks=16, gradient_checkpointing=True, micro_batch_tokens=32768, freeze_vision=False)
    )
    assert trained["vision activations"] > parts["vision activations"]
    assert memory.learner(shape, config, reference=True)["weights"] == 2 * parts["weights"]


def test_adapters_are_as_many_as_pefts():
    model = build("2.5", 4)
    shape = ModelShape.of_config(model.config, "tiny")
    targets = LearnerConfig().lora_targets
    adapted = peft.get_peft_model(model.model.language_model, peft.LoraConfig(r=4, target_modules=list(targets)))
    assert shape.trained(LearnerConfig(lora_rank=4)) == adapted.get_nb_trainable_parameters()[0]


def test_an_engines_cache_is_what_is_left():
    shape, gpu = ModelShape.of("Qwen2.5-VL-7B"), GPUS["h200"]
    assert memory.key_value_bytes(shape) == 2 * 28 * 4 * 128 * 2
    assert memory.key_value_bytes(shape, tensor_parallel=8) == memory.key_value_bytes(shape) // 4, (
        "four heads cannot be cut in eight"
    )
    parts = memory.engine(shape, RolloutConfig(gpu_memory_utilization=0.5), gpu)
    assert sum(parts.values()) == int(0.5 * gpu.memory_gib * GIB)
    assert memory.engine(shape, RolloutConfig(gpu_memory_utilization=0.1), gpu)["key-value cache"] < 0
