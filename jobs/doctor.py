"""Check this machine: `arm-rl doctor`. Versions, GPUs, shared memory, open files, Ray, bubblewrap, W&B, the hub."""

import argparse
import json
import sys
from collections.abc import Sequence

from arm_rl.machine.doctor import CHECKS, examine
from arm_rl.machine.finding import format_findings


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.doctor") -> int:
    """Print what was found, one line a check, and return 1 if anything is a fault."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Checks this machine before a run: ok, warning or fault, and what to do. Exit status 1 on faults.",
    )
    parser.add_argument("checks", nargs="*", metavar="check", help=f"{', '.join(CHECKS)}; by default all")
    parser.add_argument("--json", action="store_true", help="print a list of JSON objects")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.checks if name not in CHECKS]
    if unknown:
        parser.error(f"there is no check {unknown[0]!r}; the checks are {', '.join(CHECKS)}")
    findings = examine(arguments.checks)
    if arguments.json:
        text = json.dumps([finding.as_json() for finding in findings], indent=2)
    else:
        text = format_findings(findings)
    sys.stdout.write(f"{text}\n")
    return int(any(finding.verdict == "fault" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
