"""What packed rows save over padded batches that repeat prompts: time against a bare torch loop, and bytes of activations."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from arm_rl.core.micro_batch import collate
from arm_rl.experiments.bench import learner, models
from arm_rl.experiments.bench.bare_loop import BareLoop
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace
from arm_rl.experiments.bench.learner import LearnerSettings, against_bare_loop
from arm_rl.experiments.bench.models import ModelSize, SyntheticAnswers

SIZE = ModelSize(hidden=256, layers=4, intermediate=768)
SAMPLED = (64, 192)  # tokens


@dataclass(frozen=True, kw_only=True)
class ActivationSettings:
    """Model and trajectories of the comparison of saved activations."""

    size: ModelSize = SIZE
    trajectories: SyntheticAnswers = SyntheticAnswers(
        num_groups=1, group_size=16, prompt_tokens=(1024, 1024), sampled_tokens=SAMPLED
    )


def measure_activations(settings: ActivationSettings, workspace: Workspace) -> Measurement:
    """Measure the bytes that autograd keeps of one forward pass on both sides, with gradient checkpointing."""
    models.build(workspace.temporary, settings.size)
    samples, images = settings.trajectories.make(workspace.temporary)
    num_tokens = sum(len(sample.token_ids) for sample in samples)
    spec = learner.spec_of(
        workspace.temporary,
        settings.trajectories,
        num_threads=1,
        micro_batch_tokens=2 * num_tokens,
        gradient_checkpointing=True,
    )
    policy = PolicyModel.load(spec.model).make_trainable(spec.config)
    batch = collate(samples)
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(spec.model.path), spec.view)
    inputs = preparer.prepare(batch.image_keys, images) if images else None
    bare = BareLoop(spec, samples, images)
    (padded,) = bare.batches
    with saved_bytes(policy) as packed_bytes:
        policy(batch, inputs)
    with saved_bytes(bare.model) as padded_bytes:
        bare.loss(padded)
    return Measurement(
        ours=[float(packed_bytes.total)],
        other=[float(padded_bytes.total)],
        notes=[
            f"one group of {len(samples)} trajectories, {len(batch.token_ids):,} tokens packed and "
            f"{padded.inputs['input_ids'].numel():,} padded; gradient checkpointing on both sides; one forward pass each",
            "storages that autograd saves, each counted once, without parameters; what a layer saves while it is computed again is "
            "not counted",
        ],
        details={},
    )


class SavedBytes:
    """Storages that autograd has saved, kept so that no address is used twice."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        """Bytes of all storages."""
        return sum(storage.nbytes() for storage in self.storages.values())


@contextlib.contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[SavedBytes]:
    """Count the storages that autograd saves in the block, without those of the model's parameters."""
    found = SavedBytes()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found.storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield found


def _speed(key: str, *, goal: float, what: str, trajectories: SyntheticAnswers, steps: int = 1) -> SpeedBenchmark:
    settings = LearnerSettings(
        trajectories=trajectories, size=SIZE, micro_batch_tokens=4096, gradient_checkpointing=True, steps=steps
    )
    return against_bare_loop(key, goal=goal, what=what, settings=settings)


TEXT = _speed(
    "packed_text",
    goal=4.0,
    what="loss tokens a second over a bare torch loop that pads and repeats prompts: groups of 16, prompts of 1,024 tokens, 64 to 192 "
    "sampled ones, gradient checkpointing",
    trajectories=SyntheticAnswers(num_groups=4, group_size=16, prompt_tokens=(1024, 1024), sampled_tokens=SAMPLED),
)
IMAGES = _speed(
    "packed_images",
    goal=10.0,
    what="the same, a prompt with an image of 1,024 tokens",
    trajectories=SyntheticAnswers(
        num_groups=1, group_size=16, prompt_tokens=(16, 16), sampled_tokens=SAMPLED, prompt_pixels=512
    ),
)
NONE = _speed(
    "packed_none",
    goal=1.2,
    what="the same, no prompt is shared and trajectories have 32 to 1,024 tokens",
    trajectories=SyntheticAnswers(num_groups=64, group_size=1, prompt_tokens=(16, 512), sampled_tokens=(16, 512)),
)
ACTIVATIONS = SpeedBenchmark(
    key="activation_bytes",
    what="saved activations of a packed group over the padded batch that repeats its prompt, gradient checkpointing",
    unit="bytes",
    goal=0.35,
    less_is_better=True,
    settings=ActivationSettings(),
    quick=replace(
        ActivationSettings(),
        trajectories=SyntheticAnswers(num_groups=1, group_size=4, prompt_tokens=(64, 64), sampled_tokens=(8, 16)),
    ),
    measure=measure_activations,
)
