"""Training data that stays on disk: bounded memory, the order of a seed, mixtures, prompts that are too long, and going on."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies

from arm_rl.core.config import ConfigError, DataConfig
from arm_rl.core.config_file import load, load_saved, save
from arm_rl.core.images import Image
from arm_rl.core.parquet import RowReader
from arm_rl.core.seeding import derive_seed
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.data.demonstrations import read_demonstrations
from arm_rl.data.epoch_order import Order
from arm_rl.data.parquet_rows import DataError
from arm_rl.data.samples import Cursor, read_samples
from arm_rl.training.sft import Batches
from tests.support.scripted import ANSWER, noise

PICTURE = Image.from_pil(noise(16, 16))


def row(number, track="zoom", text="Which?", picture=PICTURE.data, path=None):
    return {
        "data_source": track,
        "prompt": [{"role": "user", "content": f"<image>{number}: {text}"}],
        "images": [{"bytes": picture, "path": path}],
        "reward_model": {"ground_truth": "1"},
        "extra_info": {"id": str(number)},
    }


def write(path, rows, **options):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([*rows]), path, **options)
    return str(path)


# In a process of its own, under a limit of its memory: what was used before and 208 MB.
LIMITED = """
import json, logging, resource, sys
from arm_rl.core import images
from arm_rl.data.samples import Cursor, read_samples

