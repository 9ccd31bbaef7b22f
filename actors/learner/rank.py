"""One rank of the learner: a `PolicyModel` in a DeepSpeed ZeRO engine. `ranks` starts the ranks and calls them."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray import ObjectRef
from ray.actor import ActorHandle
from torch import Tensor
from transformers import AutoImageProcessor

from actors.learner import state as learner_state
from actors.learner.deepspeed_engine import clip_and_step, join_ranks, load_reference, open_store, start_engine
from actors.learner.hf_folder import write_folder
from actors.learner.image_inputs import ImageInputs, ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.learner.settings import LearnerSpec
from actors.weights import comparison, gather, lora
from actors.weights.comparison import WeightSample
from actors.weights.files import PublishedWeights, system_errors, write_weights
from arm_rl.core import tracing
from arm_rl.core.compute_config import Transfer
from arm_rl.core.errors import MismatchError, NonFiniteError
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective, Objective, TokenScores, TokenTargets, loss, token_weights
from arm_rl.core.micro_batch import MicroBatch, collate
from arm_rl.core.schedule import learning_rate
from arm_rl.core.tracing import SpanBatch, recorded, span
from arm_rl.core.types import TrainingSample

if TYPE_CHECKING:
    from actors.weights.direct import DirectTransfer


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBatch:
    """One rank's share of a `Batch`, and the figures of the whole batch that it needs."""

    micro_batches: tuple[tuple[TrainingSample, ...], ...]
    num_loss_tokens: int  # over all ranks
    num_samples: int  # over all ranks
    has_images: bool  # any sample of any rank


