"""The files of a model folder that hold its weights."""

import json
from pathlib import Path

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the shards that the index names; without an index, the single file.

    Other weights in the folder belong to no index, for example a file that was left from before the model was saved in shards.
    """
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE_FILE]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
