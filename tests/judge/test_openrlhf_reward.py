"""Where the answer begins in a sequence that a tokenizer has encoded and decoded again."""

import unicodedata

import pytest
from transformers import AutoTokenizer

from arm_rl.judge.openrlhf_reward import RemoteRewardError, RewardRequest, split_answer

CHAT = "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
COMPOSED, DECOMPOSED = (
    (lambda text: unicodedata.normalize("NFC", text)),
    (lambda text: unicodedata.normalize("NFD", text)),
)


@pytest.mark.parametrize(
    ("query", "prompt", "answer"),
    [
        (COMPOSED("Café?") + "4", DECOMPOSED("Café?"), "4"),
        (COMPOSED("한국은?") + "서울", DECOMPOSED("한국은?"), "서울"),
        (COMPOSED("\u0958\u095e?") + "x²", "\u0958\u095e?", "x²"),  # nukta letters, which no normal form composes
        ("Which 1/2 fi?½ ﬁ", "Which 1/2 ﬁ?", "½ ﬁ"),  # the answer stays as it was written
        (" Which?7", "Which?", "7"),  # SentencePiece's blank
        ("Which?\n 7 or 8 ", "Which?\n", "7 or 8"),
        ("Who, me? yes", "Who , me ?", "yes"),  # blanks that decoding cleans up
        ("<|endoftext|><|endoftext|>Which?7<|im_end|>", "Which?", "7"),
        ("<pad><bos>Which?7<eos>", "Which?", "7"),
        ("prompt that was cut? seven\n", "A very long prompt that was cut?", "seven"),
        ("<|endoftext|>prompt that was cut? seven", "A very long prompt that was cut?", "seven"),
        (CHAT.format("Which?") + "7<|im_end|>\n<|endoftext|>", CHAT.format("Which?"), "7"),
        ("Which?", "Which?", ""),
        ("7", "", "7"),
    ],
)
def test_the_answer_follows_the_prompt_however_a_tokenizer_wrote_it(query, prompt, answer):
    assert split_answer(query, prompt) == answer


@pytest.mark.parametrize(
    ("query", "prompt"), [("Which?7", "Who?"), ("Oh. Which?7", "Which?"), ("?7", "A very short end?"), ("", "Which?")]
)
def test_another_prompt_is_not_found(query, prompt):
    assert split_answer(query, prompt) is None


@pytest.mark.parametrize(
    "text", ["Cafe\u0301", DECOMPOSED("한국은 어디?"), "\u0958\u093c नुक़्ता", "e\u0323\u0301 ２½ ﬁ", "a\u00a0b  c"]
)
def test_what_the_judges_own_tokenizer_makes_of_a_prompt(judge_folder, text):
    tokenizer = AutoTokenizer.from_pretrained(judge_folder)
    prompt = CHAT.format(text)
    ids = tokenizer.encode(prompt + "the answer<|im_end|>", add_special_tokens=False)
    assert split_answer(tokenizer.decode(ids), prompt) == "the answer"
    (pair,) = RewardRequest(query=[tokenizer.decode(ids)], prompts=[prompt]).pairs()
    assert pair == (text, "the answer")


def test_a_row_without_its_prompt_is_named_and_leaves_the_others():
    request = RewardRequest(query=["Which?7", "Oh?7"], prompts=["Which?", "What?"])
    pair, error = request.pairs()
    assert pair == ("Which?", "7")
    assert isinstance(error, RemoteRewardError)
    assert "query[1] does not begin with prompts[1]" in str(error)
    with pytest.raises(RemoteRewardError, match=r"query\[0\] does not begin"):
        RewardRequest(query=["Oh?7"], prompts=["What?"]).pairs()
