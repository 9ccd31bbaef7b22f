"""Show on one GPU that learner, engine and weight transfer work: `arm-rl gpu-proof`. See docs/gpu_proof.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from arm_rl.gpu_proof.frame import SUMMARY, run_proof
from arm_rl.gpu_proof.sections import MODELS, SECTIONS


def _parse_sections(text: str) -> list[int]:
    numbers = sorted({int(number) for number in text.split(",")})
    known = [section.number for section in SECTIONS]
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"sections are {known[0]} to {known[-1]}, not {unknown[0]}")
    return numbers


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.gpu_proof") -> int:
    """Run the sections and return 0 if all of them passed."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Runs learner, engine, weight transfer and a training on one GPU; the model is random. "
        "Each section has a process and a time box of its own; one that fails does not stop the next.",
    )
    parser.add_argument("--seconds", type=float, default=420.0, help="time for all sections (%(default)g)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs every section small (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_proof"), help="folder of models, logs and summary.json (%(default)s)"
    )
    parser.add_argument("--sections", type=_parse_sections, default=[], help="such as 1,5; by default all, 0 to 10")
    arguments = parser.parse_args(argv)
    chosen = [section for section in SECTIONS if not arguments.sections or section.number in arguments.sections]
    if arguments.device == "cuda" and not _has_gpu():
        sys.stderr.write("error: torch finds no GPU (arm-rl doctor gpu says why); --device cpu runs the proof small\n")
        return 1
    outcomes = run_proof(
        [MODELS, *chosen],
        device=arguments.device,
        out=arguments.out.absolute(),
        seconds=arguments.seconds,
        show=lambda line: (sys.stdout.write(f"{line}\n"), sys.stdout.flush()),
    )
    failed = [outcome for outcome in outcomes if outcome.verdict != "passed"]
    passed = f"{len(outcomes) - len(failed)} of {len(outcomes)} passed"
    sys.stdout.write(f"{passed}; numbers are in {arguments.out / SUMMARY}\n")
    return int(bool(failed))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
