"""Samples with which no session could begin: told at the door, with file and row, or left out and counted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arm_rl.core.config_file import build
from arm_rl.core.images import Image
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.parquet_rows import DataError
from arm_rl.training.inputs import read_inputs
from tests.support.scripted import noise

PIXELS = {"bytes": Image.from_pil(noise(64, 64)).data}


def row(number, messages, images=1):
    content = "<image>" * images
    return {
        "data_source": "scenes",
        "prompt": [{"role": role, "content": content + text if role == "user" else text} for role, text in messages],
        "images": [PIXELS] * images,
        "reward_model": {"ground_truth": "1"},
        "extra_info": {"id": str(number)},
    }


@pytest.fixture
def read(judge_folder, tmp_path):
    def read(rows, broken_rows, **changes):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
        values = {
            "run": {"name": "x"},
            "model": {"path": str(judge_folder)},
            "template": {"system_prompt": "configs/prompts/digits.txt"},
            "tools": {"files": ["configs/tools/digits.yaml"]},
            "data": {"train": [str(tmp_path / "d.parquet")], "broken_rows": broken_rows},
        }
        return read_inputs(build(TrainConfig, values | changes))

    return read


SHORT = [("user", "which digit?")]
LIMITS = {"session": {"max_prompt_tokens": 100}, "rollout": {"max_images": 2}}


def test_too_many_images_are_refused_or_left_out(read, tmp_path):
    rows = [row(0, SHORT), row(1, SHORT, images=3), row(2, SHORT, images=2)]
    with pytest.raises(
        DataError, match=f"^{tmp_path}/d.parquet: row 1: the prompt has 3 images, rollout.max_images is 2$"
    ):
        read(rows, "stop", **LIMITS)
    inputs = read(rows, "skip", **LIMITS)
    assert [sample.id for sample in inputs.samples] == ["0", "2"]
    assert inputs.left_out == {"data/skipped_rows": 1, "data/too_long_rows": 0}


@pytest.mark.parametrize("broken_rows", ["stop", "skip"])
def test_prompts_too_long_are_left_out_and_counted(read, tmp_path, caplog, broken_rows):
    long = row(1, [("user", "which digit? " * 100)])
    inputs = read([row(0, SHORT), long, row(2, SHORT)], broken_rows, **LIMITS)
    assert [sample.id for sample in inputs.samples] == ["0", "2"]
    assert inputs.left_out == {"data/skipped_rows": 0, "data/too_long_rows": 1}
    assert (
        f"left out 1 of 3 rows for their length; the first is {tmp_path}/d.parquet: row 1: the prompt has "
        in caplog.text
    )
    with pytest.raises(DataError, match="none of the 1 rows can be used:\n.*session.max_prompt_tokens is 100"):
        read([long], broken_rows, **LIMITS)
