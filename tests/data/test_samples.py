"""Preference data: rows to samples, what is refused with file and row, and the order in which samples are dealt out."""

import gc
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies

from arm_rl.core import images
from arm_rl.core.config import DataConfig
from arm_rl.core.images import Image
from arm_rl.core.types import ImagePart, ImageRef, Message, Sample
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import Cursor, file_names, parse_messages, read_samples
from tests.support.scripted import noise

LARGE = Image.from_pil(noise(100, 100))
PICTURES = [Image.from_pil(noise(8, 8, seed)) for seed in range(3)]


def stored(*pictures):
    return [{"bytes": picture.data, "path": None} for picture in pictures]


def make_row(**changes):
    row = {
        "data_source": "zoom",
        "prompt": [{"role": "user", "content": "<image>Which digit?"}],
        "images": stored(PICTURES[0]),
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"id": "first"},
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not ...}


@pytest.fixture
def read(tmp_path):
    """Writes rows to a file and reads them as samples."""

    def read(*rows, name="data.parquet", tools=("zoom", "search"), schema=None, **options):
        path = tmp_path / name
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, **options)
        return read_samples([str(path)], tools)

    return read


def test_a_full_row(read, tmp_path):
    (sample,) = read(
        make_row(
            prompt=[
                {"role": "system", "content": "Judge."},
                {"role": "user", "content": "<image>Before<image> and after. Answer 1: 4 Answer 2: 7"},
            ],
            images=stored(*PICTURES[:2]),
            extra_info={
                "id": "first",
                "texts": ["4", "7"],
                "tools": ["zoom"],
                "expected_tools": ["zoom"],
                "target_box": [0.0, 10.5, 250.0, 1000.0],
                "anything": "else",
            },
        )
    )
    path = str(tmp_path / "data.parquet")
    assert sample == Sample(
        id="first",
        track="zoom",
        messages=(
            Message(role="system", parts=("Judge.",)),
            Message(
                role="user",
                parts=(
                    ImagePart(name="original_image"),
                    "Before",
                    ImagePart(name="original_image_2"),
                    " and after. Answer 1: 4 Answer 2: 7",
                ),
            ),
        ),
        images=(ImageRef(path=path, row=0, index=0), ImageRef(path=path, row=0, index=1)),
        texts=("4", "7"),
        label="1",
        tools=("zoom",),
        expected_tools=("zoom",),
        target_box=(0.0, 10.5, 250.0, 1000.0),
    )


def test_a_row_with_the_least_in_it(read):
    (sample,) = read(make_row(images=..., extra_info=..., prompt=[{"role": "user", "content": "?"}]))
    assert (sample.id, sample.images, sample.texts, sample.expected_tools, sample.target_box) == (
        "data-0",
        (),
        (),
        (),
        None,
    )
    assert sample.tools == ("zoom", "search"), "all of them, where the row does not say"


