"""What is said in the demos' tasks, word for word: the request, the calls, the thoughts and the judgments."""

import json
from collections.abc import Mapping
from typing import Any

SYSTEM_PROMPT = "Judge the answers."  # also in configs/prompts/digits.txt
NOTICE = "Answer now."  # session.last_turn_notice of the demos
LOOK = "look closer"  # the thought before a call
UNSURE = "unsure"  # the thought before a guess without a call
UNCLEAR = "unclear"  # the thought before a guess after a call that showed nothing


def request(question: str, claims: tuple[object, object]) -> str:
    """The user's text after the image: the question and the two claimed answers."""
    return f"{question} Answer 1: {claims[0]} Answer 2: {claims[1]}"


def call_turn(tool: str, arguments: Mapping[str, Any], thought: str = LOOK) -> str:
    """A turn that calls. It ends with the call: the engine stops there."""
    call = json.dumps({"name": tool, "arguments": dict(arguments)})
    return f"<think>{thought}</think><tool_call>{call}</tool_call>"


def answer_turn(choice: int | str, thought: str) -> str:
    """A turn that judges, without its end token."""
    return f"<think>{thought}</think><answer>Overall Judgment: Answer {choice} is better.</answer>"


def conclusion(fact: object) -> str:
    """Return the thought of a judge that has seen a fact."""
    return f"it is {fact}"
