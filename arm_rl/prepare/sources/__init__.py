"""Published data sets, each read as questions, or as answers that are labelled already: two visible tables."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from arm_rl.data.image_store import ImageFolder
from arm_rl.prepare.pairs.choices import AnsweredQuestion, ScoredAnswer
from arm_rl.prepare.questions import Question, read_questions
from arm_rl.prepare.sources import deepeyes, llava_critic, mm_ifengine, mp_docvqa, preferences
from arm_rl.prepare.sources.skipped import SkippedRow

Source = Callable[[Path, ImageFolder, str], Iterator[Question | SkippedRow]]
LabelledSource = Callable[[Path, ImageFolder, str], Iterator[AnsweredQuestion | ScoredAnswer | SkippedRow]]


def _read_jsonl(path: Path, images: ImageFolder, name: str) -> Iterator[Question | SkippedRow]:
    """Read a JSONL of questions."""
    yield from read_questions(path)


SOURCES: Mapping[str, Source] = {
    "llava_critic": llava_critic.read,
    "deepeyes": deepeyes.read,
    "mm_ifengine": mm_ifengine.read,
    "mp_docvqa": mp_docvqa.read,
    "jsonl": _read_jsonl,
}

LABELLED_SOURCES: Mapping[str, LabelledSource] = {
    "llava_critic": llava_critic.read_labelled,
    "mm_ifengine": mm_ifengine.read_labelled,
    "jsonl": preferences.read_labelled,
}