def test_a_row_may_offer_no_tools(read):
    schema = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
            ("reward_model", pa.struct([("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("tools", pa.list_(pa.string()))])),
        ]
    )
    rows = [
        make_row(images=..., prompt=[{"role": "user", "content": "?"}], extra_info={"tools": tools})
        for tools in ([], None, ["zoom"])
    ]
    assert [sample.tools for sample in read(*rows, schema=schema)] == [(), ("zoom", "search"), ("zoom",)]


@pytest.mark.parametrize(
    ("written", "label"),
    [("1", "1"), (" 2\n", "2"), ("12", "12"), ("True", "true"), ("FALSE", "false"), (3, "3"), (True, "true")],
)
def test_labels(read, written, label):
    (sample,) = read(make_row(reward_model={"ground_truth": written}))
    assert sample.label == label


def test_ids_may_be_numbers(read):
    assert [sample.id for sample in read(make_row(extra_info={"id": 0}), make_row(extra_info={"id": 7}))] == ["0", "7"]


def test_every_image_is_found_where_its_sample_says(read):
    rows = [make_row(images=stored(picture), extra_info={"id": str(number)}) for number, picture in enumerate(PICTURES)]
    samples = read(*rows, row_group_size=2)
    assert [images.load(sample.images[0]) for sample in samples] == PICTURES


def test_image_bytes_stay_in_the_file(read):
    """They pass through, a few rows at a time."""
    tracemalloc.start()
    kept = read(
        *(make_row(images=stored(LARGE), extra_info={"id": str(number)}) for number in range(400)), row_group_size=50
    )[0]
    gc.collect()
    tracemalloc.reset_peak()
    assert next(iter(read_samples([kept.images[0].path], ("zoom", "search")))) == kept
    assert tracemalloc.get_traced_memory()[1] < 100 * len(LARGE.data)
    tracemalloc.stop()
    assert images.load(kept.images[0]) == LARGE


@pytest.mark.parametrize(
    "kind", [pa.struct([("bytes", pa.binary())]), pa.struct([("path", pa.string())])], ids=["only bytes", "only paths"]
)
def test_images_need_not_have_both_bytes_and_paths(tmp_path, kind):
    name = kind[0].name
    (tmp_path / "a.png").write_bytes(PICTURES[0].data)
    rows = make_row(images=[{name: PICTURES[0].data if name == "bytes" else "a.png"}])
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([rows]), path)
    (sample,) = read_samples([str(path)], ())
    assert images.load(sample.images[0]) == PICTURES[0]


USER = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [{"role": "user", "content": "<image><image>"}]}, "prompt has 2 <image> for 1 images"),
        ({"prompt": [USER]}, "prompt has 0 <image> for 1 images"),
        ({"images": []}, "prompt has 1 <image> for 0 images"),
        ({"images": None}, "prompt has 1 <image> for 0 images"),
        ({"prompt": []}, "a non-empty list of messages is needed"),
        ({"prompt": None}, "a non-empty list of messages is needed"),
        (
            {"prompt": [{"role": "judge", "content": "<image>"}]},
            r"a message needs a role \(system, user, assistant, tool\)",
        ),
        ({"prompt": [{"role": "user", "content": None}]}, "a text as content"),
        (
            {"prompt": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "4"}]},
            "prompt ends with an assistant message",
        ),
        ({"prompt": [{"role": None, "content": "<image>"}]}, "a message needs a role"),
        (
            {"reward_model": {"ground_truth": "0"}},
            "reward_model.ground_truth is '0'; the number of the better answer, or true or false",
        ),
        ({"reward_model": {"ground_truth": "A"}}, "reward_model.ground_truth is 'a'"),
        ({"reward_model": {"ground_truth": ""}}, "reward_model.ground_truth is ''"),
        ({"reward_model": {"ground_truth": None}}, "reward_model.ground_truth is 'none'"),
        ({"reward_model": {"ground_truth": "100"}}, "reward_model.ground_truth is '100'"),
        ({"reward_model": None}, "reward_model.ground_truth is ''"),
        (
            {"extra_info": {"target_box": [1.0, 2.0]}},
            r"extra_info.target_box is \[1.0, 2.0\]; x1, y1, x2, y2 from 0 to 1000",
        ),
    ],
)
def test_a_broken_row_is_named(read, changes, message):
    good = make_row(extra_info={"id": "good", "target_box": None})
    schema = pa.Table.from_pylist([make_row(extra_info={"id": "x", "target_box": [1.0] * 4})]).schema
    with pytest.raises(DataError, match=rf"data.parquet: row 1: .*{message}"):
        read(good, make_row(**changes), schema=schema)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a text"}, "a non-empty list of messages"),
        ({"prompt": ["a text"]}, "a message needs a role"),
        ({"reward_model": "1"}, "reward_model is '1'; a struct with named fields is needed"),
        ({"extra_info": '{"id": 3}'}, "extra_info is .*; a struct with named fields is needed"),
        ({"extra_info": {"tools": "zoom"}}, "extra_info.tools is 'zoom'; a list of texts is needed"),
        ({"extra_info": {"texts": "4"}}, "extra_info.texts is '4'; a list of texts is needed"),
    ],
)
def test_a_column_of_the_wrong_kind_is_named(read, changes, message):
    with pytest.raises(DataError, match=rf"data.parquet: row 0: {message}"):
        read(make_row(**changes))


