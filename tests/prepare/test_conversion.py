"""Formats of training data: what each reads as it is published, and round trips through all of them."""

import base64
import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies

from arm_rl.core.images import Image, ImageError
from arm_rl.core.placeholders import join_at_images
from arm_rl.data.demonstrations import read_demonstrations
from arm_rl.data.image_store import FetchLimits, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.data.samples import read_samples
from arm_rl.prepare.conversion import convert
from arm_rl.prepare.formats import FORMATS
from arm_rl.prepare.formats.pictures import Pictures
from arm_rl.prepare.records import Record, join_calls, split_calls
from jobs.prepare_data import main
from tests.support.http_server import LoopbackServer, send
from tests.support.scripted import ANSWER, ZOOM, call, noise

PICTURES = [Image.from_pil(noise(8, 8, seed)) for seed in range(4)]
SUFFIXES = {"verl": ".parquet", "sharegpt": ".json", "openai": ".jsonl"}
SCHEMA = {
    "type": "function",
    "function": {"name": "zoom", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
}


def read(path, kind, root=None):
    return [*FORMATS[kind].read(path, ImageSource(path.parent, root).read, BrokenRows())]


def write(path, kind, records, folder=None):
    plain = [Record(messages=one.messages, tools=one.tools, schemas=one.schemas, others=one.others) for one in records]
    return FORMATS[kind].write(path, iter(records), Pictures(path, folder), FORMATS[kind].layout(iter(plain)))


# What a row may say: texts of any kind, calls among them, images anywhere, and other columns.
words = strategies.text(alphabet=strategies.characters(exclude_categories=("Cs",)), max_size=30).map(
    lambda text: text.replace("<image>", "")
)
arguments = strategies.dictionaries(words, words | strategies.integers(-9, 9), max_size=2).map(json.dumps)
turns = strategies.lists(
    strategies.tuples(
        words,
        strategies.integers(0, 2),
        words,
        strategies.lists(strategies.tuples(words, arguments), max_size=2),
        strategies.none() | words,
    ),
    max_size=3,
)
values = (
    words
    | strategies.lists(words, max_size=2)
    | strategies.fixed_dictionaries({}, optional={"a": words, "b": strategies.integers(0, 9)})
)


@strategies.composite
def records(draw):
    messages, shown = [], []
    if draw(strategies.booleans()):
        messages.append(("system", draw(words.filter(bool))))
    for before, num_images, asked, calls, seen in draw(turns):
        pictures = [draw(strategies.sampled_from(PICTURES)) for _ in range(num_images)]
        shown += pictures
        between = [before, *[""] * (num_images - 1), asked] if num_images else [before + asked]
        messages.append(("user", join_at_images(between)))
        messages.append(("assistant", join_calls(asked, calls)))
        if seen is not None:
            messages.append(("tool", seen))
    tools = draw(strategies.none() | strategies.just(("zoom",)))
    others = {"data_source": draw(words)}
    if draw(strategies.booleans()):
        others |= {
            "reward_model": {"ground_truth": "1", "style": "rule"},
            "extra_info": {
                "index": draw(strategies.integers(0, 99)),
                "tools_kwargs": {ZOOM: {"create_kwargs": {"image": draw(words)}}},
            },
        }
    extra = draw(strategies.dictionaries(strategies.sampled_from(["note", "marks"]), words, max_size=2))
    schemas = None if tools is None else (SCHEMA,)
    return Record(
        messages=tuple(messages), images=tuple(shown), tools=tools, schemas=schemas, others={**others, **extra}
    )


def same(found, expected):
    """Demonstrations in parquet always say their tools."""
    assert [one.messages for one in found] == [one.messages for one in expected]
    assert [one.images for one in found] == [one.images for one in expected]
    assert [one.tools or () for one in found] == [one.tools or () for one in expected]
    assert [one.schemas for one in found] == [one.schemas for one in expected]
    assert [one.others for one in found] == [one.others for one in expected]


@given(
    rows=strategies.lists(records(), min_size=1, max_size=4),
    way=strategies.permutations(list(SUFFIXES)),
    files=strategies.booleans(),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_way_through_all_formats_loses_nothing(tmp_path_factory, rows, way, files):
    """In any order, images in the files or beside them; demonstrations and prompts with labels apart, as parquet needs them."""
    folder = tmp_path_factory.mktemp("formats")
    for kind_of_rows in (True, False):
        chosen = [one for one in rows if one.is_rl == kind_of_rows]
        found = chosen
        for number, kind in enumerate([*way, way[0]]):
            if found:
                path = folder / f"{kind_of_rows}-{number}{SUFFIXES[kind]}"
                assert write(path, kind, found, folder / "images" if files or kind == "sharegpt" else None) == len(
                    found
                )
                found = read(path, kind)
        same(found, chosen)
    kept = list((folder / "images").glob("*")) if (folder / "images").exists() else []
    assert len(kept) <= len(PICTURES), "each content once"


@given(before=words, calls=strategies.lists(strategies.tuples(words, arguments), max_size=3))
def test_calls_are_found_again_to_the_letter(before, calls):
    text = join_calls(before, calls)
    found = split_calls(text)
    assert join_calls(*found) == text
    if not any("<tool_call>" in part for one in calls for part in one) and not before.endswith("</tool_call>"):
        assert found == (before, calls)


def test_verls_published_columns(tmp_path):
    """As the DeepEyes recipe of verl writes them: `tools_kwargs` with a data URL, images as structs; nothing of it is lost on the way."""
    url = "data:image/jpeg;base64," + base64.b64encode(PICTURES[0].data).decode()
    row = {
        "data_source": "hiyouga/DeepEyes-Datasets-47k",
        "prompt": [{"role": "system", "content": "You help."}, {"role": "user", "content": "<image>\nWhich colour?"}],
        "images": [{"bytes": PICTURES[0].data, "path": None}],
        "ability": "vqa_agent",
        "reward_model": {"ground_truth": "red", "style": "model"},
        "extra_info": {
            "answer": "red",
            "index": 3,
            "need_tools_kwargs": True,
            "question": "Which colour?",
            "split": "train",
            "tools_kwargs": {ZOOM: {"create_kwargs": {"image": url}}},
        },
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    for source, target in (("in.parquet", "a.json"), ("a.json", "b.jsonl"), ("b.jsonl", "out.parquet")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [row]
    (item,) = json.loads((tmp_path / "a.json").read_text())
    assert item["system"] == "You help."
    assert item["conversations"] == [{"from": "human", "value": "<image>\nWhich colour?"}]
    assert (tmp_path / item["images"][0]).read_bytes() == PICTURES[0].data


def test_llama_factorys_published_shape(tmp_path):
    """A call as `function_call`, what came back as `observation`, tools as JSON in a text; and LLaVA's single `image`."""
    for number, picture in enumerate(PICTURES[:2]):
        (tmp_path / f"{number}.png").write_bytes(picture.data)
    items = [
        {
            "conversations": [
                {"from": "human", "value": "<image>What is it?"},
                {"from": "function_call", "value": '{"name": "zoom", "arguments": {"box": [1, 2]}}'},
                {"from": "observation", "value": "a dog <image>"},
                {"from": "gpt", "value": "A dog."},
            ],
            "system": "Look.",
            "tools": json.dumps([SCHEMA]),
            "images": ["0.png", "1.png"],
        },
        {
            "id": "llava",
            "image": "1.png",
            "conversations": [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}],
        },
    ]
    (tmp_path / "in.json").write_text(json.dumps(items))
    first, second = read(tmp_path / "in.json", "sharegpt")
    assert first.messages == (
        ("system", "Look."),
        ("user", "<image>What is it?"),
        ("assistant", '<tool_call>{"name": "zoom", "arguments": {"box": [1, 2]}}</tool_call>'),
        ("tool", "a dog <image>"),
        ("assistant", "A dog."),
    )
    assert (first.tools, first.images, second.images) == (("zoom",), (PICTURES[0], PICTURES[1]), (PICTURES[1],))
    convert(
        tmp_path / "in.json",
        tmp_path / "out.json",
        "sharegpt",
        "sharegpt",
        images=ImageSource(tmp_path),
        image_folder=tmp_path / "kept",
    )
    again = json.loads((tmp_path / "out.json").read_text())
    assert again[0]["conversations"] == items[0]["conversations"]
    assert again[0]["tools"] == items[0]["tools"]
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_openais_published_shape(tmp_path):
    """Calls with ids of their own, content that is null, images as URLs of any kind, and two calls in one turn."""
    (tmp_path / "dog.png").write_bytes(PICTURES[1].data)
    url = "data:image/png;base64," + base64.b64encode(PICTURES[0].data).decode()
    made = [
        {"id": f"abc{n}", "type": "function", "function": {"name": "zoom", "arguments": f'{{ "n":{n}}}'}}
        for n in (1, 2)
    ]
    line = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "and"}],
            },
            {"role": "assistant", "content": None, "tool_calls": made},
            {"role": "tool", "content": "one", "tool_call_id": "abc1"},
            {"role": "tool", "content": "two", "tool_call_id": "abc2"},
            {"role": "assistant", "content": "Done."},
        ],
        "tools": [SCHEMA],
        "parallel_tool_calls": False,
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n\n")
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "a.parquet")]) == 0
    assert main(["convert", str(tmp_path / "a.parquet"), str(tmp_path / "out.jsonl"), "--to", "openai"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == line


def test_what_is_converted_can_be_trained_on(tmp_path, template):
    """Demonstrations from OpenAI's lines, whose calls become the text that the policy writes; samples from ShareGPT's."""
    think, made = "<think>look closer</think>", split_calls(call())[1]
    line = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "?"}],
            },
            {
                "role": "assistant",
                "content": think,
                "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": name, "arguments": given}}
                    for name, given in made
                ],
            },
            {"role": "tool", "content": "nothing", "tool_call_id": "call_0"},
            {"role": "assistant", "content": ANSWER},
        ],
        "tools": [template.schemas[ZOOM]],
    }
    (tmp_path / "a.png").write_bytes(PICTURES[0].data)
    (tmp_path / "in.jsonl").write_text(json.dumps(line))
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "demonstrations.parquet")]) == 0
    (demonstration,) = read_demonstrations([str(tmp_path / "demonstrations.parquet")], template)
    assert [turn.text for turn in demonstration.trajectory.turns] == [call(), ANSWER]
    prompt = {"conversations": [{"from": "human", "value": "<image>?"}], "images": ["a.png"], "data_source": "zoom"}
    items = [
        {**prompt, "reward_model": {"ground_truth": str(label)}, "extra_info": {"id": f"s{label}"}} for label in (1, 2)
    ]
    (tmp_path / "in.json").write_text(json.dumps(items))
    assert main(["convert", str(tmp_path / "in.json"), str(tmp_path / "samples.parquet"), "--images", "files"]) == 0
    samples = read_samples([str(tmp_path / "samples.parquet")], ())
    assert [(sample.id, sample.label) for sample in samples] == [("s1", "1"), ("s2", "2")]
    assert {ref.path for sample in samples for ref in sample.images} == {
        str(tmp_path / "images" / f"{PICTURES[0].key}.png")
    }


