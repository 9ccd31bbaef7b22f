"""No text becomes a control token or an image, and what is written can be read again."""

import collections

import pytest
from hypothesis import given

from arm_rl.core.images import Image
from arm_rl.core.types import ImagePart, Message, Sample
from tests.fuzz.writing import TEXTS, TURNS
from tests.support.scripted import ZOOM, noise

PICTURE = Image.from_pil(noise(64, 64))


@pytest.fixture(scope="module")
def control(template):
    """The control tokens among ids, each with its number; image pads are counted too."""
    special = {number for number, token in template.tokenizer.added_tokens_decoder.items() if token.special}
    return lambda ids: collections.Counter(number for number in ids if number in special)


@given(TEXTS, TEXTS)
def test_a_prompt_has_the_control_tokens_of_its_messages(template, control, first, second):
    def prompt(*texts):
        parts = (texts[0], ImagePart(name="original_image"), texts[1])
        sample = Sample(id="s", track="t", messages=(Message(role="user", parts=parts),), label="1", tools=(ZOOM,))
        return template.prompt_ids(sample, {"original_image": PICTURE})

    assert control(prompt(first, second)) == control(prompt("a", "b"))


@given(TURNS)
def test_an_observation_has_the_control_tokens_of_its_message(template, control, text):
    for ended in (False, True):

        def observation(said, ended=ended):
            parts = (said, "observation_1: ", ImagePart(name="observation_1"), said)
            return template.observation_ids(
                Message(role="tool", parts=parts), {"observation_1": PICTURE}, turn_ended=ended
            )

        assert control(observation(text)) == control(observation("a"))


@given(TURNS)
def test_a_teachers_turn_ends_once_and_is_decoded_as_it_was_written(template, control, text):
    ids = template.turn_ids(text, ended=True)
    assert control(ids) == {template.end_token_id: 1}
    assert ids[-1] == template.end_token_id
    assert template.decode(ids) == template.break_control_tokens(text)


@given(TEXTS)
def test_harmless_text_adds_spaces_alone(template, text):
    harmless = template.break_control_tokens(text)
    assert harmless.replace(" ", "") == text.replace(" ", "")
    assert template.break_control_tokens(harmless) == harmless