class Learner:
    """A data-parallel rank in a Ray actor of its own. All ranks get the same calls at the same time."""

    def __init__(self, spec: LearnerSpec, rank: int) -> None:
        self._spec = spec
        self._rank = rank
        self._num_ranks = spec.config.num_ranks
        self._step = 0  # optimizer steps done
        self._store: dist.TCPStore | None = None
        self._transfer: DirectTransfer | None = None
        self._scaling = lora.scaling_of(spec.config) if spec.config.lora_rank else None  # of the adapters

    def open_rendezvous(self) -> tuple[str, int]:
        """Open the place where the ranks meet, on rank 0 alone; return its address and port."""
        address = ray.util.get_node_ip_address()
        self._store = open_store(self._spec, address, is_master=True)
        return address, self._store.port

    def start(self, address: str, port: int) -> None:
        """Join the other ranks, load the model and shard it."""
        spec = self._spec
        join_ranks(spec, self._rank, self._store or open_store(spec, address, port))
        self._engine = start_engine(spec)
        self._policy: PolicyModel = self._engine.module
        self._device: torch.device = self._engine.device
        self._reference = load_reference(spec, self._device) if spec.with_reference else None
        self._images = ImagePreparer(AutoImageProcessor.from_pretrained(spec.model.path), spec.view)

    @recorded("train")
    def train(self, batch: RankBatch, images: Mapping[str, ObjectRef], objective: Objective) -> dict[str, float]:
        """Run one optimizer step over all micro-batches of all ranks.

        Args:
            batch: This rank's share.
            images: For each key that this rank's samples show, a reference of a `dict[str, Image]` that holds it.
            objective: Loss to minimise.

        Returns:
            This rank's metric sums (`arm_rl.core.loss.means` makes metrics of the sums over ranks), and what is equal on
            all ranks: `grad_norm` (before clipping) and `learning_rate`.

        Raises:
            NonFiniteError: On all ranks, before any weight changes.
            MismatchError: Likewise.
        """
        if isinstance(objective, GrpoObjective) and objective.kl_coefficient and self._reference is None:
            raise ValueError("algorithm.kl_coefficient: the learner was started without a reference policy")
        resolved = _resolve(images)
        sums: dict[str, Tensor] = {}
        for number, samples in enumerate(batch.micro_batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches) - 1)
            micro_batch = collate(samples)
            value, part = self._micro_batch_loss(micro_batch, batch, resolved, objective)
            with span("backward"):
                # DeepSpeed takes the mean over ranks: the factor makes it the sum.
                self._engine.backward(value * self._num_ranks)
            sums = {name: sums.get(name, 0.0) + part[name] for name in part}
        with span("wait"):  # for the device, and for the other ranks
            self._require_good(sums, batch.num_loss_tokens, objective)
        with span("optimizer"):
            rate, norm = self._update()
        return {name: float(value) for name, value in sums.items()} | {"grad_norm": norm, "learning_rate": rate}

    @recorded("score")
    def score(
        self, batch: RankBatch, images: Mapping[str, ObjectRef], temperature: float
    ) -> dict[str, tuple[float, ...]]:
        """Compute log-probabilities of this rank's samples under the current weights.

        Returns:
            For each sample's key one value a token, 0 without loss.
        """
        resolved = _resolve(images)
        scored: dict[str, tuple[float, ...]] = {}
        for samples in batch.micro_batches:
            micro_batch = collate(samples)
            with torch.no_grad(), span("forward"):
                logprobs, _ = self._engine(
                    micro_batch, self._inputs(micro_batch, batch, resolved), temperature=temperature
                )
            values = iter(logprobs.tolist())
            for sample in samples:
                scored[sample.key] = tuple(next(values) if on else 0.0 for on in sample.loss_mask)
        return scored

    def _inputs(self, micro_batch: MicroBatch, batch: RankBatch, images: Mapping[str, Image]) -> ImageInputs | None:
        """Prepare the micro-batch's images; ranks without any take part where another rank has some."""
        with span("images"):
            return self._images.prepare(micro_batch.image_keys, images) if batch.has_images else None

    def _micro_batch_loss(
        self, micro_batch: MicroBatch, batch: RankBatch, images: Mapping[str, Image], objective: Objective
    ) -> tuple[Tensor, dict[str, Tensor]]:
        inputs = self._inputs(micro_batch, batch, images)
        grpo = objective if isinstance(objective, GrpoObjective) else None
        forward: dict[str, Any] = {"temperature": objective.temperature}
        reference = None
        if grpo is not None and grpo.kl_coefficient and self._reference is not None:
            with torch.no_grad(), span("reference"):
                reference, _ = self._reference(micro_batch, inputs, **forward)
        entropy_gradient = grpo is not None and grpo.entropy_coefficient != 0
        with span("forward"):
            logprobs, entropy = self._engine(micro_batch, inputs, **forward, entropy_gradient=entropy_gradient)
        micro_batch = micro_batch.to(self._device)
        proximal = None
        if grpo is not None and grpo.importance_cap is not None:
            proximal = micro_batch.proximal_logprobs
            if proximal is None:  # the step's only update starts from the very weights that it scores
                proximal = logprobs.detach()
        weights = token_weights(
            micro_batch.sequences,
            objective.aggregation,
            num_loss_tokens=batch.num_loss_tokens,
            num_samples=batch.num_samples,
            fixed_length=objective.fixed_length,
        )
        targets = TokenTargets(
            sequences=micro_batch.sequences,
            weights=weights,
            behaviour_logprobs=micro_batch.logprobs,
            advantages=micro_batch.advantages,
            proximal_logprobs=proximal,
            reference_logprobs=reference,
        )
        return loss(objective, TokenScores(logprobs=logprobs, entropy=entropy), targets)

    def _update(self) -> tuple[float, float]:
        """Update the weights; return the learning rate and the gradient's norm before clipping."""
        config = self._spec.config
        rate = learning_rate(
            self._step,
            num_steps=self._spec.num_steps,
            peak=config.learning_rate,
            schedule=config.schedule,
            warmup_ratio=config.warmup_ratio,
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        norm = clip_and_step(self._engine, config.max_grad_norm, config.zero_stage)
        self._step += 1
        return rate, norm

    def _require_good(self, sums: Mapping[str, Tensor], num_loss_tokens: int, objective: Objective) -> None:
        """Refuse a bad batch on all ranks together, so that no rank waits for one that has stopped."""
        names = [name for name in ("loss", "kl_engine") if name in sums and not torch.isfinite(sums[name])]
        gap = sums.get("logprob_gap", torch.zeros(()))
        totals = torch.stack([torch.tensor(float(bool(names)), device=self._device), gap.to(self._device).float()])
        dist.all_reduce(totals)
        num_broken, gap_sum = totals.tolist()
        if num_broken:
            raise NonFiniteError(
                f"the loss of {int(num_broken)} of {self._num_ranks} ranks is not finite; on rank {self._rank}: {names}. "
                "A token that the engine could not have sampled has a log-probability of -inf."
            )
        if isinstance(objective, GrpoObjective) and gap_sum > objective.max_mismatch * num_loss_tokens:
            raise MismatchError(
                f"engine and learner differ by {gap_sum / num_loss_tokens:.3g} in a sampled token's log-probability, in "
                f"the mean; algorithm.max_mismatch allows {objective.max_mismatch:g}"
            )

    @recorded("publish")
    def publish(self, folder: Path, version: int, node_ids: Sequence[str] = ()) -> PublishedWeights | None:
        """Write the weights as `version` under the names of Hugging Face's files; only rank 0 returns a result.

        With LoRA only the adapters are written: the engines have the base model.

        Args:
            folder: Folder on rank 0's node.
            version: Version of the weights.
            node_ids: The engines' nodes.
        """
        if self._scaling is None:
            weights = gather.in_files_order(self._policy.hf, self._whole_weights())
        else:
            weights = lora.publishable(self._adapters(), self._scaling)
        if self._rank:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        file = write_weights(weights, folder, version, is_adapter=self._scaling is not None)
        own = str(ray.get_runtime_context().get_node_id())
        elsewhere = any(node_id != own for node_id in node_ids)
        data = ray.put(np.fromfile(file.path, np.uint8)) if elsewhere else None
        return PublishedWeights(file=file, node_id=own, data=data)

    @recorded("send")
    def send(self, kind: Transfer, version: int, engines: Sequence[ActorHandle], workers_per_engine: int) -> None:
        """Send the weights to the engines' GPUs as `version`; connect where these engines are not connected yet.

        Raises:
            EngineDied: On rank 0, if an engine was lost; this rank is as it was.
        """
        from actors.weights.direct import DirectTransfer, EngineClients, PolicySource

        if self._transfer is None or not self._transfer.reaches(engines):
            if self._transfer is not None:
                self._transfer.close()
            source = PolicySource(
                self._policy.hf, self._spec.config.zero_stage, wanted=kind == "ipc" or self._rank == 0
            )
            self._transfer = DirectTransfer(
                kind,
                source,
                EngineClients(engines, workers_per_engine),
                rank=self._rank,
                address=ray.util.get_node_ip_address(),
                num_workers=len(engines) * workers_per_engine,
            )
        self._transfer.send(version)

    def sample_weights(self) -> dict[str, WeightSample]:
        """Return blocks of some weights by their common names, to compare with the engines'; empty but on rank 0."""
        return comparison.learner_samples(
            self._policy.hf, self._spec.config.zero_stage, self._scaling, wanted=self._rank == 0
        )

    def remove_published(self, folder: Path) -> None:
        """Remove what `publish` wrote: shared memory is not left to the next run."""
        shutil.rmtree(folder, ignore_errors=True)

    def free_cache(self) -> None:
        """Free the GPU memory that torch's allocator keeps for later."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @recorded("save")
    def save(self, folder: Path) -> None:
        """Write weights, optimizer, step and random states; all ranks into one folder, which every node must see."""
        folder.mkdir(parents=True, exist_ok=True)
        learner_state.write(self._engine, folder, rank=self._rank, num_ranks=self._num_ranks, step=self._step)

    @recorded("load")
    def load(self, folder: Path) -> int:
        """Restore what `save` wrote; return the number of optimizer steps done by then.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            LearnerStateError: If the checkpoint is another model's.
        """
        self._step = learner_state.read(self._engine, folder, rank=self._rank)
        return self._step

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder: these weights, and everything else as in the model's own folder.

        With LoRA the weights are merged, and `adapter/` holds the adapters as peft reads them.

        Raises:
            OSError: If the folder cannot be written, for example because the disk is full.
        """
        weights = self._whole_weights()
        adapters = {} if self._scaling is None else self._adapters()
        if self._rank:
            return
        with system_errors():
            write_folder(self._policy.hf, weights, self._spec.model.path, folder)
            if adapters:
                lora.save_adapter(adapters, self._spec.config, self._spec.model.path, folder / "adapter")

    def spans(self) -> SpanBatch:
        """Return this rank's spans since the last call, for the timeline."""
        return tracing.take()

    def _whole_weights(self) -> dict[str, Tensor]:
        """Gather all weights by the names of the model in memory; empty but on rank 0."""
        return gather.whole(self._policy.hf, self._spec.config.zero_stage, self._scaling, wanted=self._rank == 0)

    def _adapters(self) -> dict[str, tuple[Tensor, Tensor]]:
        return gather.adapters(self._policy.hf, self._spec.config.zero_stage, wanted=self._rank == 0)


@recorded("resolve")
def _resolve(images: Mapping[str, ObjectRef]) -> dict[str, Image]:
    """Fetch the images from the object store."""
    references = list(set(images.values()))
    bundles = dict(zip(references, ray.get(references), strict=True))
    return {key: bundles[reference][key] for key, reference in images.items()}
