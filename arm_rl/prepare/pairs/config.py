"""How answers to judge are made out of questions."""

from dataclasses import dataclass, field
from string import Template

from arm_rl.core.config import ConfigError
from arm_rl.core.text_file import EncodingError, read_text

KINDS = ("pair", "point", "rank")
_PLACES = {"question", "answer", "flaw"}  # of the prompt


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    # files that are made: pair (two answers), point (one answer), rank (num_answers)
    kinds: tuple[str, ...] = ("pair", "point")
    num_answers: int = 4  # of `rank`: the right one and flawed ones
    # file with the request for a flawed answer: $question, $answer, $flaw
    prompt: str = "configs/prompts/flawed_answer.txt"
    # file that words a question and its answers, as template.question of a run
    question: str = "configs/prompts/question.jinja"
    flaws: dict[str, str] = field(default_factory=dict)  # kinds of flaw, by name; each answer's is drawn by the seed
    constraint_flaw: str = "this instruction is not kept: $constraint"  # the flaw where a question has constraints
    max_similarity: float = 0.97  # answers that are more alike are left out (0..1, 1: the same but for case and blanks)
    max_length_ratio: float = 1.6  # between the words of the longer and of the shorter answer, 4 added to both
    giveaways: tuple[str, ...] = ()  # an answer that holds one of these is left out, unless the right one does too
    tries: int = 3  # times that an answer is asked for until one can be used
    temperature: float = 1.0  # of the sampling
    max_tokens: int = 2048  # of a reply, thoughts included
    send_images: bool = True  # false where the model takes text only
    # share of the questions that go to files of their own; questions about the same material go together
    held_out: float = 0.0
    seed: int = 0  # of flaws, splits and the answers' order
    max_dropped: float = 0.7  # share of a file's rows that may be left out until length and place tell nothing
    max_failed: float = 0.1  # share of the requests that may fail before the run ends

    def __post_init__(self) -> None:
        _require(
            bool(self.kinds) and {*self.kinds} <= {*KINDS},
            "kinds",
            f"some of {', '.join(KINDS)}, not {list(self.kinds)}",
        )
        _require(2 <= self.num_answers <= 26, "num_answers", f"from 2 to 26, not {self.num_answers}")
        _require(bool(self.flaws), "flaws", "at least one kind of flaw is needed")
        for name in ("max_similarity", "held_out", "max_dropped", "max_failed"):
            _require(0 <= getattr(self, name) <= 1, name, f"from 0 to 1, not {getattr(self, name)}")
        _require(self.max_length_ratio >= 1, "max_length_ratio", f"at least 1, not {self.max_length_ratio}")
        _require(self.tries >= 1, "tries", f"at least 1, not {self.tries}")
        _require(self.max_tokens >= 1, "max_tokens", f"at least 1, not {self.max_tokens}")
        _require(0 <= self.temperature <= 2, "temperature", f"from 0 to 2, not {self.temperature}")
        _require(
            "constraint" in Template(self.constraint_flaw).get_identifiers(),
            "constraint_flaw",
            "a text that holds $constraint",
        )

    @property
    def num_flawed(self) -> int:
        """Flawed answers that a question needs."""
        return self.num_answers - 1 if "rank" in self.kinds else 1

    def read_prompt(self) -> Template:
        """The prompt's file.

        Raises:
            ConfigError: there is none, or it does not hold what it must.
        """
        try:
            template = Template(read_text(self.prompt))
        except (OSError, EncodingError) as error:
            raise ConfigError(f"prompt: {error}") from error
        if not template.is_valid() or {*template.get_identifiers()} != _PLACES:
            raise ConfigError(
                f"prompt: {self.prompt}: it must hold $question, $answer and $flaw, no other name, and $$ for a dollar sign"
            )
        return template


def _require(condition: bool, key: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {message}")
