"""The process of one section: it runs the section's module and writes what came of it to result.json."""

import argparse
import importlib
import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any

from arm_rl.core.atomic_file import replace_text
from arm_rl.gpu_proof.frame import RESULT, Report, Verdict
from arm_rl.gpu_proof.scale import Proof


def main() -> int:
    """Run a section and return 0, or 1 if it did not pass."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    proof = Proof(device=arguments.device, out=arguments.out, folder=arguments.folder, seconds=arguments.seconds)
    verdict, line, numbers = judge(arguments.module, proof)
    result = {"verdict": verdict, "line": line, "numbers": numbers}
    replace_text(arguments.folder / RESULT, json.dumps(result, indent=2) + "\n")
    return int(verdict != "passed")


def judge(module: str, proof: Proof) -> tuple[Verdict, str, dict[str, Any]]:
    """Run a section; return its verdict, its line and its numbers, whatever the section raises."""
    try:
        report: Report = importlib.import_module(f"arm_rl.gpu_proof.{module}").run(proof)
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("arm_rl"):
            return "not installed", f"{error.name} is missing: make install", {}
        first = (str(error).strip() or "no message").splitlines()[0]
        return "failed", f"{type(error).__name__}: {first:.300}; see {proof.folder / 'log.txt'}", {}
    if report.problems:
        return "failed", "; ".join([*report.problems, report.line]), dict(report.numbers)
    return "passed", report.line, dict(report.numbers)


if __name__ == "__main__":
    sys.exit(main())
