"""One rank of the learner: a PolicyModel in a DeepSpeed ZeRO engine. `learner_group` starts the ranks and speaks to them."""

import dataclasses
import datetime
import logging
import math
import random
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
from torch import Tensor, nn
from transformers import AutoImageProcessor

from actors.learner import state as learner_state
from actors.learner.hf_folder import write_folder
from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.learner.settings import LearnerSpec, attention, deepspeed_config
from actors.weights import gather, lora
from actors.weights.files import Published, WeightWriter, read_bytes, remove_versions
from arm_rl.core import tracing
from arm_rl.core.batching import MicroBatch, collate
from arm_rl.core.compute_config import Transfer
from arm_rl.core.errors import MismatchError, NonFiniteError
from arm_rl.core.images import Image
from arm_rl.core.loss import GrpoObjective, Objective, TokenScores, TokenTargets, loss, token_weights
from arm_rl.core.schedule import learning_rate
from arm_rl.core.tracing import SpanBatch, recorded, span
from arm_rl.core.types import TrainingSample

if TYPE_CHECKING:
    from actors.weights.direct import DirectTransfer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankBatch:
    """One rank's share of a `Batch`, and what it must know of the whole."""

    micro_batches: tuple[tuple[TrainingSample, ...], ...]
    num_loss_tokens: int  # over all ranks
    num_samples: int  # over all ranks
    has_images: bool  # any sample of any rank
    share_prompts: bool  # as `Batch` says


