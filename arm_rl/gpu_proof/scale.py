"""How large the proof is on a GPU and on CPUs, and the configurations that follow."""

from dataclasses import dataclass, field
from pathlib import Path

from arm_rl.core.compute_config import LearnerConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.resize import ViewSize
from arm_rl.gpu_proof.frame import Device

NOT_ON_CPU = "not on CPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Sizes of models, batches and requests."""

    dtype: str
    factor: int  # pixels a side of an image token
    micro_batch_tokens: int
    image_side: int  # pixels of an ordinary image
    large_side: int  # pixels of a large image
    long_session: int  # tokens of the longest session that the shipped configurations allow
    long_prompt: int  # tokens of a prompt that the engine computes in pieces
    num_requests: int  # that run over an update
    prompt_tokens: int  # of these, with their images
    sampled_tokens: int  # of one request
    max_model_len: int
    engine_sequences: tuple[int, ...]  # that an engine decodes at a time
    engine_batched_tokens: tuple[int, ...]  # that an engine computes in one pass
    max_gap: float  # mean difference between the engine's and the learner's log-probabilities


SCALES: dict[Device, Scale] = {
    "cuda": Scale(
        dtype="bfloat16",
        factor=28,
        micro_batch_tokens=32768,
        image_side=1024,
        large_side=2048,
        long_session=73192,
        long_prompt=20000,
        num_requests=64,
        prompt_tokens=2048,
        sampled_tokens=128,
        max_model_len=24576,
        engine_sequences=(256, 512),
        engine_batched_tokens=(8192, 2048),
        max_gap=0.05,
    ),
    "cpu": Scale(
        dtype="float32",
        factor=16,
        micro_batch_tokens=512,
        image_side=64,
        large_side=128,
        long_session=2048,
        long_prompt=512,
        num_requests=16,
        prompt_tokens=64,
        sampled_tokens=48,
        max_model_len=1024,
        engine_sequences=(8,),
        engine_batched_tokens=(512,),
        max_gap=1e-4,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What a section is given."""

    device: Device
    out: Path  # of the whole proof
    folder: Path  # of this section
    seconds: float  # time box of this section
    scale: Scale = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", SCALES[self.device])

    @property
    def on_gpu(self) -> bool:
        """Whether the section runs on a GPU."""
        return self.device == "cuda"

    @property
    def model_folder(self) -> Path:
        """Folder of the random model."""
        return self.out / "models" / self.device / "full"

    @property
    def thin_folder(self) -> Path:
        """Folder of a random model with the same widths but few layers and a small vocabulary, for checkpoints."""
        return self.out / "models" / self.device / "thin"

    @property
    def model(self) -> ModelConfig:
        """The random model as a run's configuration names it."""
        return self.model_config(self.model_folder)

    def model_config(self, folder: Path) -> ModelConfig:
        """Return the configuration of a model's folder."""
        return ModelConfig(path=str(folder), dtype=self.scale.dtype)  # type: ignore[arg-type]

    @property
    def view(self) -> ViewSize:
        """Sizes at which the model sees images: as they are."""
        factor = self.scale.factor
        return ViewSize(factor=factor, min_pixels=(2 * factor) ** 2, max_pixels=self.scale.large_side**2)

    def learner_config(self, *, lora_rank: int = 0, learning_rate: float = 1e-3) -> LearnerConfig:
        """Return the learner's configuration, as the shipped configurations have it, for one rank.

        The learning rate is far above theirs, since bfloat16 weights do not show one step at 2e-6.
        """
        return LearnerConfig(
            num_ranks=1,
            zero_stage=3,
            micro_batch_tokens=self.scale.micro_batch_tokens,
            learning_rate=learning_rate,
            freeze_vision=lora_rank > 0,
            freeze_projector=lora_rank > 0,
            lora_rank=lora_rank,
            gradient_checkpointing=True,
        )
