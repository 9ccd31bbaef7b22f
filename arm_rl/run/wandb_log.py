"""A run's page at Weights & Biases: metrics in groups, a table of sampled trajectories, artifacts. A failing network never stops a run.

What is logged stands in `wandb/` in the run folder, whether it reaches the server or not; `wandb sync` brings it there later.
"""

import dataclasses
import logging
import os
import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import wandb
from PIL import Image as PILImage
from wandb.sdk.lib import wbauth

from arm_rl.core import trajectory_file
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import MetricsConfig
from arm_rl.core.images import Image
from arm_rl.core.types import ImageInfo, ImagePart, Sample, ScoredTrajectory, Trajectory
from arm_rl.run.metrics import ZOOM_TOOL, zoomed_box

logger = logging.getLogger(__name__)

# in the list of runs; others: last
BEST = {"evaluation/accuracy": "max", "rollout/accuracy": "last,mean", "reward/mean": "last,mean"}
COLUMNS = (
    "step",
    "track",
    "sample",
    "question",
    "image",
    "observation",
    "session",
    "calls",
    "correct",
    "reward",
    "parts",
    "end",
)
ROWS = 16  # of the table at a step
MAX_SIDE = 1024  # pixels of an image in the table
_CLASSES = {1: ZOOM_TOOL, 2: "evidence"}
_CONNECT_SECONDS, _FINISH_SECONDS = 30, 300  # that a server may take
_FAILURES = (wandb.Error, OSError, TimeoutError)  # of the network, the disk, wandb's process


