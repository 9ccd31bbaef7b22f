"""What the page shows of single trajectories: each as HTML, as tokens, and its images. Read when it is asked for."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from arm_rl.core import trajectory_file
from arm_rl.core.advantage import group_advantages
from arm_rl.report import tokens, trajectories
from arm_rl.report.index import Index, LogFile
from arm_rl.report.pictures import encode_picture
from arm_rl.report.run_data import read_config


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentReader:
    """Reads them from the files."""

    index: Index
    tokenizer: Tokenizer | None = None  # None: there are no tokens

    def read(self, file: LogFile, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Return trajectories: `question` and `card` as HTML, `tokens`, `advantage`, and the `keys` of their images.

        Raises:
            IndexError: there is no such row.
        """
        advantages = self._advantages(file, rows)
        contents = []
        for (scored, sample), advantage in zip(trajectory_file.read_rows(file.path, rows), advantages, strict=True):
            trajectory = scored.trajectory
            contents.append(
                {
                    "question": trajectories.question(sample),
                    "card": trajectories.card(file, scored, sample, advantage),
                    "tokens": tokens.conversation_parts(self.tokenizer, trajectory) if self.tokenizer else None,
                    "advantage": advantage,
                    "keys": list(dict.fromkeys(info.key for info in trajectory.images)),
                }
            )
        return contents

    def pictures(self, file: LogFile, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Images that were kept, by key: `uri` for the page, and their own `width` and `height`."""
        images = trajectory_file.read_images(file.path, keys)
        seen = {key: encode_picture(image) for key, image in images.items()}
        return {key: {"uri": one.uri, "width": one.width, "height": one.height} for key, one in seen.items()}

    def _advantages(self, file: LogFile, rows: Sequence[int]) -> list[float | None]:
        """As training reckons them, from the rewards of the whole group; None for held-out samples and where the scorer failed."""
        if file.is_evaluation:
            return [None] * len(rows)
        groups, numbers = file.groups(), file.columns["group"]
        found: dict[int, float | None] = {}
        for number in {numbers[row] for row in rows}:
            members = groups[number]
            rewards = [file.reward(row) for row in members]
            found.update(
                zip(
                    members, group_advantages(rewards, scale_by_std=_scale_by_std(file.path.parent.parent)), strict=True
                )
            )
        return [found[row] for row in rows]


@functools.cache
def _scale_by_std(run: Path) -> bool:
    config = read_config(run / "config.yaml")
    return True if config is None else bool(config.get("algorithm", {}).get("scale_by_std", True))
