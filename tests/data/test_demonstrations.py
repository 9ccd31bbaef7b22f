"""Demonstrations: a session that is written and read again has the tokens that it had."""

import asyncio

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.images import Image
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import ImagePart, Message
from arm_rl.data.demonstrations import read_demonstrations, write_demonstrations
from arm_rl.data.parquet_rows import DataError
from tests.support.scripted import ANSWER, ZOOM, Scripted, call, make_sample, noise, raw_call
from tools import load_tools
from tools.execution.local import LocalTools

SESSIONS = {
    "an answer": (ANSWER,),
    "a look": (call(), ANSWER),
    "two looks": (call(), call(image="observation_1"), ANSWER),
    "a failed look": (call([9, 9, 1, 1]), call(), ANSWER),
    "a broken call": (raw_call("{"), ANSWER),
    "the last turn": (call(), call(), call(), ANSWER),
    "out of turns": (call(), call(), call(), call()),
}


@pytest.fixture
def teach(template, tmp_path):
    """Runs a scripted session."""

    def teach(*turns, **changes):
        sample = make_sample(tmp_path, **changes)
        tools = LocalTools(load_tools(["configs/tools/digits.yaml"]))
        limits = SessionConfig(max_turns=4, last_turn_notice="Answer now.")
        return sample, asyncio.run(session.run(sample, Scripted(template, *turns), tools, limits, template=template))

    return teach


def laid(trajectory, pad_id):
    """What the learner would see of it, the teacher's log-probabilities left out."""
    seen = training_sample(trajectory, 1.0, image_pad_id=pad_id)
    return seen.token_ids, seen.loss_mask, seen.image_keys


@pytest.mark.parametrize("turns", SESSIONS.values(), ids=SESSIONS)
def test_a_demonstration_has_the_tokens_of_its_session(template, teach, tmp_path, turns):
    sample, finished = teach(*turns)
    path = tmp_path / "demonstrations.parquet"
    write_demonstrations(path, [(sample, finished)])
    (demonstration,) = read_demonstrations([str(path)], template)
    read, images = demonstration.trajectory, demonstration.images
    assert laid(read, template.image_pad_id) == laid(finished.trajectory, template.image_pad_id)
    assert [turn.token_ids for turn in read.turns] == [turn.token_ids for turn in finished.trajectory.turns]
    assert read.images == finished.trajectory.images
    assert {key: images[key] for key in images} == {info.key: finished.images[info.key] for info in read.images}
    assert [turn.text for turn in read.turns] == list(turns)


def test_many_demonstrations_share_their_images(template, teach, tmp_path):
    taught = [teach(call(), ANSWER), teach(ANSWER), teach(call([0, 0, 250, 250]), ANSWER)]
    path = tmp_path / "new folder" / "demonstrations.parquet"
    write_demonstrations(path, taught)
    demonstrations = read_demonstrations([str(path), str(path)], template)
    trajectories = [one.trajectory for one in demonstrations]
    pad_id = template.image_pad_id
    assert [laid(one, pad_id) for one in trajectories] == [
        laid(finished.trajectory, pad_id) for _, finished in taught
    ] * 2
    assert len({key for one in demonstrations for key in one.images}) == 3
    assert len({one.group_id for one in trajectories[:3]}) == 3


def test_without_tools_and_with_a_system_message(template, teach, tmp_path):
    messages = (
        Message(role="system", parts=("Be strict.",)),
        Message(role="user", parts=("See ", ImagePart(name="original_image"), ".")),
    )
    sample, finished = teach(ANSWER, tools=(), messages=messages)
    write_demonstrations(tmp_path / "d.parquet", [(sample, finished)])
    (read,) = read_demonstrations([str(tmp_path / "d.parquet")], template)
    assert laid(read.trajectory, template.image_pad_id) == laid(finished.trajectory, template.image_pad_id)


def test_a_fingerprint_is_of_demonstrations_in_their_order(template, teach, tmp_path):
    taught = [teach(call(), ANSWER), teach(ANSWER), teach(call([0, 0, 250, 250]), ANSWER)]

    def fingerprint(*chosen):
        write_demonstrations(tmp_path / "d.parquet", chosen)
        return read_demonstrations([str(tmp_path / "d.parquet")], template).fingerprint

    assert fingerprint(*taught) == fingerprint(*taught)
    assert len({fingerprint(*taught), fingerprint(*taught[::-1]), fingerprint(*taught[:2])}) == 3


@pytest.mark.parametrize("said", ["in the <image>", r"\<image>", r"a \\<image> <image>"])
def test_a_text_that_looks_like_an_image_stays_a_text(template, teach, tmp_path, said):
    messages = (Message(role="user", parts=("Not \\", ImagePart(name="original_image"), said)),)
    sample, finished = teach(ANSWER.replace("a 4", said), messages=messages)
    write_demonstrations(tmp_path / "d.parquet", [(sample, finished)])
    (read,) = read_demonstrations([str(tmp_path / "d.parquet")], template)
    assert laid(read.trajectory, template.image_pad_id) == laid(finished.trajectory, template.image_pad_id)
    assert said in read.trajectory.turns[0].text


