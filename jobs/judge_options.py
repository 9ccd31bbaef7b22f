"""What `serve` and `chat` ask alike of their user: a judge, and how it is spoken to."""

import argparse
import errno
import os
from pathlib import Path

from arm_rl.core.errors import UserError
from arm_rl.export.judge_config import FILE, JudgeSetup


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the judge's folder and for what may differ from its training."""
    parser.add_argument("folder", type=Path, help="an exported model, for example runs/demo/export")
    parser.add_argument(
        "--config", help=f"a run's config.yaml: tools, prompt, wording and limits; by default {FILE} in the folder"
    )
    parser.add_argument("--tools", nargs="*", help="tool files, in place of the configuration's")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="let the folder's own tool files run commands, connect to MCP servers and import classes",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of sampling")
    parser.add_argument("--gpu", action="store_true", help="run on a GPU")


def read_judge_setup(arguments: argparse.Namespace) -> JudgeSetup:
    """Return the setup of the judge's training with the changes of the command line.

    Raises:
        ToolFileError: If the folder's own tool files would run what the user has not trusted.
    """
    setup = JudgeSetup.read(arguments.folder, arguments.config, trust=arguments.trust)
    if arguments.tools is not None:
        setup = setup.with_changes(tools=tuple(arguments.tools), trusted=True)
    setup.require_trusted_tools()
    return setup


def require_model(folder: Path) -> None:
    """Raise a UserError if a folder holds no model, before anything is loaded."""
    if not (folder / "config.json").is_file():
        missing = f"{folder / 'config.json'}: {os.strerror(errno.ENOENT)}"
        raise UserError(f"{missing}: the folder of an exported model is needed, such as runs/demo/export")
