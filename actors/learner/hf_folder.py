"""A model as a Hugging Face folder: its weights, and everything else as in the folder that it was loaded from."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel


def write_folder(model: PreTrainedModel, weights: Mapping[str, Tensor], source: str, folder: Path) -> None:
    """Writes what transformers and vLLM load.

    The generation config keeps the tokens that end and pad, and drops the rest: a server would apply the penalties and cuts of the base
    model's to every request, and under these the policy was not trained.

    Args:
        weights: by the names of the model in memory, tied ones once.
        source: the folder, or the name on the hub, that the model was loaded from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in _source_folder(source).iterdir():
        if (
            path.is_file()
            and not path.name.startswith(".")
            and ".safetensors" not in path.name
            and path.suffix != ".bin"
        ):
            shutil.copy(path, folder / path.name)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id, do_sample=False
    )
    try:
        model.save_pretrained(folder, state_dict=dict(weights))
    finally:
        model.generation_config = own


def _source_folder(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, ignore_patterns=["*.safetensors", "*.bin"]))