@pytest.mark.parametrize("column", ["data_source", "prompt", "reward_model"])
def test_a_missing_column_is_named(read, column):
    with pytest.raises(DataError, match=f"data.parquet: the column '{column}' is missing; found: "):
        read(make_row(**{column: ...}))


def test_ids_must_be_unique(read, tmp_path):
    with pytest.raises(DataError, match="the id 'first' stands twice"):
        read(make_row(), make_row())
    read(make_row(), name="a.parquet")
    read(make_row(), name="b.parquet")
    with pytest.raises(DataError, match="the id 'first' stands twice"):
        read_samples([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], ())


def test_files_of_one_name_have_ids_of_their_own(read, tmp_path):
    files = []
    for folder, rows in (("geo", 2), ("chart", 3)):
        (tmp_path / folder).mkdir()
        read(*[make_row(extra_info=...)] * rows, name=f"{folder}/train.parquet")
        files.append(str(tmp_path / folder / "train.parquet"))
    for config in (DataConfig(), DataConfig(broken_rows="skip")):
        samples = read_samples(files, (), config)
        assert [sample.id for sample in samples] == [
            *(f"geo/train-{n}" for n in range(2)),
            *(f"chart/train-{n}" for n in range(3)),
        ]
    assert [sample.id for sample in read_samples(files[:1], ())] == ["train-0", "train-1"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/train.parquet"], ["train"]),
        (["a/train.parquet", "b/train.parquet", "c.parquet"], ["a/train", "b/train", "c"]),
        (["a/x/t.parquet", "b/x/t.parquet", "b/y/t.parquet"], ["a/x/t", "b/x/t", "y/t"]),
        (["t.parquet", "t.pq"], ["t.parquet", "t.pq"]),
        (["v1.0.parquet", "v1.1.parquet"], ["v1.0", "v1.1"]),
    ],
)
def test_the_name_of_a_file_is_as_short_as_can_be(files, names):
    assert [*file_names(files).values()] == names


def test_a_fingerprint_is_of_rows_in_their_order(read, tmp_path):
    rows = [make_row(extra_info={"id": str(number), "texts": ["a", "b"]}) for number in range(3)]
    known = read(*rows, name="a.parquet").fingerprint
    assert read(*rows, name="b.parquet", row_group_size=1).fingerprint == known, "another file with the same rows"
    changed = {
        "a row more": [*rows, make_row(extra_info={"id": "3", "texts": ["a", "b"]})],
        "a row less": rows[:2],
        "another order": rows[::-1],
        "another label": [make_row(extra_info=rows[0]["extra_info"], reward_model={"ground_truth": "2"}), *rows[1:]],
        "another image": [make_row(extra_info=rows[0]["extra_info"], images=stored(PICTURES[1])), *rows[1:]],
        "another answer": [make_row(extra_info={"id": "0", "texts": ["a", "c"]}), *rows[1:]],
    }
    assert all(read(*others, name="c.parquet").fingerprint != known for others in changed.values())
    cursor = Cursor(read(*rows, name="a.parquet"), seed=1)
    cursor.take(2)
    Cursor(read(*rows, name="b.parquet"), seed=1).restore(cursor.state())
    Cursor(read(*rows[::-1], name="b.parquet"), seed=1).restore({"epoch": 0, "position": 2})  # of an older version
    for others in changed.values():
        with pytest.raises(DataError, match="data.train: the data has changed since the checkpoint"):
            Cursor(read(*others, name="c.parquet"), seed=1).restore(cursor.state())


