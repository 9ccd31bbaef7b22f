"""What OpenRLHF's trainers send to a remote reward model (`--reward.remote_url …/get_reward`) and expect back.

    {"query": [prompt and answer], "prompts": [prompt], "labels": [anything]}  ->  {"rewards": [...], "scores": [...], "extra_logs": {}}

Queries are decoded token ids with their special tokens; prompts went through the policy's chat template where the
trainer was configured so. Encoding and decoding change a text: a tokenizer may normalise characters and add or drop
blanks, and the trainer cuts a long prompt at its front. The prompt is therefore searched in the query by a form that
these changes leave alone.
"""

import bisect
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from arm_rl.core.errors import UserError
from arm_rl.judge.verdict import Verdict
from arm_rl.judge.wire import Texts, WireModel

NO_JUDGMENT = 0.5  # reward of an answer that has no judgment or cannot be judged
LEAST_SUFFIX = 16  # characters of a cut prompt that must be left, so that an answer is not taken for a prompt

_USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)  # of ChatML, as Qwen's models have it
_SPECIAL = r"(?:<[|｜][^\s|｜<>]+[|｜]>|</?s>|<[be]os>|<pad>|<end_of_turn>|\s)+"
_FIRST, _LAST = re.compile(f"^{_SPECIAL}"), re.compile(f"{_SPECIAL}$")
_IMAGE = "<|image_pad|>"


class RemoteRewardError(UserError):
    """A request, or a row of a request, that cannot be judged; the message says which row, and why."""


class RewardRequest(WireModel):
    """As OpenRLHF sends it; `labels` are not read."""

    query: Texts
    prompts: Texts | None = None

    def pairs(self) -> list[tuple[str, str] | RemoteRewardError]:
        """Return the question and the answer of each row, or the reason why the row cannot be judged.

        Raises:
            RemoteRewardError: If no row can be judged, or a prompt shows an image, which this protocol does not carry.
        """
        if self.prompts is None or len(self.prompts) != len(self.query):
            raise RemoteRewardError(
                "prompts: one for each query is needed, so that the judge knows where the answer begins"
            )
        pairs: list[tuple[str, str] | RemoteRewardError] = []
        for number, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            if _IMAGE in prompt:
                raise RemoteRewardError(
                    f"prompts[{number}] shows an image, which is not sent: use arm_rl.judge.reward_client instead"
                )
            answer = split_answer(query, prompt)
            if answer is None:
                pairs.append(RemoteRewardError(f"query[{number}] does not begin with prompts[{number}]"))
                continue
            said = _USER.findall(prompt)
            pairs.append((said[-1] if said else prompt, answer))
        errors = [pair for pair in pairs if isinstance(pair, RemoteRewardError)]
        if errors and len(errors) == len(pairs):
            raise errors[0]
        return pairs


def split_answer(query: str, prompt: str) -> str | None:
    """Return the part of a decoded sequence after its prompt, without special tokens, or None without the prompt.

    Args:
        query: Decoded prompt and answer; special tokens may precede the prompt.
        prompt: Text that was tokenized; of one that was cut at its front, the query holds the rest.
    """
    sought, text = _normalize(prompt), _normalize(query)
    start = text.find(sought)
    if start < 0:
        tail = _after_cut_prompt(text, sought)
    else:
        tail = None if _FIRST.sub("", text[:start]) else text[start + len(sought) :]
    return None if tail is None else _find_answer(query, tail)


def _after_cut_prompt(text: str, prompt: str) -> str | None:
    """Return what follows the longest suffix of `prompt` with which `text` begins."""
    text = _FIRST.sub("", text)
    head, start = text[:LEAST_SUFFIX], -1
    while len(head) == LEAST_SUFFIX and (start := prompt.find(head, start + 1)) >= 0:
        if text.startswith(prompt[start:]):
            return text[len(prompt) - start :]
    return None


def _find_answer(query: str, tail: str) -> str:
    """Return the end of a query whose normalized form is `tail`, without special tokens around the text."""
    # Normalized forms of the query's ends shrink as the ends do: ends of one length are neighbours.
    starts = range(len(query) + 1)
    first = bisect.bisect_left(starts, -len(tail), key=lambda start: -len(_normalize(query[start:])))
    last = bisect.bisect_right(starts, -len(tail), key=lambda start: -len(_normalize(query[start:])))
    exact = (query[start:] for start in reversed(starts[first:last]) if _normalize(query[start:]) == tail)
    return _LAST.sub("", next(exact, tail))


def _normalize(text: str) -> str:
    """Return a form of a text that survives a tokenizer: compatible characters in one spelling, without blanks."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def reward_answer(verdicts: Sequence[Verdict | None]) -> dict[str, Any]:
    """Return the probability that each answer is right, or `NO_JUDGMENT`.

    Args:
        verdicts: One for each answer; None for an answer that cannot be judged.
    """
    rewards = [_probability(verdict) for verdict in verdicts]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _probability(verdict: Verdict | None) -> float:
    if verdict is None or verdict.choice is None or verdict.confidence is None:
        return NO_JUDGMENT
    return verdict.confidence if verdict.choice else 1.0 - verdict.confidence
