"""What is said in the digits task, word for word: the claims, the calls, the thoughts and the judgments."""

import json

from arm_rl.digits.scenes import Box

SYSTEM_PROMPT = "Judge the answers."  # also in configs/prompts/digits.txt
TOOL = "image_zoom_in_tool"
NOTICE = "Answer now."  # session.last_turn_notice of the demo
LOOK = "look closer"  # the thought before a call
UNSURE = "unsure"  # the thought before a guess without a call
UNCLEAR = "unclear"  # the thought before a guess after a call that showed nothing


def request(question: str, claims: tuple[int | str, int | str]) -> str:
    """The user's text after the image: the question and the two claimed answers."""
    return f"{question} Answer 1: {claims[0]} Answer 2: {claims[1]}"


def call_turn(box: Box, image: str = "original_image", thought: str = LOOK) -> str:
    """A turn that zooms. It ends with the call: the engine stops there."""
    call = json.dumps({"name": TOOL, "arguments": {"image": image, "bbox_2d": list(box)}})
    return f"<think>{thought}</think><tool_call>{call}</tool_call>"


def answer_turn(choice: int | str, thought: str) -> str:
    """A turn that judges, without its end token."""
    return f"<think>{thought}</think><answer>Overall Judgment: Answer {choice} is better.</answer>"


def seen(digit: int) -> str:
    """The thought of someone who has read the digit."""
    return f"it is {digit}"
