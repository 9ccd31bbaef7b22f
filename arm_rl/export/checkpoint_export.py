"""A run's newest checkpoint as a Hugging Face folder: on one machine, without Ray, DeepSpeed and GPUs, whatever the run had of them."""

from dataclasses import replace
from pathlib import Path

from actors.learner import state as learner_state
from actors.learner.hf_folder import write_folder
from actors.learner.policy_model import PolicyModel
from actors.weights import gather, lora
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.export.model_card import write_card
from arm_rl.export.model_check import check_files, check_weights
from arm_rl.run import checkpoint
from arm_rl.run.checkpoint import CheckpointError


def export_checkpoint(config: TrainConfig | SftConfig, run: Path, out: Path) -> int:
    """Exports, and gives the checkpoint's step. Holds the model once, in its own precision, and one tensor of the checkpoint.

    Raises:
        CheckpointError: the run has none.
        LearnerStateError: it is another model's.
        ModelFolderError: the model that the run began with is not whole any more.
    """
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run / 'checkpoints'}: there is no checkpoint")
    check_files(config.model.path)  # frozen weights, and everything beside weights, come from there
    check_weights(config.model.path)
    policy = PolicyModel.load(replace(config.model, attention=None)).make_trainable(config.learner)
    learner_state.read_weights(policy, found.folder)
    scaling = lora.scaling_of(config.learner) if config.learner.lora_rank else None
    write_folder(policy.hf, gather.whole(policy.hf, 0, scaling, wanted=True), config.model.path, out)
    if scaling is not None:
        lora.save_adapter(
            gather.adapters(policy.hf, 0, wanted=True), config.learner, config.model.path, out / "adapter"
        )
    write_card(config, run, out, found.step)
    return found.step
