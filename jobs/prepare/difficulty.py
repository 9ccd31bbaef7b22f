"""The command `difficulty`: training data without what the model can do already."""

import argparse

from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.parquet_rows import require_files
from jobs.command_line import Commands


def add_difficulty_command(commands: Commands) -> None:
    """Add the command that filters data by difficulty."""
    parser = commands.add_parser(
        "difficulty",
        help="training data without what a model can do already",
        description="The model of a configuration judges each sample of data.train several times, with the engines, tools and limits of "
        "training. What it gets right every time is left out: NAME-filtered.parquet beside each file holds the rest. Started again, it "
        "goes on where it stopped.",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of a GRPO stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the configuration, and its value")
    parser.add_argument("--rollouts", type=int, default=5, help="of each sample (default: %(default)s)")
    parser.add_argument(
        "--never-right",
        choices=("keep", "drop"),
        default="keep",
        help="what becomes of samples that no rollout gets right",
    )
    parser.set_defaults(run=_run_difficulty)


def _run_difficulty(arguments: argparse.Namespace) -> str:
    config = load(TrainConfig, arguments.config, arguments.overrides)
    require_files(config.data.train)
    from arm_rl.prepare.difficulty import filter_by_difficulty

    return "\n".join(filter_by_difficulty(config, arguments.rollouts, arguments.never_right))