USER = {"role": "user", "content": "<image>?"}
CALL = {"role": "assistant", "content": call()}
SEEN = {"role": "tool", "content": "observation_1: <image>"}
SAYS = {"role": "assistant", "content": ANSWER}


def turn(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("messages", "num_images", "message"),
    [
        ([USER], 1, "must hold assistant turns and end with one"),
        ([USER, CALL, SEEN], 2, "must hold assistant turns and end with one"),
        ([USER, SAYS, SAYS], 1, "assistant and tool messages must take turns"),
        ([USER, CALL, USER, SAYS], 2, "assistant and tool messages must take turns"),
        ([USER, CALL, SEEN, SEEN, SAYS], 3, "assistant and tool messages must take turns"),
        ([USER, CALL, SEEN, SAYS], 1, "messages have 2 <image> for 1 images"),
        ([USER, SAYS], 0, "messages have 1 <image> for 0 images"),
        ([USER, {"role": "judge", "content": "?"}, SAYS], 1, "a message needs a role"),
        (
            [USER, SAYS, {"role": "tool", "content": "?"}, SAYS],
            1,
            r"messages\[1\]: the tool message .* answers no call",
        ),
        (
            [USER, turn(call() + call()[len("<think>look closer</think>") :]), SEEN, SAYS],
            2,
            r"messages\[1\]: 2 calls in one turn",
        ),
        ([USER, turn(call() + " and more"), SEEN, SAYS], 2, r"messages\[1\]: text after a call.*'and more'"),
        (
            [USER, turn(call(name="saw")), SEEN, SAYS],
            2,
            r"a call of 'saw', which is not offered \(image_zoom_in_tool\)",
        ),
        ([USER, CALL, SEEN, turn(call(name="saw"))], 2, r"messages\[3\]: a call of 'saw', which is not offered"),
        ([USER, turn(call(box=["1", "2", "30", "40"])), SEEN, SAYS], 2, r"arguments.bbox_2d\[0\]: '1' is not of type"),
        (
            [USER, turn(raw_call('{"name": "image_zoom_in_tool", "parameters": {}}')), SEEN, SAYS],
            2,
            "no 'arguments', but 'parameters'",
        ),
        (
            [USER, turn(raw_call('{"name": "image_zoom_in_tool", "arguments": "{}"}')), SEEN, SAYS],
            2,
            "the arguments are not a JSON object but a text",
        ),
        ([USER, turn("<tool_call>{}"), SEEN, SAYS], 2, "a call has no </tool_call>"),
        ([], 0, "a non-empty list of messages"),
        (None, 0, "a non-empty list of messages"),
    ],
)
def test_a_broken_row_is_named(template, tmp_path, messages, num_images, message):
    stored = [{"bytes": Image.from_pil(noise(8, 8, seed)).data, "path": None} for seed in range(num_images)]
    good = {
        "messages": [USER, SAYS],
        "images": [{"bytes": Image.from_pil(noise(8, 8)).data, "path": None}],
        "tools": [ZOOM],
    }
    broken = {"messages": messages, "images": stored or None, "tools": [ZOOM]}
    pq.write_table(pa.Table.from_pylist([good, broken]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=f"d.parquet: row 1: .*{message}"):
        read_demonstrations([str(tmp_path / "d.parquet")], template)


def test_a_call_needs_an_offer(template, tmp_path):
    images = [{"bytes": Image.from_pil(noise(8, 8, seed)).data, "path": None} for seed in range(2)]
    pq.write_table(
        pa.Table.from_pylist([{"messages": [USER, CALL, SEEN, SAYS], "images": images, "tools": []}]),
        tmp_path / "d.parquet",
    )
    with pytest.raises(
        DataError, match=r"row 0: messages\[1\]: a call of 'image_zoom_in_tool', which is not offered \(no tool is\)"
    ):
        read_demonstrations([str(tmp_path / "d.parquet")], template)


def test_an_image_that_is_missing_is_named(template, tmp_path):
    row = {"messages": [USER, SAYS], "images": [{"bytes": None, "path": "gone.png"}], "tools": [ZOOM]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d.parquet: row 0: .*gone.png: No such file"):
        read_demonstrations([str(tmp_path / "d.parquet")], template)


def test_a_file_of_something_else_is_named(template, tmp_path):
    pq.write_table(pa.Table.from_pylist([{"prompt": "?"}]), tmp_path / "d.parquet")
    for path in (tmp_path / "d.parquet", tmp_path / "none.parquet"):
        with pytest.raises(
            DataError, match=f"{path.name}: (the column 'messages' is missing|not a readable parquet file)"
        ):
            read_demonstrations([str(path)], template)