class WandbPage:
    """One run there. Whatever fails is a warning, and the page goes without it."""

    def __init__(
        self, folder: Path, config: MetricsConfig, run_config: Any, stage: str, parts: tuple[str, ...]
    ) -> None:
        """Starts the run, or goes on with it: its id is kept in the run folder.

        Args:
            folder: of the run.
            config: how; `auto` is online where a key is found, else offline.
            run_config: a dataclass, shown as the run's configuration with the version of the code beside it.
            stage: of the run; each is a run of its own there, in one group.
            parts: that metrics' names begin with.
        """
        self._artifacts = config.wandb_artifacts
        self._name = f"{folder.name}-{stage}".rstrip("-")
        own = folder / "wandb"
        own.mkdir(exist_ok=True)
        kept_id = own / f"{stage.replace('/', '-') or 'run'}.id"
        if not kept_id.exists():
            replace_text(kept_id, secrets.token_hex(4))
        # the table's images lie with the run; wandb has no setting for it
        os.environ["WANDB_DATA_DIR"] = str(own.resolve())
        self._run = _start_run(
            _choose_mode(config),
            project=config.wandb_project,
            dir=str(folder),
            id=kept_id.read_text().strip(),
            name=self._name,
            group=folder.name,
            job_type=type(run_config).__name__.removesuffix("Config").lower(),
            config=dataclasses.asdict(run_config) | {"code": code_version()},
        )
        self._run.define_metric("step", hidden=True)
        for part in parts:
            self._run.define_metric(f"{part}/*", step_metric="step")
        for name, summary in BEST.items():
            self._run.define_metric(name, step_metric="step", summary=summary)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step's metrics."""
        self._run_or_warn(lambda: self._run.log({"step": step, **metrics}))

    def log_trajectories(self, path: Path) -> None:
        """Log a table of some rows of a trajectory file."""
        self._run_or_warn(lambda: self._log_table(path))

    def log_artifact(self, kind: str, folder: Path) -> None:
        """Log a checkpoint or an exported model, if configured, with links to its files, so that it may be removed."""
        if self._artifacts == kind:
            self._run_or_warn(lambda: self._upload_artifact(kind, folder))

    def finish(self, failed: bool) -> None:
        """Waits for the server, but not for ever."""
        self._run_or_warn(lambda: self._run.finish(exit_code=1 if failed else 0))

    def _run_or_warn(self, action: Any) -> None:
        try:
            action()
        except _FAILURES as error:
            logger.warning("Weights & Biases: %s; the run goes on, and metrics.jsonl has everything", error)

    def _log_table(self, path: Path) -> None:
        table = wandb.Table(columns=list(COLUMNS))
        _, step = trajectory_file.read_stage_and_step(path)
        total = trajectory_file.count_rows(path)
        for scored, sample in trajectory_file.read_rows(path, range(0, total, max(1, -(-total // ROWS)))):
            images = trajectory_file.read_images(path, [info.key for info in scored.trajectory.images])
            table.add_data(*_table_row(step, scored, sample, images))
        self._run.log({"step": step, "trajectories": table})

    def _upload_artifact(self, kind: str, folder: Path) -> None:
        linked = Path(os.environ["WANDB_DATA_DIR"]) / "linked" / f"{kind}-{folder.name}"
        artifact = wandb.Artifact(f"{self._name}-{kind}", type="model", metadata={"folder": str(folder)})
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            (linked / name).parent.mkdir(parents=True, exist_ok=True)
            (linked / name).unlink(missing_ok=True)
            os.link(file, linked / name)
            artifact.add_file(str(linked / name), name=str(name), policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=[folder.name] if kind == "checkpoint" else None)


def code_version() -> dict[str, Any]:
    """The commit of this code and whether files differ from it; nothing where it is no checkout."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def has_key() -> bool:
    """Return whether a key of Weights & Biases is in the environment or in the user's netrc file.

    Raises:
        wandb.Error: If the netrc file holds what cannot be a key.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    return wbauth.read_netrc_auth(host=wandb.setup().settings.base_url) is not None


def _choose_mode(config: MetricsConfig) -> Literal["online", "offline", "disabled"]:
    if config.wandb != "auto":
        return config.wandb
    try:
        return "online" if has_key() else "offline"
    except wandb.Error:  # a key that cannot be one: when the run starts wandb says what is wrong with it
        return "online"


def _start_run(mode: Literal["online", "offline", "disabled"], **options: Any) -> wandb.Run:
    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,  # it would look at the working folder's repository, and at its remote's address
        disable_code=True,
        init_timeout=_CONNECT_SECONDS,
        finish_timeout=_FINISH_SECONDS,
    )
    # Offline, the id alone joins the parts of a run that was started again when they are synced.
    try:
        return wandb.init(
            mode=mode, resume="allow" if mode == "online" else None, settings=settings, reinit="create_new", **options
        )
    except _FAILURES as error:
        if mode != "online":
            raise
        logger.warning(
            "Weights & Biases cannot be reached, the run is recorded offline (wandb sync sends it): %s", error
        )
        wandb.teardown()  # its process still holds the run's id
        return wandb.init(mode="offline", settings=settings, reinit="create_new", **options)


def _table_row(step: int, scored: ScoredTrajectory, sample: Sample, images: Mapping[str, Image]) -> list[Any]:
    trajectory = scored.trajectory
    given = [info for info in trajectory.images if info.name.startswith("original_image")]
    observed = [info for info in trajectory.images if info not in given]
    return [
        step,
        sample.track,
        sample.id,
        _question_text(sample),
        _picture(given[:1], images, _box_data(trajectory, sample)),
        _picture(observed[-1:], images, {}),
        "\n".join(
            line for turn in trajectory.turns for line in (turn.text, *(event.text for event in turn.tool_events))
        ),
        ", ".join(f"{event.call.name}: {event.status}" for event in trajectory.tool_events),
        scored.correct,
        scored.reward,
        ", ".join(f"{name} {value:g}" for name, value in scored.parts.items()),
        trajectory.end,
    ]


def _question_text(sample: Sample) -> str:
    asked = [
        part
        for message in sample.messages
        if message.role != "system"
        for part in message.parts
        if not isinstance(part, ImagePart)
    ]
    return " ".join(asked).strip()


def _box_data(trajectory: Trajectory, sample: Sample) -> dict[str, Any]:
    """Return the zoomed boxes by turn, and the box of the evidence."""
    boxes = [
        (box, 1, f"turn {number}")
        for number, turn in enumerate(trajectory.turns, 1)
        for box in map(zoomed_box, turn.tool_events)
        if box
    ]
    if sample.target_box is not None:
        boxes.append((sample.target_box, 2, "evidence"))
    data = [
        {
            "position": dict(zip(("minX", "minY", "maxX", "maxY"), (value / 1000 for value in box), strict=True)),
            "class_id": kind,
            "box_caption": caption,
        }
        for box, kind, caption in boxes
    ]
    return {"boxes": {"box_data": data, "class_labels": _CLASSES}} if data else {}


def _picture(infos: list[ImageInfo], images: Mapping[str, Image], boxes: dict[str, Any]) -> Any:
    if not infos or infos[0].key not in images:
        return None
    picture = images[infos[0].key].pil()
    picture.thumbnail((MAX_SIDE, MAX_SIDE), PILImage.Resampling.LANCZOS)
    return wandb.Image(picture, caption=infos[0].name, boxes=boxes or None)
