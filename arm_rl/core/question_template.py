"""How a question is put to the judge: a Jinja template of `question` and `answers`, in a file of its own."""

from collections.abc import Callable, Sequence

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from arm_rl.core.config import ConfigError
from arm_rl.core.text_file import EncodingError, read_text

Phrase = Callable[[str, Sequence[str]], str]


def read_phrase(path: str) -> Phrase:
    """The user's text of a question and its answers, one or more; tried once, so that no answer is lost on the way.

    Raises:
        ConfigError: there is no such file, it is no template, or it does not show what it is given.
    """
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    try:
        template = environment.from_string(read_text(path))
    except EncodingError as error:
        raise ConfigError(f"template.question: {error}") from error
    except (OSError, jinja2.TemplateError) as error:
        raise ConfigError(f"template.question: {path}: {getattr(error, 'strerror', None) or error}") from error

    def phrase(question: str, answers: Sequence[str]) -> str:
        return template.render(question=question, answers=list(answers))

    for answers in (["first_answer"], ["first_answer", "second_answer"]):
        try:
            text = phrase("a_question", answers)
        except jinja2.TemplateError as error:
            raise ConfigError(f"template.question: {path}: {error}") from error
        lost = [shown for shown in ("a_question", *answers) if shown not in text]
        if lost:
            raise ConfigError(
                f"template.question: {path} does not show {lost[0]!r}: it has to write `question` and each of `answers`"
            )
    return phrase
