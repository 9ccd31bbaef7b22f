"""How items are asked: one wording for each kind, the same in all benchmarks."""

from collections.abc import Mapping, Sequence

from arm_rl.core.types import ImagePart, Message

ANSWER_SYSTEM = """You answer questions about the material you are given. Look before you answer: think first, call a tool when it can \
show you what you cannot see well enough, read what comes back, and only then answer.

Write every turn as one thought in <think> and </think>, followed by exactly one of:
- a tool call, in <tool_call> and </tool_call>: {"name": ..., "arguments": {...}}. The result comes back to you.
- your answer, in <answer> and </answer>.

Images go by name: the first one given is original_image, further ones are original_image_2 and so on, and each image that a tool \
returns is observation_1, observation_2, ..."""

RATING_SYSTEM = """You rate an answer to a question. Think first, in <think> and </think>; then give your rating, a whole number from 1 \
(useless or wrong) to 10 (right and helpful in every respect), in <answer> and </answer>. Whether the answer is right counts; how long \
or detailed it is does not."""


def compare(
    question: str, answers: Sequence[str], *, num_images: int, notes: Sequence[str] = ()
) -> tuple[Message, ...]:
    """Which of the answers is better."""
    shown = "\n\n".join(f"Answer {number}: {answer}" for number, answer in enumerate(answers, 1))
    which = "one of " + ", ".join(str(number) for number in range(1, len(answers) + 1))
    asked = (
        f"Which answer is better? Being right counts most. Say: Overall Judgment: Answer k is better, with k {which}."
    )
    return (_user_message([f"Question: {question}", shown, *notes, asked], num_images),)


def verify(
    question: str, answer: str, *, num_images: int, constraint: str | None = None, notes: Sequence[str] = ()
) -> tuple[Message, ...]:
    """Whether an answer is right, or, with a constraint, whether it keeps to that."""
    parts = [f"Question: {question}", f"Answer (text_0): {answer}"]
    if constraint is not None:
        parts.append(f"Constraint: {constraint}")
    asked = "Is the answer right?" if constraint is None else "Does the answer satisfy the constraint?"
    return (
        _user_message(
            [*parts, *notes, f"{asked} Say: Overall Judgment: True, or Overall Judgment: False."], num_images
        ),
    )


def choose(question: str, options: Mapping[str, str], *, num_images: int) -> tuple[Message, ...]:
    """Which option answers the question."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    asked = "Answer with the letter of the right option in <answer> and </answer>."
    return (
        Message(role="system", parts=(ANSWER_SYSTEM,)),
        _user_message([f"Question: {question}", f"Options:\n{listed}", asked], num_images),
    )


def rate(question: str, answer: str) -> tuple[Message, ...]:
    """How good an answer is, from 1 to 10."""
    return (
        Message(role="system", parts=(RATING_SYSTEM,)),
        _user_message([f"Question: {question}", f"Answer: {answer}", "Rate the answer."], 0),
    )


def _user_message(paragraphs: Sequence[str], num_images: int) -> Message:
    images = (ImagePart.original(number) for number in range(1, num_images + 1))
    return Message(role="user", parts=(*images, "\n\n".join(paragraphs)))
