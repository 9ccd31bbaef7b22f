"""The long chaos test, `make chaos`: a run that learns while its processes are killed or hang; writes runs/chaos/summary.json."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from arm_rl.core.config_file import list_override
from arm_rl.core.errors import UserError
from jobs.command_line import run_guarded

PAUSE_SECONDS = 4.0  # mean between a recovery and the next kill


class NothingToTrain(UserError):
    """There is no model or no data to start from."""


def _isolate_tools(source: Path, target: Path) -> Path:
    """Write a tool file with the same tools in two worker processes each, so that there are some to kill."""
    listed = OmegaConf.load(source)
    for entry in listed.tools:
        entry.execution = {"isolation": "process", "concurrency": 2}
    OmegaConf.save(listed, target)
    return target


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.chaos") -> int:
    """Trains the demo's judge from its stage 1 on."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), help="a demo's folder: its data, and the judge after stage 1"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="run folder")
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--steps", type=int, default=300, help="of the run; it must last longer than the kills")
    parser.add_argument("--staleness", type=int, default=1, help="algorithm.max_staleness")
    parser.add_argument(
        "--mark",
        type=float,
        default=1.4,
        help="mean reward of the last five steps that counts as learned; it begins at 1.25",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order and the times of the kills")
    arguments = parser.parse_args(argv)

    def start() -> str:
        data, model = arguments.demo / "data", arguments.demo / "stage1" / "export"
        for path in (data / "train.parquet", data / "tools.yaml", model / "config.json"):
            if not path.exists():
                raise NothingToTrain(f"{path}: missing; `make demo` makes it")
        run = arguments.out / "run"
        shutil.rmtree(arguments.out, ignore_errors=True)
        arguments.out.mkdir(parents=True)
        command = [
            "jobs.train",
            "configs/demo.yaml",
            f"run.root={arguments.out}",
            "run.name=run",
            f"num_steps={arguments.steps}",
        ]
        command += [
            f"model.path={model}",
            list_override("data.train", data / "train.parquet"),
            "data.held_out=[]",
            "run.max_restarts=10",
        ]
        command += [
            list_override("tools.files", _isolate_tools(data / "tools.yaml", arguments.out / "tools.yaml")),
            f"algorithm.max_staleness={arguments.staleness}",
            "checkpoint.every=2",
            "algorithm.samples_per_step=16",
        ]
        command += [
            "metrics.wandb=disabled",
            "metrics.trajectories_every=1",
            "rollout.num_actors=1",
            "tools.num_executors=1",
        ]
        command += ["run.stall_seconds=30", "learner.call_timeout_seconds=120"]
        from arm_rl.experiments.chaos import KINDS, VICTIMS, run_chaos, write_summary

        kills = dict.fromkeys(KINDS, arguments.kills)
        summary = run_chaos(
            command,
            run,
            kills=kills,
            seed=arguments.seed,
            pause_seconds=PAUSE_SECONDS,
            mark=arguments.mark,
            hangs=VICTIMS.keys() - {"tool_worker"},  # whose call has a time limit of its own
        )
        write_summary(summary, arguments.out / "summary.json")
        return f"done: {summary}"

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
