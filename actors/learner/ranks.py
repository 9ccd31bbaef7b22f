"""The learner as the driver sees it: one actor a rank; each gets its share of a batch, and their results are added up."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from actors.collectives import is_of_collective
from actors.learner.rank import Learner, RankBatch
from actors.learner.settings import LearnerSpec, learner_environment
from actors.supervision import StageLost, cause_of, describe_error, is_loss, is_lost_with_node
from actors.weights.comparison import WeightSample
from actors.weights.files import PublishedWeights
from arm_rl.core.compute_config import Transfer
from arm_rl.core.errors import EngineDied
from arm_rl.core.loss import Objective, means
from arm_rl.core.types import Batch

logger = logging.getLogger(__name__)

_SAME_ON_ALL_RANKS = ("grad_norm", "learning_rate")
_SECONDS_TO_DIE = 10.0  # after one rank's collective has failed: until it is known whether another rank is gone
_SECONDS_TO_CLEAN = 10.0  # a rank may hang in a collective


class LearnerLost(StageLost):
    """A rank died, or a collective took too long: new ranks can resume from the last checkpoint."""


class LearnerRanks:
    """All ranks of a learner. Calls return when every rank is done; a rank that fails fails the call at once."""

    def __init__(self, spec: LearnerSpec, rank_options: Sequence[Mapping[str, Any]]) -> None:
        """Start the ranks.

        Args:
            spec: Settings that all ranks share.
            rank_options: Options of each rank's Ray actor: its resources and its place on the cluster.

        Raises:
            ValueError: If the options are for more or fewer ranks than there are.
            LearnerLost: If a rank died meanwhile.
        """
        if len(rank_options) != spec.config.num_ranks:
            raise ValueError(f"learner.num_ranks: options for {len(rank_options)} ranks of {spec.config.num_ranks}")
        self._limit = spec.config.call_timeout_seconds
        runtime = {"env_vars": learner_environment(spec.config, spec.use_gpu, spec.transfer)}
        actor = ray.remote(Learner)
        self._ranks = [
            actor.options(**options, runtime_env=runtime).remote(spec, rank)
            for rank, options in enumerate(rank_options)
        ]
        try:
            ((address, port),) = _all([self._ranks[0].open_rendezvous.remote()], self._limit)
            self._call("start", address, port)
        except BaseException:
            self.close()
            raise

    def train(self, batch: Batch, images: Mapping[str, ObjectRef], objective: Objective) -> dict[str, float]:
        """One optimizer step.

        Args:
            images: for each key that a sample shows, a reference of a `dict[str, Image]` that holds it.

        Returns:
            Metrics `learner/...`: means over the batch's loss tokens, the loss itself, gradient norm, learning rate, and the
            number of prompts that were computed again because their group did not fit into one row.

        Raises:
            BadBatch: as the cause of Ray's error; the weights are as they were.
            LearnerLost: a rank died, or hangs.
        """
        results = self._over_shares("train", batch, images, objective)
        same = {name: results[0][name] for name in _SAME_ON_ALL_RANKS}
        same["repeated_prompts"] = float(batch.num_repeated_prompts)
        sums = {name: sum(result[name] for result in results) for name in results[0] if name not in same}
        return {f"learner/{name}": value for name, value in (means(sums, batch.num_loss_tokens) | same).items()}

    def score(self, batch: Batch, images: Mapping[str, ObjectRef], temperature: float) -> dict[str, tuple[float, ...]]:
        """Compute log-probabilities of the batch's samples under the current weights.

        Returns:
            For each sample's key one value a token, 0 without loss.
        """
        ranks = self._over_shares("score", batch, images, temperature)
        return {key: logprobs for scored in ranks for key, logprobs in scored.items()}

    def publish(self, folder: Path, version: int, node_ids: Sequence[str] = ()) -> PublishedWeights:
        """Writes the weights as `version` on rank 0's node, for the engines on `node_ids`."""
        return self._call("publish", folder, version, node_ids)[0]

    def send(self, kind: Transfer, version: int, engines: Sequence[ActorHandle], workers_per_engine: int) -> None:
        """Send the weights to the engines' GPUs as `version`; connect where these engines are not connected yet.

        Raises:
            EngineDied: If an engine was lost: other engines can be sent the same weights, the ranks are as they were.
            StageLost: If the weights did not arrive in time, or a rank was lost.
            RayError: If a rank or an engine raised what it would raise again, such as ValueError.
        """
        try:
            _all([actor.send.remote(kind, version, engines, workers_per_engine) for actor in self._ranks], self._limit)
        except RayError as error:
            if isinstance(cause := cause_of(error), EngineDied):
                raise cause from error
            if not is_loss(error):
                raise
            raise StageLost(f"the weights did not reach the engines: {describe_error(error)}") from error

    def sample_weights(self) -> dict[str, WeightSample]:
        """Return blocks of some weights by their common names, to compare with the engines'."""
        return self._call("sample_weights")[0]

    def spans(self) -> dict[str, ObjectRef]:
        """Fetch each rank's spans since the last call, by the rank's name in the timeline."""
        return {f"learner {rank}": actor.spans.remote() for rank, actor in enumerate(self._ranks)}

    def remove_published(self, folder: Path) -> None:
        """Remove what `publish` wrote, if rank 0 still lives and does not hang."""
        with contextlib.suppress(RayError):
            ray.get(self._ranks[0].remove_published.remote(folder), timeout=_SECONDS_TO_CLEAN)

    def free_cache(self) -> None:
        """Free the GPU memory that ranks hold and do not use."""
        self._call("free_cache")

    def save(self, folder: Path) -> None:
        """Write weights, optimizer, step and random states."""
        self._call("save", folder)

    def load(self, folder: Path) -> int:
        """Restore what `save` wrote, with any number of ranks; return the number of optimizer steps done by then."""
        return self._call("load", folder)[0]

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder that transformers and vLLM load."""
        self._call("export", folder)

    def close(self) -> None:
        """End the ranks' processes."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks = []

    def _over_shares(self, method: str, batch: Batch, images: Mapping[str, ObjectRef], argument: Any) -> list[Any]:
        """Call a method of each rank with its share of the batch and of the images."""
        has_images = any(
            sample.image_keys for rank in batch.micro_batches for micro_batch in rank for sample in micro_batch
        )
        calls = []
        for actor, micro_batches in zip(self._ranks, batch.micro_batches, strict=True):
            share = RankBatch(
                micro_batches=micro_batches,
                num_loss_tokens=batch.num_loss_tokens,
                num_samples=batch.num_samples,
                has_images=has_images,
            )
            keys = {key for samples in micro_batches for sample in samples for key in sample.image_keys}
            calls.append(getattr(actor, method).remote(share, {key: images[key] for key in keys}, argument))
        return _all(calls, self._limit)

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        return _all([getattr(actor, method).remote(*arguments) for actor in self._ranks], self._limit)