def test_tools_known_by_name_need_their_files(tmp_path, capsys):
    row = {"messages": [{"role": "user", "content": "?"}], "images": [], "tools": [ZOOM]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "in.parquet")
    command = ["convert", str(tmp_path / "in.parquet"), str(tmp_path / "out.jsonl")]
    assert main(command) == 1
    assert (
        f"the schema of '{ZOOM}' is not known: give the files that list the tools with --tools"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out.jsonl").exists()
    assert main([*command, "--tools", "configs/tools/image_zoom.yaml"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["tools"][0]["function"]["name"] == ZOOM


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.json", "{}", r"in.json: row 0: conversations is None; a list of turns is needed"),
        ("in.json", "[3]", r"in.json: item 0: an object is needed, not 3"),
        ("in.json", "[", r"in.json: not a readable JSON file"),
        ("in.json", '[{"conversations": [{"from": "me", "value": ""}]}]', "from is 'me'; one of system, human"),
        ("in.json", '[{"conversations": [{"from": "gpt", "value": 3}]}]', "the value of a turn is a text, not 3"),
        (
            "in.json",
            '[{"conversations": [{"from": "gpt", "value": "<image>"}]}]',
            "the messages have 1 <image> for 0 images",
        ),
        ("in.json", '[{"conversations": [], "tools": "x"}]', "tools is not valid JSON"),
        ("in.jsonl", '{"messages": []}\n{', r"in.jsonl: row 1: not valid JSON"),
        ("in.jsonl", '{"messages": [{"role": "me"}]}', "a message needs a role"),
        (
            "in.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "audio"}]}]}',
            "a part of a message is text or image_url",
        ),
        (
            "in.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "../a.png"}}]}]}',
            "leads out of",
        ),
        (
            "in.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x,y"}]}]}',
            "it is not base64",
        ),
        (
            "in.jsonl",
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]}',
            "are not JSON",
        ),
        ("in.jsonl", '{"messages": [], "a": 1}\n{"messages": [], "a": "x"}', "a: its values are not of one kind"),
        ("in.jsonl", "", "there are no rows"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, capsys, name, text, message):
    (tmp_path / name).write_text(text)
    assert main(["convert", str(tmp_path / name), str(tmp_path / "out.parquet")]) == 1
    assert message.replace("\\", "") in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_broken_rows_are_left_out_and_counted(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n{\n{"messages": 3}\n')
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.json")]) == 1
    assert capsys.readouterr().err.endswith("; --skip leaves out rows that cannot be used\n")
    assert main(["convert", str(tmp_path / "in.jsonl"), str(tmp_path / "out.json"), "--skip"]) == 0
    assert "done: 1 rows are in" in (said := capsys.readouterr().out)
    assert "skipped 2 of 3 rows" in said


@contextlib.contextmanager
def serving(pages):
    """Serve these bytes by path; a text redirects there."""
    asked = []

    def respond(handler):
        asked.append(handler.path)
        page = pages.get(handler.path)
        if isinstance(page, str):
            send(handler, status=302, headers={"Location": page})
        else:
            send(handler, page or b"", status=404 if page is None else 200)

    with LoopbackServer(respond) as server:
        yield server.url, asked


def test_images_are_fetched_within_limits(tmp_path):
    pages = {
        "/a.png": PICTURES[0].data,
        "/there": "/a.png",
        "/round": "/round",
        "/text": b"not an image",
        "/large": bytes(5000),
    }
    with serving(pages) as (address, asked):
        source = ImageSource(tmp_path, limits=FetchLimits(fetch=True, max_bytes=4000, max_redirects=2))
        assert source.read(f"{address}/a.png") == PICTURES[0]
        assert source.read({"url": f"{address}/a.png"}) == PICTURES[0]
        assert asked == ["/a.png"], "an image that follows itself is fetched once"
        assert source.read(f"{address}/there") == PICTURES[0]
        for page, message in (
            ("large", "more than 4000 bytes"),
            ("none", "404"),
            ("text", "not a readable"),
            ("round", "redirects"),
        ):
            with pytest.raises(ImageError, match=message):
                source.read(f"{address}/{page}")
        with pytest.raises(ImageError, match="URLs are fetched with --fetch only"):
            ImageSource(tmp_path).read(f"{address}/a.png")


def test_large_data_passes_in_small_row_groups(tmp_path):
    rows = [
        Record(messages=(("user", f"{number}"),), others={"reward_model": {"ground_truth": "1"}})
        for number in range(300)
    ]
    write(tmp_path / "a.parquet", "verl", rows)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [128, 128, 44]


def test_mixed_kinds_in_a_column_are_refused():
    rows = [Record(messages=(), others={"a": value}) for value in (1, "x")]
    with pytest.raises(DataError, match="a: its values are not of one kind"):
        FORMATS["verl"].layout(iter(rows))
