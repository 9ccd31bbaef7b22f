"""The configurations of the random models on a GPU: published widths, and as many layers as the GPU's memory allows."""

from pathlib import Path

import pytest
import torch

from arm_rl.demo import model as judge
from arm_rl.gpu_proof import models
from arm_rl.gpu_proof.scale import Proof
from arm_rl.plan.hardware import GIB
from arm_rl.plan.shapes import KNOWN, ModelShape

PROOF = Proof(device="cuda", out=Path("out"), folder=Path("out/models"), seconds=60)


@pytest.fixture
def config(monkeypatch):
    """Return the configuration for a GPU of so many GiB."""
    tokenizer = judge.build_tokenizer()
    base = judge.build_model(tokenizer, seed=0).config

    def make(gib: float, *, thin: bool = False):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, int(gib * GIB)))
        return models._gpu_config(PROOF, base, len(tokenizer), thin=thin)

    return make


def test_widths_and_vocabulary_are_those_of_the_7b_model(config):
    made, published = config(139.8), KNOWN[models.WIDTHS]()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        assert getattr(made.text_config, name) == getattr(published.text_config, name), name
    assert made.vision_config.to_dict() | {"dtype": None} == published.vision_config.to_dict() | {"dtype": None}
    assert made.text_config.num_hidden_layers == len(made.text_config.layer_types) == 8
    assert ModelShape.of_config(made, "proof").parameters == pytest.approx(3.6e9, rel=0.1)


def test_a_smaller_gpu_gets_fewer_layers(config):
    assert config(79.1).text_config.num_hidden_layers < 8


def test_a_gpu_that_is_too_small_is_refused(config):
    with pytest.raises(ValueError, match="too small for 2 layers"):
        config(24)


def test_the_model_of_checkpoints_is_small_and_knows_more_ids_than_the_tokenizer(config):
    made = config(139.8, thin=True)
    shape = ModelShape.of_config(made, "thin")
    assert shape.parameters < 0.8e9, "a checkpoint of less than 10 GB"
    assert shape.text.hidden == 3584
    assert made.image_token_id < made.text_config.vocab_size - models.UNKNOWN_TOKENS
