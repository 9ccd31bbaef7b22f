"""Run a job by name: `arm-rl COMMAND …` is `python -m jobs.COMMAND …` with a list of the commands.

This module imports the standard library and the job that it runs. `arm-rl --help` therefore answers without torch, Ray or transformers.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import arm_rl

PROGRAM = "arm-rl"
USAGE_ERROR = 2  # exit status, as argparse's

COMMANDS = {
    "demo": "train a small judge through all stages on this machine, and write a report",
    "prepare-data": "turn raw questions into training data, convert it, audit it",
    "sft": "train the supervised cold start on demonstrations",
    "train": "train one GRPO stage",
    "evaluate": "evaluate a judge on published benchmarks or held-out samples",
    "export": "write a Hugging Face folder from a run's newest checkpoint",
    "serve": "serve a judge over HTTP",
    "chat": "show a judge at work in the terminal",
    "plan": "estimate memory and step time of a run, without a GPU",
    "doctor": "check this machine: versions, GPUs, shared memory, Ray, services",
    "gpu-proof": "show on one GPU that learner, engine and weight transfer work, with numbers",
    "report": "write or serve the HTML report of a run",
    "bench": "measure speed against other ways to do the same",
    "findings": "compare designs of the reward over several seeds",
    "chaos": "train while processes of the run are killed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    name = arguments[0] if arguments else None
    if name in COMMANDS:
        return run(name, arguments[1:])
    if name in ("-h", "--help"):
        sys.stdout.write(usage())
        return 0
    if name == "--version":
        sys.stdout.write(f"{PROGRAM} {arm_rl.__version__}\n")
        return 0
    sys.stderr.write(usage() if name is None else f"{PROGRAM}: error: {unknown(name)}\n")
    return USAGE_ERROR


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the job of a command with its arguments and return the job's exit status."""
    folder = os.getcwd()
    if folder not in sys.path and not sys.flags.safe_path:
        sys.path.append(folder)  # `python -m` has it too: tools and rewards of one's own are imported from there
    job = importlib.import_module(f"jobs.{name.replace('-', '_')}")
    status: int = job.main(arguments, program=f"{PROGRAM} {name}")
    return status


def usage() -> str:
    """Return the help text, one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [arguments]",
            "",
            "Train vision-language judges that use tools, by supervised fine-tuning and two-stage GRPO.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists the arguments of a command; {PROGRAM} --version prints the version.",
            "",
        ]
    )


def unknown(name: str) -> str:
    """Return the error message for a command that does not exist, with the most similar command."""
    similar = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {similar[0]!r}?" if similar else f"{PROGRAM} --help lists the commands."
    return f"there is no command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
