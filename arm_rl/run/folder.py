"""A run's folder: made once, and entered again only with the configuration, or the settings, that it was made with."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import read_saved, save
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.run import checkpoint

# What may differ when a run is started again: how long it goes on, on which machines, in how much memory and what is written, not what is
# learned from.
_MAY_CHANGE = (
    "num_steps",
    "num_epochs",
    "checkpoint",
    "metrics",
    "evaluation",
    "template.question",
    "placement",
    "run.stall_seconds",
    "run.max_restarts",
    "learner.num_ranks",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.offload_parameters",
    "learner.num_threads",
    "learner.collective_timeout_seconds",
    "learner.call_timeout_seconds",
    "learner.micro_batch_tokens",
    "learner.gradient_checkpointing",
    "rollout.num_actors",
    "rollout.tensor_parallel_size",
    "rollout.max_concurrent_sessions",
    "rollout.max_num_seqs",
    "rollout.max_num_batched_tokens",
    "rollout.image_threads",
    "rollout.image_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.cpu_kv_cache_gib",
    "rollout.enforce_eager",
    "tools.num_executors",
    "tools.concurrency",
    "reward.num_scorers",
)
_SHOWN_DIFFERENCES = 3  # settings that a message names
_EXPORTED = "exported.json"  # the step of the model in export/: written when it is whole


def open_run(config: TrainConfig | SftConfig) -> Path:
    """Makes the folder with its `config.yaml`, or enters it again.

    Raises:
        ConfigError: the folder was made with another configuration; the message names the first key that differs.
    """
    folder = config.run.folder
    file = folder / "config.yaml"
    if file.exists():
        before, now = read_saved(type(config), file), dataclasses.asdict(config)
        difference = next(_find_differences(before, now, skipped=_MAY_CHANGE), None)
        if difference is not None:
            raise ConfigError(
                f"{difference}; {folder} holds a run with it: choose another run.name, or remove that folder; "
                "to train the run's model on with the new value, write the model by "
                f"`python -m jobs.export {folder}` and start with run.name=NEW model.path={folder / 'export'}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    save(config, file)
    return folder


def require_same_settings(file: Path, settings: Mapping[str, object], *, remedy: str) -> None:
    """Record the settings on which a folder's contents depend, or require that they equal the recorded ones.

    A setting that an older version of the job did not record is recorded now and not compared.

    Args:
        file: JSON file of the settings, in the folder that the job writes to.
        settings: Values that JSON can hold, by the name that the user knows; those named first are reported first.
        remedy: What the user can do, such as "choose another --out".

    Raises:
        ConfigError: If the folder was made with other settings; the message names the first ones that differ.
    """
    now = json.loads(json.dumps(settings))
    before = json.loads(file.read_text()) if file.exists() else {}
    compared = {name: value for name, value in now.items() if name in before}
    differences = _find_differences({name: before[name] for name in compared}, compared)
    shown = list(islice(differences, _SHOWN_DIFFERENCES))
    if shown:
        others = sum(1 for _ in differences)
        more = f" (and {others} more)" if others else ""
        raise ConfigError(f"{'; '.join(shown)}{more}; {file.parent} holds results of the earlier settings: {remedy}")
    if before != now:
        replace_text(file, json.dumps({**before, **now}, indent=2))


def is_finished(folder: Path, num_steps: int) -> bool:
    """Return whether all steps of a run are done and its model is exported."""
    written = checkpoint.steps(folder / "checkpoints")
    exported, model = folder / _EXPORTED, folder / "export" / "config.json"
    if not (written and exported.is_file() and model.is_file()):
        return False
    return min(written[-1], json.loads(exported.read_text())["step"]) >= num_steps


@contextmanager
def export_folder(folder: Path, step: int) -> Iterator[Path]:
    """Open the folder to export a run's model into after a step; an error leaves the run not exported."""
    (folder / _EXPORTED).unlink(missing_ok=True)
    yield folder / "export"
    replace_text(folder / _EXPORTED, json.dumps({"step": step}))


def _find_differences(old: object, new: object, key: str = "", skipped: Collection[str] = ()) -> Iterator[str]:
    """Yield a line for each value that differs, with its key; `skipped` keys may differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*new, *old]):
            path = f"{key}.{name}".lstrip(".")
            if path not in skipped:
                yield from _find_differences(old.get(name), new.get(name), path, skipped)
        return
    old, new = (list(value) if isinstance(value, tuple) else value for value in (old, new))
    if old != new:
        yield f"{key}: {new!r} now, {old!r} before"
