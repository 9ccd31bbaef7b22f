"""The conversation token by token: no token is lost, and characters of several tokens stay whole."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from arm_rl.report import tokens
from tests.support.trajectories import looked

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PAD = len(BYTES)


def byte_tokenizer() -> Tokenizer:
    """A token a byte, and one special token."""
    tokenizer = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|image_pad|>"])
    return tokenizer


TOKENIZER = byte_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_pieces_are_the_text_and_count_all_tokens(text):
    ids = TOKENIZER.encode(text).ids
    pieces = tokens.sampled_pieces(TOKENIZER, ids, [-0.5] * len(ids))
    assert "".join(piece[0] for piece in pieces) == TOKENIZER.decode(ids, skip_special_tokens=False)
    assert sum(piece[2] if len(piece) > 2 else 1 for piece in pieces) == len(ids)
    assert sum(piece[1] for piece in pieces) == pytest.approx(-0.5 * len(ids))


def test_a_character_of_several_tokens_is_one_piece():
    ids = TOKENIZER.encode("a你é").ids
    assert tokens.sampled_pieces(TOKENIZER, ids, [-1.0, -0.1, -0.2, -0.3, -1.0, -2.0]) == [
        ["a", -1.0],
        ["你", -0.6, 3],
        ["é", -3.0, 2],
    ]
    assert tokens.sampled_pieces(TOKENIZER, ids, []) == [["a", None], ["你", None, 3], ["é", None, 2]]


def test_a_character_that_was_cut_off_is_there():
    ids = TOKENIZER.encode("a你").ids[:-1]
    (first, second) = tokens.sampled_pieces(TOKENIZER, ids, [-1.0, -1.0, -1.0])
    assert first == ["a", -1.0]
    assert "\ufffd" in second[0]
    assert second[1:] == [-2.0, 2]


def test_pads_of_an_image_are_one_piece():
    ids = [*TOKENIZER.encode("aab").ids, *[PAD] * 5]
    assert tokens.environment_pieces(TOKENIZER, ids) == [["a", None, 2], ["b"], ["<|image_pad|>", None, 5]]


def test_a_conversation_is_prompt_turns_and_observations():
    scored, _ = looked()
    first, second = scored.trajectory.turns
    ids = tuple(TOKENIZER.encode("yes").ids)
    turns = (
        dataclasses.replace(first, observation_ids=(PAD,)),
        dataclasses.replace(second, token_ids=ids, logprobs=(-0.1, -0.2, -0.3)),
    )
    parts = tokens.conversation_parts(
        TOKENIZER, dataclasses.replace(scored.trajectory, prompt_ids=(PAD, PAD), turns=turns)
    )
    assert [(part["kind"], part["number"]) for part in parts] == [
        ("prompt", 0),
        ("turn", 1),
        ("observation", 1),
        ("turn", 2),
    ]
    assert parts[0]["pieces"] == [["<|image_pad|>", None, 2]]
    assert parts[3]["pieces"] == [["y", -0.1], ["e", -0.2], ["s", -0.3]]


def test_the_run_leads_to_its_tokenizer(tmp_path):
    assert tokens.find_tokenizer(tmp_path) is None
    model = tmp_path / "model"
    model.mkdir()
    TOKENIZER.save(str(model / "tokenizer.json"))
    stage = tmp_path / "runs" / "stage1"
    stage.mkdir(parents=True)
    (stage / "config.yaml").write_text(f"model: {{path: {model}}}")
    for folder, given_path in (
        (stage, None),
        (stage.parent, None),
        (tmp_path, model),
        (tmp_path, model / "tokenizer.json"),
    ):
        found = tokens.find_tokenizer(folder, given_path)
        assert found is not None
        assert found.get_vocab_size() == PAD + 1
    with pytest.raises(tokens.NoTokenizer, match="tokenizer.json is wanted"):
        tokens.find_tokenizer(tmp_path, stage)