path = sys.argv[1]
logging.basicConfig(level=logging.INFO)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (208 << 20),) * 2)
samples = read_samples([path], ())
cursor = Cursor(samples, seed=0)
ids = [sample.id for _ in range(int(sys.argv[2])) for sample in cursor.take(1)]
texts = sum(len(message.text) for sample in cursor.take(20) for message in sample.messages)
shown = sum(len(images.load(sample.images[0]).data) for sample in cursor.take(20))
print(json.dumps({"ids": ids, "texts": texts, "shown": shown}))
"""


@pytest.mark.parametrize(
    ("row_group_size", "num_taken"), [(16, 700), (10_000, 30)], ids=["small row groups", "one row group"]
)
def test_data_larger_than_the_memory_is_read(tmp_path, row_group_size, num_taken):
    """Every row and image is checked, samples are dealt out and some images are loaded, where the file alone would not fit."""
    picture, text = Image.from_pil(noise(400, 400)).data, "word " * 16_000
    schema = pa.Table.from_pylist([row(0)]).schema
    plain = {"compression": "none", "use_dictionary": False, "max_rows_per_page": 16}
    with pq.ParquetWriter(tmp_path / "large.parquet", schema, **plain) as writer:
        for start in range(0, 600, min(row_group_size, 600)):
            rows = [
                row(number, text=text, picture=picture) for number in range(start, min(start + row_group_size, 600))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=row_group_size)
    assert (tmp_path / "large.parquet").stat().st_size > 320 << 20
    environment = {
        **os.environ,
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_MMAP_THRESHOLD_": "1000000",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "large.parquet"), str(num_taken)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert ("every sample is slow to read" in done.stderr) == (row_group_size > 1000)
    expected = [
        number
        for epoch in range(2)
        for number in np.random.default_rng(derive_seed(0, "epoch", epoch)).permutation(600)
    ]
    assert told["ids"] == [str(number) for number in expected[:num_taken]]
    assert told["texts"] > 20 * len(text)
    assert told["shown"] == 20 * len(picture)


def order_of(samples, weights, epochs=3):
    cursor = Cursor.from_weights(samples, 7, weights)
    return [[sample.id for sample in cursor.take(len(samples))] for _ in range(epochs)]


@pytest.fixture
def three_tracks(tmp_path):
    """60 samples: 40 of the first track, 15 of the second, 5 of the third; in shards."""
    tracks = ["many"] * 40 + ["some"] * 15 + ["few"] * 5
    for shard in range(3):
        rows = [row(number, track=tracks[number]) for number in range(shard, 60, 3)]
        write(tmp_path / "shards" / f"part-{shard}.parquet", rows, row_group_size=4)
    return read_samples([str(tmp_path / "shards")], ())


def test_without_weights_every_sample_is_dealt_once_an_epoch(three_tracks):
    epochs = order_of(three_tracks, {})
    assert all(sorted(epoch, key=int) == [str(number) for number in range(60)] for epoch in epochs)
    expected = np.random.default_rng(derive_seed(7, "epoch", 1)).permutation(60)
    assert epochs[1] == [three_tracks[int(place)].id for place in expected], (
        "the order that runs had before there were weights"
    )


def test_weights_are_shares_of_an_epoch(three_tracks):
    track = {sample.id: sample.track for sample in three_tracks}
    epochs = order_of(three_tracks, {"many": 1, "some": 1, "few": 2}, epochs=4)
    for epoch in epochs:
        assert Counter(track[one] for one in epoch) == {"many": 15, "some": 15, "few": 30}
    dealt = Counter(one for epoch in epochs for one in epoch)
    spread = {name: {dealt[one] for one in track if track[one] == name} for name in ("many", "some", "few")}
    assert spread == {"many": {1, 2}, "some": {4}, "few": {24}}, (
        "a track goes through all its samples before one comes again"
    )
    assert epochs[0] != epochs[1]
    assert [track[one] for one in epochs[0]] != sorted(track[one] for one in epochs[0]), (
        "mixed, not one after the other"
    )


def test_a_weight_of_0_leaves_a_track_out(three_tracks):
    (epoch,) = order_of(three_tracks, {"many": 0, "some": 3, "few": 1}, epochs=1)
    assert {sample.track for sample in three_tracks if sample.id in epoch} == {"some", "few"}


@pytest.mark.parametrize("weights", [{"many": 1}, {"many": 1, "some": 1, "few": 1, "none": 1}])
def test_weights_must_name_the_tracks_of_the_data(three_tracks, weights):
    with pytest.raises(DataError, match=r"data.weights: a weight for each track of the data \(few, many, some\)"):
        Cursor.from_weights(three_tracks, 0, weights)


@pytest.mark.parametrize("weights", [{"a": -1.0, "b": 2.0}, {"a": 0.0}, {"a": float("inf")}])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ConfigError, match="data.weights: none negative"):
        DataConfig(weights=weights)


@given(
    sizes=strategies.lists(strategies.integers(1, 9), min_size=1, max_size=4),
    weights=strategies.lists(strategies.floats(0.01, 5), min_size=4, max_size=4),
    stop=strategies.integers(0, 90),
)
def test_a_mixture_goes_on_at_any_sample(sizes, weights, stop):
    tracks = [code for code, size in enumerate(sizes) for _ in range(size)]
    names = [f"track{code}" for code in range(len(sizes))]
    mixed = Order.from_weights(3, names, tracks, dict(zip(names, weights, strict=False)))
    samples = [f"s{number}" for number in range(len(tracks))]
    first, whole = Cursor(samples, 3, mixed), Cursor(samples, 3, mixed)
    expected = whole.take(stop + 30)
    assert first.take(stop) == expected[:stop]
    second = Cursor(samples, 3, Order.from_weights(3, names, tracks, dict(zip(names, weights, strict=False))))
    second.restore(json.loads(json.dumps(first.state())))
    assert second.take(30) == expected[stop:]
    assert [second.sample_at(number) for number in range(stop + 30)] == expected


@pytest.mark.parametrize("max_bytes", [1, 3_000, 1 << 20], ids=["nothing kept", "a little kept", "all kept"])
@given(order=strategies.lists(strategies.integers(0, 29), max_size=40))
@settings(max_examples=25)
def test_rows_are_read_in_any_order(tmp_path_factory, max_bytes, order):
    path = tmp_path_factory.getbasetemp() / "any_order.parquet"
    if not path.exists():
        pq.write_table(
            pa.table({"a": range(30), "b": ["x" * number for number in range(30)], "c": range(30)}),
            path,
            row_group_size=7,
        )
    reader = RowReader(max_bytes)
    assert [reader.row(str(path), number, ("a", "b")) for number in order] == [
        {"a": number, "b": "x" * number} for number in order
    ]
    with pytest.raises(IndexError):
        reader.row(str(path), 30, ("a",))


def test_images_in_files_and_in_rows_stay_where_they_are(tmp_path):
    """A path beside bytes is only a name; a row may have images of both kinds."""
    noise(20, 20, 5).save(tmp_path / "a.png")
    rows = [row(0), row(1, picture=None, path="a.png"), row(2, path="no such file.png"), row(3)]
    rows[3]["images"].append({"bytes": None, "path": "a.png"})
    rows[3]["prompt"][0]["content"] += "<image>"
    samples = read_samples([write(tmp_path / "d.parquet", rows)], ())
    file = str(tmp_path / "a.png")
    assert [[(ref.path, ref.row, ref.index) for ref in sample.images] for sample in samples] == [
        [(samples.files[0], 0, 0)],
        [(file, None, 0)],
        [(samples.files[0], 2, 0)],
        [(samples.files[0], 3, 0), (file, None, 0)],
    ]


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(DataError, match="a folder without parquet files"):
        read_samples([str(tmp_path)], ())


def test_an_id_that_stands_in_two_shards_is_left_out_once(tmp_path, caplog):
    files = [
        write(tmp_path / f"{shard}.parquet", [row(number) for number in numbers])
        for shard, numbers in enumerate([(1, 2), (2, 3, 1)])
    ]
    samples = read_samples(files, (), DataConfig(broken_rows="skip"))
    assert [sample.id for sample in samples] == ["1", "2", "3"]
    assert "skipped 2 of 5 rows" in caplog.text
    assert f"{files[1]}: row 0: the id '2' stands twice, first in {files[0]}: row 1" in caplog.text


def demonstration(number, track="zoom"):
    return {
        "id": str(number),
        "data_source": track,
        "messages": [{"role": "user", "content": f"<image>{number}?"}, {"role": "assistant", "content": ANSWER}],
        "images": [{"bytes": PICTURE.data, "path": None}],
        "tools": [],
    }


def batches(path, template, **data):
    config = SftConfig(data=DataConfig(train=(path,), **data), batch_size=4, num_epochs=2)
    return Batches(config, template, read_demonstrations([path], template, config.data))


def numbers(batch, template):
    """Which demonstrations a batch holds, in order."""
    found = []
    for rank in batch.micro_batches:
        for micro_batch in rank:
            found += [
                int(template.decode(one.token_ids).split("?")[0].split("<|vision_end|>")[-1]) for one in micro_batch
            ]
    return found


def test_demonstrations_are_read_when_their_step_comes(tmp_path, template):
    """Read in the order of the seed, an epoch split evenly; a step is the same whether or not others were read before."""
    path = write(tmp_path / "d.parquet", [demonstration(number) for number in range(10)], row_group_size=3)
    made = batches(path, template)
    assert made.num_steps == 6
    for epoch in range(2):
        expected = np.random.default_rng(derive_seed(0, "sft", epoch)).permutation(10).tolist()
        for step in range(3):
            batch, images = batches(path, template).read(3 * epoch + step)
            assert made.read(3 * epoch + step)[0] == batch
            assert sorted(numbers(batch, template)) == sorted(expected[10 * step // 3 : 10 * (step + 1) // 3])
            assert set(images) == {PICTURE.key}


def test_demonstrations_are_mixed_and_cut_by_length(tmp_path, template, caplog):
    rows = [demonstration(number, track="zoom" if number < 6 else "pages") for number in range(8)]
    path = write(tmp_path / "d.parquet", rows)
    mixed = batches(path, template, weights={"zoom": 1, "pages": 3})
    drawn = Counter(number for step in range(2) for number in numbers(mixed.read(step)[0], template))
    assert sum(drawn[number] for number in (6, 7)) == 6
    rows[3]["messages"][0]["content"] += " and" * 50
    kept = read_demonstrations([write(tmp_path / "e.parquet", rows)], template, max_tokens=100)
    assert len(kept) == 7
    assert "left out 1 of 8 rows for their length; the first is" in caplog.text


def test_weights_are_written_and_read_again(tmp_path):
    overrides = ["model.path=m", "data.train=[d.parquet]", "data.weights={zoom: 2, pages: 1}", "data.weights.texts=0.5"]
    config = load(TrainConfig, "configs/arm_thinker_stage1.yaml", overrides)
    assert config.data.weights == {"zoom": 2.0, "pages": 1.0, "texts": 0.5}
    save(config, tmp_path / "config.yaml")
    assert load_saved(tmp_path / "config.yaml") == config
