"""The page at Weights & Biases, read back from the real offline run's file; and what becomes of it without a network."""

import io
import json
import logging
import re
from pathlib import Path

import pytest
from PIL import Image as PILImage
from rich.console import Console

from arm_rl.core import trajectory_file
from arm_rl.core.config import ConfigError, MetricsConfig, RunConfig
from arm_rl.run import wandb_log
from arm_rl.run.metrics_log import PARTS, MetricsLog
from tests.support import wandb_file
from tests.support.trajectories import looked, make_sample, make_scored, make_turn


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No keys of whoever runs the tests, and a server that is not there."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_DATA_DIR", "")  # set by the page; taken back after the test


def open_log(folder: Path, **config) -> MetricsLog:
    run = RunConfig(name="a run", seed=3)
    return MetricsLog(folder, MetricsConfig(**config), run, 10, stage="stage1", console=Console(file=io.StringIO()))


def run_file(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    wandb_file.wait_for_end(found)
    return found


def write_trajectories(folder: Path) -> Path:
    """One session with a zoom and one without, of a sample whose evidence is not known."""
    zoomed, images = looked(box=(500, 0, 750, 250), sample_id="with")
    plain = make_scored(make_turn("<answer>2</answer>"), sample_id="without", reward=0.3)
    samples = {"with": make_sample("with"), "without": make_sample("without", target_box=None)}
    path = folder / "trajectories" / "stage1-000002.parquet"
    trajectory_file.write(path, [zoomed, plain], samples, images, stage="stage1", step=2)
    return path


def test_the_page_holds_config_code_groups_and_every_step(tmp_path):
    with open_log(tmp_path) as log:
        log.log(1, {"reward/mean": 0.5, "tools/calls": 1.0})
        log.log(2, {"reward/mean": 0.75})
    records = list(wandb_file.records(run_file(tmp_path)))
    config = wandb_file.config(run_file(tmp_path))
    assert config["seed"] == 3
    assert re.fullmatch("[0-9a-f]{40}", config["code"]["commit"])
    groups = {one.metric.glob_name: one.metric.step_metric for one in records if one.metric.glob_name}
    assert groups == {f"{part}/*": "step" for part in PARTS}
    assert {one.metric.name: one.metric.summary.max for one in records if one.metric.name}["evaluation/accuracy"]
    rows = [
        (row["step"], row.get("reward/mean"), row.get("tools/calls")) for row in wandb_file.history(run_file(tmp_path))
    ]
    assert rows == [(1, 0.5, 1.0), (2, 0.75, None)]
    assert any(item.key.startswith(("cpu", "memory")) for one in records for item in one.stats.item), (
        "the machine's own metrics"
    )
    assert [one.run.job_type for one in records if one.HasField("run")] == ["run"]


def test_the_table_shows_sessions_with_images_and_boxes(tmp_path):
    with open_log(tmp_path) as log:
        log.log(1, {"reward/mean": 0.5})
        log.log_trajectories(tmp_path / "trajectories" / "stage1-000002.parquet")
        log.log(2, {"reward/mean": 0.5})  # the file is not written yet
        write_trajectories(tmp_path)
    tables = [row for row in wandb_file.history(run_file(tmp_path)) if "trajectories/nrows" in row]
    assert [(row["step"], row["trajectories/nrows"]) for row in tables] == [(2, 2)]
    (table,) = (one.artifact for one in wandb_file.records(run_file(tmp_path)) if one.artifact.type == "run_table")
    files = {entry.path: Path(entry.local_path) for entry in table.manifest.contents}
    assert all(path.is_relative_to(tmp_path) for path in files.values()), "they travel with the run's folder"
    content = json.loads(files["trajectories.table.json"].read_text())
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["sample"], row["calls"], row["reward"]) for row in rows] == [
        ("with", "image_zoom_in_tool: ok", 1.0),
        ("without", "", 0.3),
    ]
    assert "Which digit?" in rows[0]["question"]
    assert "Too small to read." in rows[0]["session"]
    boxes = {box["box_caption"]: box["position"] for box in rows[0]["image"]["boxes"]["boxes"]}
    assert boxes == {
        "turn 1": {"minX": 0.5, "minY": 0.0, "maxX": 0.75, "maxY": 0.25},
        "evidence": {"minX": 0.0, "minY": 0.0, "maxX": 0.25, "maxY": 0.25},
    }
    shown = files[rows[0]["observation"]["path"]]
    with PILImage.open(shown) as picture:
        assert picture.size == (32, 32)
    assert rows[1]["image"] is None


def test_the_same_run_goes_on(tmp_path):
    for step in (1, 2):
        with open_log(tmp_path) as log:
            log.log(step, {"reward/mean": 0.5})
    kept = (tmp_path / "wandb" / "stage1.id").read_text()
    started = [
        one.run
        for path in tmp_path.glob("wandb/offline-run-*/*.wandb")
        for one in wandb_file.records(path)
        if one.HasField("run")
    ]
    assert {one.run_id for one in started} == {kept}
    assert {(one.run_group, one.display_name) for one in started} == {(tmp_path.name, f"{tmp_path.name}-stage1")}


@pytest.mark.parametrize("kind", ["checkpoint", "export"])
def test_what_is_kept_outlives_its_folder(tmp_path, kind):
    folder = tmp_path / "checkpoints" / "3"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "weights").write_text("numbers")
    with open_log(tmp_path, wandb_artifacts="checkpoint") as log:
        log.log_artifact(kind, folder)
        (folder / "sub" / "weights").unlink()
    kept = [one.artifact for one in wandb_file.records(run_file(tmp_path)) if one.HasField("artifact")]
    if kind == "export":
        assert kept == []
        return
    (artifact,) = kept
    (entry,) = artifact.manifest.contents
    assert (artifact.type, set(artifact.aliases), entry.path) == ("model", {"3", "latest"}, "sub/weights")
    assert Path(entry.local_path).read_text() == "numbers"


def test_a_server_that_is_not_there_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_log, "_CONNECT_SECONDS", 2)
    monkeypatch.setattr(wandb_log, "_FINISH_SECONDS", 2)
    caplog.set_level(logging.WARNING)
    with open_log(tmp_path) as log:  # auto: there is a key
        log.log(1, {"reward/mean": 0.5})
    assert [row["reward/mean"] for row in wandb_file.history(run_file(tmp_path))] == [0.5]
    assert "recorded offline" in caplog.text
    assert "0" * 40 not in caplog.text


def test_a_page_that_fails_midway_is_a_warning(tmp_path, caplog):
    with open_log(tmp_path) as log:
        log.log_trajectories(tmp_path)  # a folder
        log.log_artifact("checkpoint", tmp_path / "nowhere")
        log.log(1, {"reward/mean": 0.5})
    assert "the run goes on" in caplog.text
    assert [row["reward/mean"] for row in wandb_file.history(run_file(tmp_path))] == [0.5]


def test_tensorboard_takes_back_the_steps_that_are_done_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (3, 4)):
        with open_log(tmp_path, wandb="disabled", tensorboard=True) as log:
            for step in steps:
                log.log(step, {"reward/mean": step / 2, "learner/grad_norm": float("nan")})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "stage1")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
        (4, 2.0),
    ]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_tensorboard_that_is_not_installed_is_said_at_the_door(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="metrics.tensorboard: the package tensorboard is not installed"):
        MetricsConfig(tensorboard=True)