def _all(calls: Sequence[ObjectRef], limit: float) -> list[Any]:
    """Return the results of all ranks; raise the first error as it comes, since other ranks may wait for the failed one."""
    pending, until = list(calls), time.monotonic() + limit
    while pending:
        done, pending = ray.wait(pending, timeout=max(until - time.monotonic(), 0.0))
        if not done:
            raise LearnerLost(
                f"a learner rank was lost: no answer within {limit:g} seconds (learner.call_timeout_seconds)"
            )
        try:
            ray.get(done)
        except RayError as error:
            lost = _loss_behind(error, pending)
            if lost is None:
                raise
            raise LearnerLost(f"a learner rank was lost: {describe_error(lost)}") from None
    return ray.get(list(calls))


def _loss_behind(error: RayError, others: Sequence[ObjectRef]) -> RayError | None:
    """Return why the ranks are lost, if they are: a rank died, a collective failed, or images are gone."""
    cause = cause_of(error)
    if isinstance(error, RayActorError) or is_lost_with_node(error):  # the images
        return error
    if not is_of_collective(cause):
        return None
    for call in ray.wait(list(others), num_returns=len(others), timeout=_SECONDS_TO_DIE)[0] if others else []:
        try:
            ray.get(call)
        except RayActorError as death:
            return death
        except RayError as other:
            if not is_loss(other) and not is_of_collective(cause_of(other)):
                raise  # the rank that failed by itself, for which the collective failed
    return error