def test_files_follow_one_another(read, tmp_path):
    read(make_row(extra_info={"id": "1"}), make_row(extra_info={"id": "2"}), name="a.parquet")
    read(make_row(extra_info={"id": "3"}), name="b.parquet")
    samples = read_samples([str(tmp_path / name) for name in ("b.parquet", "a.parquet")], ())
    assert [sample.id for sample in samples] == ["3", "1", "2"]


def test_files_that_cannot_be_read_are_named(read, tmp_path):
    with pytest.raises(DataError, match=r"none.parquet: not a readable parquet file"):
        read_samples(["none.parquet"], ())
    (tmp_path / "text.parquet").write_text("id,label")
    with pytest.raises(DataError, match=r"text.parquet: not a readable parquet file"):
        read_samples([str(tmp_path / "text.parquet")], ())
    with pytest.raises(DataError, match="not a readable parquet file"):
        read_samples([str(tmp_path)], ())
    schema = pa.Table.from_pylist([make_row()]).schema
    with pytest.raises(DataError, match=r"data.parquet: there are no rows"):
        read(schema=schema)


def test_the_text_of_a_placeholder_is_written_with_a_backslash(read):
    (sample,) = read(make_row(prompt=[{"role": "user", "content": r"<image>Answer 1: the \<image> Answer 2: 7"}]))
    assert sample.messages[0].parts == (ImagePart(name="original_image"), "Answer 1: the <image> Answer 2: 7")


def test_images_are_named_by_where_they_stand():
    messages, number = parse_messages(
        [
            {"role": "user", "content": "<image> and <image>"},
            {"role": "assistant", "content": "<image>?"},
            {"role": "tool", "content": "observation_1: <image><image>"},
            {"role": "tool", "content": "<image>"},
        ],
        "here",
    )
    names = (
        "original_image",
        "original_image_2",
        "original_image_3",
        "observation_1",
        "observation_2",
        "observation_3",
    )
    assert tuple(name for message in messages for name in message.image_names) == names
    assert number == 6
    assert messages[2].text == "observation_1: "


def make_samples(number):
    return [Sample(id=str(index), track="t", messages=(), label="1") for index in range(number)]


def ids(samples):
    return [int(sample.id) for sample in samples]


def test_an_epoch_deals_out_every_sample_once():
    cursor = Cursor(make_samples(50), seed=3)
    epochs = [ids(cursor.take(50)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3, "each in an order of its own"
    assert epochs[0] != list(range(50))


def test_the_order_depends_on_the_seed_only():
    assert ids(Cursor(make_samples(50), seed=3).take(75)) == ids(Cursor(make_samples(50), seed=3).take(75))
    assert ids(Cursor(make_samples(50), seed=3).take(75)) != ids(Cursor(make_samples(50), seed=4).take(75))


@given(
    size=strategies.integers(1, 12),
    takes=strategies.lists(strategies.integers(0, 30), max_size=6),
    split=strategies.integers(0, 6),
)
def test_a_cursor_goes_on_where_it_stood(size, takes, split):
    """However the samples are taken, and wherever the run is broken off: the same sequence."""
    whole = ids(Cursor(make_samples(size), seed=1).take(sum(takes)))
    first = Cursor(make_samples(size), seed=1)
    taken = [index for number in takes[:split] for index in ids(first.take(number))]
    second = Cursor(make_samples(size), seed=1)
    second.restore(first.state())
    taken += [index for number in takes[split:] for index in ids(second.take(number))]
    assert taken == whole


def test_a_state_of_more_samples_is_refused():
    """Otherwise it would look for the epoch's end for ever."""
    cursor = Cursor(make_samples(10), seed=1)
    cursor.take(8)
    with pytest.raises(DataError, match="dealt out 8 samples of an epoch, and now there are 5"):
        Cursor(make_samples(5), seed=1).restore(cursor.state())


def test_there_must_be_samples():
    with pytest.raises(DataError, match="no samples"):
        Cursor([], seed=1)
