"""A trajectory's conversation token by token, for colouring: what each token says, and what the policy thought of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from arm_rl.core.errors import UserError
from arm_rl.core.types import Trajectory
from arm_rl.report.run_data import find_files, read_config

FILE = "tokenizer.json"

Piece = list[Any]  # [text], [text, log-probability], or [text, log-probability, number of tokens] where it is not 1


class NoTokenizer(UserError):
    """A path leads to no tokenizer."""


def find_tokenizer(folder: Path, given: Path | None = None) -> Tokenizer | None:
    """Return the given tokenizer, else that of an export or of the configured model, if there is one.

    Raises:
        NoTokenizer: what is given is none.
    """
    if given is not None:
        path = given / FILE if given.is_dir() else given
        if not path.is_file():
            raise NoTokenizer(f"--tokenizer {given}: a folder with a {FILE} is wanted; {path} does not exist")
        return Tokenizer.from_file(str(path))
    exports = find_files(folder, f"export/{FILE}")
    configs = [config for path in find_files(folder, "config.yaml") if (config := read_config(path)) is not None]
    models = [Path(config.model.path) / FILE for config in configs if "model" in config]
    found = next((path for path in (*exports, *models) if path.is_file()), None)
    return Tokenizer.from_file(str(found)) if found else None


def conversation_parts(tokenizer: Tokenizer, trajectory: Trajectory) -> list[dict[str, Any]]:
    """Return the parts of a conversation: `kind` (prompt | turn | observation), `number` of the turn, `pieces`."""
    parts: list[dict[str, Any]] = [
        {"kind": "prompt", "number": 0, "pieces": environment_pieces(tokenizer, trajectory.prompt_ids)}
    ]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts.append(
            {"kind": "turn", "number": number, "pieces": sampled_pieces(tokenizer, turn.token_ids, turn.logprobs)}
        )
        if turn.observation_ids:
            parts.append(
                {"kind": "observation", "number": number, "pieces": environment_pieces(tokenizer, turn.observation_ids)}
            )
    return parts


def sampled_pieces(tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float]) -> list[Piece]:
    """Return pieces of sampled tokens; tokens that form one character are one piece with summed log-probabilities.

    Args:
        logprobs: of the ids, or empty where unknown.
    """
    pieces: list[Piece] = []
    for text, start, end in _split_characters(tokenizer, ids):
        joint = round(sum(logprobs[start:end]), 3) if logprobs else None
        pieces.append([text, joint] if end - start == 1 else [text, joint, end - start])
    return pieces


def environment_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Piece]:
    """Return pieces of the environment's tokens; a repeated token, such as an image token, is one piece."""
    pieces: list[Piece] = []
    for text, start, end in _split_characters(tokenizer, ids):
        if pieces and pieces[-1][0] == text and ids[start - 1] == ids[start]:
            pieces[-1] = [text, None, (pieces[-1][2] if len(pieces[-1]) > 2 else 1) + end - start]
        else:
            pieces.append([text] if end - start == 1 else [text, None, end - start])
    return pieces


def _split_characters(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """Split into the fewest tokens that form characters: (text, first, after the last)."""
    stream = DecodeStream(skip_special_tokens=False)
    pieces, start = [], 0
    for place, token in enumerate(ids):
        text = stream.step(tokenizer, token)
        if text is not None:
            pieces.append((text, start, place + 1))
            start = place + 1
    if start < len(ids):  # cut off in the middle of a character
        pieces.append((tokenizer.decode(list(ids[start:]), skip_special_tokens=False) or "\ufffd", start, len(ids)))
    return pieces
