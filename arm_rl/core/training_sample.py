"""A trajectory as the learner sees it: the one place where loss mask and log-probabilities are laid over the tokens."""

import itertools
from collections.abc import Sequence

from arm_rl.core.types import TrainingSample, Trajectory


def training_sample(trajectory: Trajectory, advantage: float, *, image_pad_id: int) -> TrainingSample:
    """Lays the turns end to end: loss on what the policy sampled, none on the prompt and on observations.

    Args:
        trajectory: with log-probabilities for all sampled tokens, or for none (a teacher's).
        advantage: of the whole trajectory, for each of its sampled tokens.
        image_pad_id: stands for an image token.

    Raises:
        ValueError: a turn whose log-probabilities are not as many as its tokens, or runs of image pads that are not the images'.
    """
    token_ids = list(trajectory.prompt_ids)
    loss_mask = [False] * len(token_ids)
    logprobs = [0.0] * len(token_ids)
    call_forbidden = [False] * len(token_ids)
    for number, turn in enumerate(trajectory.turns):
        sampled, observed = len(turn.token_ids), len(turn.observation_ids)
        if turn.logprobs and len(turn.logprobs) != sampled:
            raise ValueError(
                f"{trajectory.group_id}[{trajectory.index}] turn {number}: {len(turn.logprobs)} logprobs for {sampled} tokens"
            )
        token_ids += turn.token_ids + turn.observation_ids
        loss_mask += [True] * sampled + [False] * observed
        logprobs += (turn.logprobs or (0.0,) * sampled) + (0.0,) * observed
        call_forbidden += [turn.call_forbidden] * sampled + [False] * observed
    image_tokens = _image_token_spans(token_ids, image_pad_id)
    if len(image_tokens) != len(trajectory.images):
        raise ValueError(
            f"{trajectory.group_id}[{trajectory.index}]: {len(trajectory.images)} images for {len(image_tokens)} runs of image pads"
        )
    return TrainingSample(
        key=f"{trajectory.group_id}[{trajectory.index}]",
        token_ids=tuple(token_ids),
        loss_mask=tuple(loss_mask),
        logprobs=tuple(logprobs),
        advantages=tuple(advantage if sampled else 0.0 for sampled in loss_mask),
        call_forbidden=tuple(call_forbidden),
        image_keys=tuple(image.key for image in trajectory.images),
        image_tokens=image_tokens,
        num_prompt_tokens=len(trajectory.prompt_ids),
        num_prompt_images=len(_image_token_spans(trajectory.prompt_ids, image_pad_id)),
    )


def _image_token_spans(ids: Sequence[int], pad_id: int) -> tuple[int, ...]:
    """Return the lengths of the spans of image tokens."""
    return tuple(sum(1 for _ in run) for id_, run in itertools.groupby(ids) if id_ == pad_id)