class Learner:
    """A data-parallel rank. Lives in a Ray actor of its own; all ranks get the same calls at the same time."""

    def __init__(self, spec: LearnerSpec, rank: int) -> None:
        self._spec = spec
        self._rank = rank
        self._num_ranks = spec.config.num_ranks
        self._step = 0  # optimizer steps done
        self._store: dist.TCPStore | None = None
        self._writer: WeightWriter | None = None
        self._transfer: DirectTransfer | None = None
        self._scaling = lora.scaling_of(spec.config) if spec.config.lora_rank else None  # of the adapters

    def open_rendezvous(self) -> tuple[str, int]:
        """Rank 0 alone: opens the place where the ranks meet; gives its address and port."""
        address = ray.util.get_node_ip_address()
        timeout = datetime.timedelta(seconds=self._spec.config.collective_timeout_seconds)
        self._store = dist.TCPStore(
            address, 0, self._num_ranks, is_master=True, wait_for_workers=False, timeout=timeout
        )
        return address, self._store.port

    def start(self, address: str, port: int) -> None:
        """Joins the other ranks, loads the model and shards it."""
        import deepspeed

        spec, config = self._spec, self._spec.config
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if not spec.use_gpu:
            torch.set_num_threads(config.num_threads)
        timeout = datetime.timedelta(seconds=config.collective_timeout_seconds)
        store = self._store or dist.TCPStore(address, port, self._num_ranks, is_master=False, timeout=timeout)
        backend = "nccl" if spec.use_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=self._rank, world_size=self._num_ranks, timeout=timeout)
        _do_not_compile_collectives()
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
        _seed(spec.seed)
        policy = self._load_model().make_trainable(config)
        parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        num_parameters = sum(parameter.numel() for parameter in policy.parameters())
        settings = deepspeed_config(config, spec.model.dtype, num_parameters, spec.use_gpu)
        self._engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)
        self._policy: PolicyModel = self._engine.module
        self._device = self._engine.device
        self._reference = self._load_reference(settings) if spec.with_reference else None
        self._images = ImagePreparer(AutoImageProcessor.from_pretrained(spec.model.path), spec.view)

    @recorded("train")
    def train(self, batch: RankBatch, images: Mapping[str, ObjectRef], objective: Objective) -> dict[str, float]:
        """One optimizer step over all micro-batches of all ranks.

        Args:
            images: for each key that this rank's samples show, a reference of a `dict[str, Image]` that holds it.

        Returns:
            This rank's metric sums (`arm_rl.core.loss.means` makes metrics of the sums over ranks), and what is the same on all
            ranks: `grad_norm` (before clipping) and `learning_rate`.

        Raises:
            NonFiniteError: on all ranks, before any weight changes.
            MismatchError: likewise.
        """
        self._check_objective(objective)
        found = _resolve(images)
        sums: dict[str, Tensor] = {}
        for number, samples in enumerate(batch.micro_batches):
            self._engine.set_gradient_accumulation_boundary(number == len(batch.micro_batches) - 1)
            value, part = self._micro_batch_loss(
                collate(samples, share_prompts=batch.share_prompts), batch, found, objective
            )
            with span("backward"):
                # DeepSpeed takes the mean over ranks: this makes it the sum
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
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities of this rank's samples under the weights as they are: [micro-batch][sample], T each, 0 without loss."""
        found = _resolve(images)
        scored = []
        for samples in batch.micro_batches:
            micro_batch = collate(samples, share_prompts=batch.share_prompts)
            with span("images"):
                inputs = self._images.prepare(micro_batch.image_keys, found) if batch.has_images else None
            with torch.no_grad(), span("forward"):
                logprobs, _ = self._engine(micro_batch, inputs, temperature=temperature)
            rows = [row[kept].tolist() for row, kept in zip(logprobs.cpu(), micro_batch.attention_mask, strict=True)]
            scored.append(
                [
                    (0.0,) * (len(sample.token_ids) - len(row)) + tuple(row)
                    for sample, row in zip(samples, rows, strict=False)
                ]
            )
        return scored

    def _micro_batch_loss(
        self, micro_batch: MicroBatch, batch: RankBatch, images: Mapping[str, Image], objective: Objective
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with span("images"):
            inputs = self._images.prepare(micro_batch.image_keys, images) if batch.has_images else None
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
        weights = token_weights(
            micro_batch.loss_mask,
            objective.aggregation,
            num_loss_tokens=batch.num_loss_tokens,
            num_samples=batch.num_samples,
            fixed_length=objective.fixed_length,
        )
        proximal = None
        # the step's only update starts from the very weights that it scores
        if grpo is not None and grpo.importance_cap is not None:
            proximal = micro_batch.proximal_logprobs if micro_batch.proximal_logprobs is not None else logprobs.detach()
        targets = TokenTargets(
            mask=micro_batch.loss_mask,
            weights=weights,
            behaviour_logprobs=micro_batch.logprobs,
            advantages=micro_batch.advantages,
            proximal_logprobs=proximal,
            reference_logprobs=reference,
        )
        return loss(objective, TokenScores(logprobs=logprobs, entropy=entropy), targets)

    def _update(self) -> tuple[float, float]:
        """Clips and steps; gives the learning rate and the gradient's norm before clipping."""
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
        norm = None
        if not config.zero_stage and not self._engine.bfloat16_enabled():
            norm = float(nn.utils.clip_grad_norm_(self._policy.parameters(), config.max_grad_norm))
            _require_finite_gradient(norm)
        self._engine.step()
        if norm is None:
            norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied():  # DeepSpeed leaves the step out where the gradient is not finite
            norm = math.inf
        _require_finite_gradient(norm)
        self._step += 1
        return rate, norm

    @recorded("publish")
    def publish(self, folder: Path, version: int, node_ids: Sequence[str] = ()) -> Published | None:
        """Writes the weights as `version`, under the names of Hugging Face's files, and removes older versions; rank 0 tells where.

        With LoRA only the adapters are written: the engines have the base model.

        Args:
            folder: on rank 0's node.
            node_ids: where the engines are.
        """
        weights = self._whole_weights() if self._scaling is None else lora.publishable(self._adapters(), self._scaling)
        if self._rank:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        if self._writer is None or self._writer.folder != folder:
            self._writer = WeightWriter(folder)
        if self._scaling is None:
            weights = gather.in_files_order(self._policy.hf, weights)
        file = self._writer.write(weights, version, is_adapter=self._scaling is not None)
        remove_versions(folder, below=version)
        own = str(ray.get_runtime_context().get_node_id())
        elsewhere = any(node_id != own for node_id in node_ids)
        return Published(file=file, node_id=own, data=ray.put(read_bytes(file)) if elsewhere else None)

    @recorded("send")
    def send(self, kind: Transfer, version: int, engines: Sequence[ActorHandle], workers_per_engine: int) -> None:
        """Sends the weights to the engines' GPUs as `version`; connects to them the first time."""
        from actors.weights.direct import DirectTransfer, EngineClients, PolicySource

        if self._transfer is None:
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

    def remove_published(self, folder: Path) -> None:
        """Removes what `publish` wrote: shared memory is not left to the next run."""
        shutil.rmtree(folder, ignore_errors=True)

    def free_cache(self) -> None:
        """Gives back the GPU memory that torch's allocator keeps for later."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @recorded("save")
    def save(self, folder: Path) -> None:
        """Writes weights, optimizer, step and random states; all ranks into one folder, which every node must see."""
        folder.mkdir(parents=True, exist_ok=True)
        learner_state.write(self._engine, folder, rank=self._rank, num_ranks=self._num_ranks, step=self._step)

    def spans(self) -> SpanBatch:
        """What this rank did since the last call, for the timeline."""
        return tracing.take()

    @recorded("load")
    def load(self, folder: Path) -> int:
        """Goes back to what `save` wrote; gives the number of optimizer steps done by then.

        Raises:
            FileNotFoundError: there is no checkpoint.
            LearnerStateError: it is another model's.
        """
        self._step = learner_state.read(self._engine, folder, rank=self._rank)
        return self._step

    def export(self, folder: Path) -> None:
        """Writes a Hugging Face folder: these weights, and everything else as in the model's own folder.

        With LoRA the weights are merged, and the adapters stand in `adapter/` as peft reads them.

        Raises:
            OSError: there is no room, for example.
        """
        weights = self._whole_weights()
        adapters = {} if self._scaling is None else self._adapters()
        if self._rank:
            return
        with learner_state.system_errors():
            write_folder(self._policy.hf, weights, self._spec.model.path, folder)
            if adapters:
                lora.save_adapter(adapters, self._spec.config, self._spec.model.path, folder / "adapter")

    def _whole_weights(self) -> dict[str, Tensor]:
        """All weights by the names of the model in memory; empty but on rank 0."""
        return gather.whole(self._policy.hf, self._spec.config.zero_stage, self._scaling, wanted=self._rank == 0)

    def _adapters(self) -> dict[str, tuple[Tensor, Tensor]]:
        return gather.adapters(self._policy.hf, self._spec.config.zero_stage, wanted=self._rank == 0)

    def _load_model(self) -> PolicyModel:
        spec = self._spec
        model = dataclasses.replace(spec.model, attention=attention(spec.model, spec.use_gpu))
        return PolicyModel.load(model, never_sampled_ids=spec.never_sampled_ids, call_token_id=spec.call_token_id)

    def _load_reference(self, settings: Mapping[str, Any]) -> nn.Module:
        model = self._load_model().requires_grad_(False).eval()
        if self._spec.config.zero_stage < 3:
            return model.to(self._device)
        import deepspeed

        engine, *_ = deepspeed.initialize(model=model, config=dict(settings))
        engine.eval()
        return engine

    def _check_objective(self, objective: Objective) -> None:
        if isinstance(objective, GrpoObjective) and objective.kl_coefficient and self._reference is None:
            raise ValueError("algorithm.kl_coefficient: the learner was started without a reference policy")

    def _require_good(self, sums: Mapping[str, Tensor], num_loss_tokens: int, objective: Objective) -> None:
        """Refuses the batch on all ranks together, so that no rank waits for one that has stopped."""
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
                f"engine and learner differ by {gap_sum / num_loss_tokens:.3g} in a sampled token's log-probability, in the mean; "
                f"algorithm.max_mismatch allows {objective.max_mismatch:g}"
            )


def _require_finite_gradient(norm: float) -> None:
    if not math.isfinite(norm):
        raise NonFiniteError("the gradient is not finite")


def _do_not_compile_collectives() -> None:
    """Keeps DeepSpeed from compiling its shared-memory collectives for CPUs, which takes a compiler and a minute: gloo does without.

    DeepSpeed 0.19 has no setting for it; to be removed when it has.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@recorded("resolve")
def _resolve(images: Mapping[str, ObjectRef]) -> dict[str, Image]:
    references = list(set(images.values()))
    bundles = dict(zip(references, ray.get(references), strict=True))
    return {key: bundles[reference][key] for key, reference in images.items()}


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
