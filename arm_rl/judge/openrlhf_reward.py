"""What OpenRLHF's trainers send to a remote reward model (`--remote_rm_url …/get_reward`), and what they want back.

    {"query": [prompt and answer], "prompts": [prompt], "labels": [anything]}  ->  {"rewards": [...], "scores": [...], "extra_logs": {}}

Queries are decoded token ids, special tokens and all; prompts went through the policy's chat template where the trainer was told so.
"""

import re
from typing import Any

from arm_rl.core.errors import UserError
from arm_rl.judge.verdict import Verdict
from arm_rl.judge.wire import WireModel

_USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)  # of ChatML, as Qwen's models have it
_END = re.compile(r"(?:<\|[\w.]+\|>|</?s>|<[be]os>|\s)+$")  # and begin
_IMAGE = "<|image_pad|>"


class RemoteRewardError(UserError):
    """A request that cannot be judged; the message says which of its rows, and why."""


class RewardRequest(WireModel):
    """As OpenRLHF sends it; `labels` are not read."""

    query: list[str]
    prompts: list[str] | None = None

    def pairs(self) -> list[tuple[str, str]]:
        """Questions and answers.

        Raises:
            RemoteRewardError: it is not to be known where an answer begins, or the prompt shows images, which this protocol does not carry.
        """
        if self.prompts is None or len(self.prompts) != len(self.query):
            raise RemoteRewardError(
                "prompts: one for each query is needed, so that the judge knows where the answer begins"
            )
        pairs = []
        for number, (query, prompt) in enumerate(zip(self.query, self.prompts, strict=True)):
            before, found, answer = query.partition(prompt)
            if not found or not _END.fullmatch(before or " "):  # a padding or first token may stand before it
                raise RemoteRewardError(f"query[{number}] does not begin with prompts[{number}]")
            if _IMAGE in prompt:
                raise RemoteRewardError(
                    f"prompts[{number}] shows an image, which is not sent: use arm_rl.judge.reward_client instead"
                )
            said = _USER.findall(prompt)
            pairs.append((said[-1] if said else prompt, _END.sub("", answer)))
        return pairs


def reward_answer(verdicts: list[Verdict]) -> dict[str, Any]:
    """The probability that each answer is right; 0.5 where the judge gives no judgment."""
    rewards = [_probability(verdict) for verdict in verdicts]
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def _probability(verdict: Verdict) -> float:
    if verdict.choice is None or verdict.confidence is None:
        return 0.5
    return verdict.confidence if verdict.choice else 1.0 - verdict.confidence
