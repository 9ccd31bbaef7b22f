"""Write a Hugging Face folder from a run's newest checkpoint."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import load_saved
from jobs.command_line import run_guarded


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.export") -> int:
    """Exports and says where to."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("out", type=Path, nargs="?", help="where to write; by default RUN/export")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.run / "export"

    def start() -> str:
        file = arguments.run / "config.yaml"
        if not file.is_file():
            raise ConfigError(f"{arguments.run}: not a run's folder: it has no config.yaml")
        config = load_saved(file)
        from arm_rl.export.checkpoint_export import export_checkpoint

        step = export_checkpoint(config, arguments.run, out)
        return f"done: the model of step {step} is in {out}; `python -m jobs.chat {out} IMAGE` asks it"

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
