"""A model's folder, checked before an actor loads it: its JSON files can be read and its weights are whole, and those of its config."""

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from actors.weights.model_files import INDEX, SINGLE_FILE
from arm_rl.core.errors import UserError


class ModelFolderError(UserError):
    """A model's folder that cannot be used; the message names the file."""


def check_files(path: str, *, a_folder: bool = False) -> None:
    """Reads the JSON files and the headers of the weights' files, which tell whether one is cut short. A name on the hub is left alone.

    Args:
        a_folder: the path is no name on the hub.

    Raises:
        ModelFolderError: a file that is missing or broken.
    """
    folder = Path(path)
    if not folder.is_dir() and not a_folder:
        return
    for file in ("config.json", *sorted(one.name for one in folder.glob("*.json") if one.name != "config.json")):
        _read_json(folder / file)
    _read_shapes(folder)


def check_weights(path: str) -> None:
    """Compares the weights with the model that `config.json` describes: transformers would draw those that are missing at random.

    Raises:
        ModelFolderError: a weight that no file holds in its shape, or a model of another architecture.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    try:
        with torch.device("meta"):  # no memory, no values
            model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:  # what these raise for a config that fits no model is not told
        raise ModelFolderError(
            f"model.path: {folder / 'config.json'}: no model is built of it: {type(error).__name__}: {error}"
        ) from error
    inner = getattr(model, "model", None)
    if not (hasattr(inner, "visual") and hasattr(inner, "language_model") and hasattr(inner, "get_rope_index")):
        raise ModelFolderError(
            f"model.path: {folder / 'config.json'}: a {type(model).__name__} cannot be trained here; a model such as Qwen2.5-VL is needed"
        )
    held = Counter(shape for shapes in _read_shapes(folder).values() for shape in shapes)
    for name, weight in model.named_parameters():  # by shape: in files, weights may have names of older versions
        shape = tuple(weight.shape)
        held[shape] -= 1
        if held[shape] < 0:
            raise ModelFolderError(
                f"model.path: {folder}: its files hold no weight of the shape {list(shape)} for {name}: "
                "config.json and the weights must be of one model, and all of it"
            )


def _read_shapes(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of the weights in each file."""
    index = folder / INDEX
    if index.exists():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFolderError(f"model.path: {index}: a weight_map from weights to files is needed")
        names = sorted({str(name) for name in weight_map.values()})
    elif (folder / SINGLE_FILE).exists():
        names = [SINGLE_FILE]
    else:
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "none"
        raise ModelFolderError(
            f"model.path: {folder}: no weights: {SINGLE_FILE} or {INDEX} is needed (other weights: {others})"
        )
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        file = folder / name
        if Path(name).name != name or not file.exists():
            raise ModelFolderError(
                f"model.path: {index} names {name}, which is not there: {len(names)} files are needed"
            )
        try:
            with safe_open(file, "pt") as weights:
                shapes[name] = [tuple(weights.get_slice(key).get_shape()) for key in weights.keys()]  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"model.path: {file}: not a whole safetensors file: {error}") from error
    return shapes


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"model.path: {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"model.path: {file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"model.path: {file}: a JSON object is needed")
    return content
