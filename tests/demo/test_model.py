"""The small judge's folder: what transformers makes of it, its tokens, and its fast vision tower."""

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import AutoProcessor, AutoTokenizer

from arm_rl.demo import forward, model, phrases, pixels, scenes, tiles
from arm_rl.demo.tiles import Tiles


def zoom(box: scenes.Box) -> str:
    return phrases.call_turn(Tiles.tool, tiles.arguments(box))


@pytest.fixture(scope="module")
def loaded(judge_folder):
    return model.load(judge_folder)


def test_the_folder_loads_with_its_processor(judge_folder, loaded):
    judge, _ = loaded
    processor = AutoProcessor.from_pretrained(judge_folder)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    inputs = processor(text=[prompt], images=[PILImage.new("RGB", (256, 256))], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]  # 64 x 64 pixels in patches of 8
    assert int((inputs["input_ids"] == judge.config.image_token_id).sum()) == pixels.NUM_TOKENS
    logits = judge(**inputs).logits
    assert logits.shape[-1] == judge.config.text_config.vocab_size
    assert torch.isfinite(logits).all()


def test_weights_depend_on_the_seed_only(tmp_path):
    tokenizer = model.build_tokenizer()
    first, same, other = (
        model.build_model(tokenizer, seed).model.language_model.layers[0].mlp.up_proj.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(model.HIDDEN**-0.5, rel=0.05)


def test_embeddings_are_tied(loaded):
    judge, _ = loaded
    assert judge.lm_head.weight is judge.get_input_embeddings().weight


@pytest.mark.parametrize("token", [*model.QWEN_TOKENS, *model.FORMAT_TOKENS, "0", "7", "250", "500", "750", "1000"])
def test_each_tag_and_number_is_one_token(judge_folder, token):
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_turns_are_short_and_survive_a_round_trip(judge_folder):
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    turns = (zoom((250, 500, 500, 750)), phrases.answer_turn(2, phrases.conclusion(4)), "größer als 137 <b>\n")
    lengths = []
    for text in turns:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        lengths.append(len(ids))
    assert lengths[0] <= 18
    assert lengths[1] <= 12


def test_chat_template_names_tools_and_wraps_their_responses(judge_folder):
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    schema = {"type": "function", "function": {"name": Tiles.tool, "parameters": {}}}
    messages = [
        {"role": "system", "content": "Judge."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
        {"role": "tool", "content": [{"type": "text", "text": "observation_1: "}, {"type": "image"}]},
    ]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert tokenizer.apply_chat_template(messages, tools=[schema], add_generation_prompt=True, tokenize=False) == (
        f"<|im_start|>system\nJudge.\n<tools>{Tiles.tool}</tools><|im_end|>\n"
        f"<|im_start|>user\n{image}Q<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        f"<|im_start|>user\n<tool_response>observation_1: {image}</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<tools>" not in tokenizer.apply_chat_template(messages, tokenize=False)


def test_chat_template_writes_calls_given_as_fields(judge_folder):
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    arguments = {"image": "original_image", "bbox_2d": [0, 0, 250, 250]}
    call = {"type": "function", "function": {"name": Tiles.tool, "arguments": arguments}}
    text = tokenizer.apply_chat_template(
        [{"role": "assistant", "content": f"<think>{phrases.LOOK}</think>", "tool_calls": [call]}], tokenize=False
    )
    assert zoom((0, 0, 250, 250)) in text


def test_patches_and_encoding_are_the_library_s_own(judge_folder, loaded):
    judge, _ = loaded
    drawn = [scenes.make_scene(0, "train", index) for index in range(3)]
    views = np.stack([pixels.resized_scene(scene) for scene in drawn])
    inputs = AutoProcessor.from_pretrained(judge_folder).image_processor(
        [PILImage.fromarray(view) for view in views], return_tensors="pt"
    )
    frames = inputs["pixel_values"].view(3, pixels.NUM_PATCHES, 3, 2, -1)
    patches = pixels.make_patches(views)
    for frame in range(2):
        torch.testing.assert_close(frames[:, :, :, frame].flatten(2), patches, atol=1e-6, rtol=0)
    with torch.no_grad():
        theirs = judge.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        ours = pixels.encode(judge.model.visual, patches)
    torch.testing.assert_close(ours, theirs.view_as(ours), atol=2e-5, rtol=1e-4)


def test_positions_are_the_library_s_own(loaded):
    judge, _ = loaded
    pad = judge.config.image_token_id
    row = [1, 2, *[pad] * 16, 3, 4, 5, *[pad] * 16, 6]
    ids = torch.tensor([row])
    is_image = ids == pad
    theirs, _ = judge.model.get_rope_index(
        ids, mm_token_type_ids=is_image.int(), image_grid_thw=torch.tensor([[1, 8, 8], [1, 8, 8]])
    )
    assert torch.equal(forward.positions(is_image), theirs)
