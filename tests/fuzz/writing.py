"""What a model may write, for hypothesis: near the right form and far from it. Shared by the tests of this folder."""

import json

from hypothesis import settings, strategies

THOROUGH = settings(max_examples=3 * settings.default.max_examples)  # of tests whose examples cost next to nothing

TAGS = [
    f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response", "answer", "tools") for slash in ("", "/")
]
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|image_pad|>",
    "<|vision_end|>",
    "<|video_pad|>",
]
HALVES = [
    *(tag[:-1] for tag in TAGS),
    *(tag[1:] for tag in TAGS),
    "<|im_",
    "end|>",
    "<|image",
    "_pad|>",
    "<",
    ">",
    "</",
    "<|",
    "|>",
]
WORDS = [
    "Overall Judgment: Answer 1 is better.",
    "Overall Judgment: True",
    "Overall Judgment: Answer 99 is better",
    "Check result: True",
    "<image>",
    "observation_1: ",
    "original_image",
    "text_0",
    "image_zoom_in_tool",
    '{"name": "image_zoom_in_tool", "arguments": ',
    '{"image": "original_image", "bbox_2d": [0, 0, 500, 500]}',
    "user\n",
    "assistant\n",
    "ASSISTANT_TURN",
]
CONTROL = ["\0", "\x1b[2J", "\r", "\n", "\t", "\x7f", "\u2028", "\u202e", "\ufeff", "\uffff", "\U0010ffff"]
LETTERS = ["é", "e\u0301", "👩\u200d👩\u200d👧", "ſ", "İ", "𝟙"]
ESCAPES = ["\\ud83d", "\\udc00", "\\u0000", "\\", '"', "\\n"]  # inside JSON
PIECES = strategies.sampled_from([*TAGS, *SPECIAL, *HALVES, *WORDS, *CONTROL, *LETTERS, *ESCAPES]) | strategies.text(
    max_size=8
)

TEXTS = strategies.lists(PIECES, max_size=20).map("".join)  # no lone surrogates: what a tokenizer decodes has none
PROSE = strategies.text(strategies.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=30)

NUMBERS = (
    strategies.integers()
    | strategies.floats()
    | strategies.sampled_from(
        [0, 1, -1, 500, 1000, 1001, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), float("inf")]
    )
)
NAMES = (
    strategies.sampled_from(
        ["original_image", "observation_1", "text_0", "text_1", "report", "../../etc/passwd", "", "\ud83d"]
    )
    | TEXTS
)
SCALARS = (
    strategies.none() | strategies.booleans() | NUMBERS | NAMES | strategies.text(strategies.characters(), max_size=10)
)
JSON = strategies.recursive(
    SCALARS,
    lambda inner: strategies.lists(inner, max_size=5) | strategies.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


INSIDE = ["", "1", '"x"', "9" * 5_000, "9" * 4_000, "1e999", "-Infinity", "NaN", f'"{"y" * 10_000}"', "0." + "1" * 900]


@strategies.composite
def deep_json(draw, deepest=100_000):
    """JSON as text, of any depth and length; the deepest is far beyond what Python's own parser follows."""
    opening, closing = draw(strategies.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"a":[', "]}]"), ("(", ")")]))
    depth = draw(strategies.integers(0, 40) | strategies.sampled_from([1_000, deepest]))
    left_open = draw(strategies.integers(0, 1))
    return opening * depth + draw(strategies.sampled_from(INSIDE)) + closing * max(depth - left_open, 0)


def call_of(name, arguments) -> str:
    """A call as it is written."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


BOXES = strategies.lists(strategies.integers(-10, 1100) | NUMBERS, min_size=3, max_size=5) | JSON
ZOOMS = strategies.fixed_dictionaries({"image": NAMES | JSON, "bbox_2d": BOXES}, optional={"zoom": JSON})
GOOD_ZOOMS = strategies.builds(
    lambda x, y: {"image": "original_image", "bbox_2d": [x, y, x + 400, y + 400]},
    strategies.integers(0, 500),
    strategies.integers(0, 500),
)
CALLS = strategies.builds(
    call_of,
    strategies.sampled_from(["image_zoom_in_tool", "echo", "", "telescope"]) | NAMES | SCALARS,
    GOOD_ZOOMS | ZOOMS | JSON,
) | strategies.builds("<tool_call>{}</tool_call>".format, deep_json(1_500) | TEXTS)
ANSWERS = strategies.builds("<answer>{}</answer>".format, strategies.sampled_from(WORDS[:3]) | TEXTS)
TURNS = strategies.builds("<think>{}</think>{}{}".format, PROSE, CALLS | ANSWERS, strategies.just("") | TEXTS) | TEXTS
TOOL_CALLS = strategies.builds(call_of, strategies.sampled_from(["image_zoom_in_tool", "echo"]), GOOD_ZOOMS | ZOOMS)
TOOL_TURNS = strategies.builds("<think>{}</think>{}".format, PROSE, TOOL_CALLS)
