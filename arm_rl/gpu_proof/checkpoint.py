"""Section 4: a checkpoint, read by another process, is written again bit for bit: weights, moments and random states.

The model has few layers and a small vocabulary: a checkpoint has 12 bytes a parameter.
"""

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from arm_rl.core.owner import tie_to_parent
from arm_rl.gpu_proof import learner_process as process
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, random_samples
from arm_rl.gpu_proof.scale import Proof


def run(proof: Proof) -> Report:
    """Pass where the second process writes the files that it has read."""
    first, second = proof.folder / "first", proof.folder / "second"
    for folder in (first, second):
        shutil.rmtree(folder, ignore_errors=True)
    config, ids = proof.learner_config(), TokenIds.of(proof.thin_folder)
    samples, images = random_samples(
        4, ids, proof.view, number=2, num_tokens=proof.scale.prompt_tokens, side=proof.scale.image_side
    )
    batch = process.rank_batch(samples, config.micro_batch_tokens)
    with process.learner(proof, proof.thin_folder, config) as rank:
        _, problems = process.train_steps(rank, batch, images, 1)
        started = time.perf_counter()
        rank.save(first)
        seconds = time.perf_counter() - started
    command = [sys.executable, "-m", __name__, proof.device, str(proof.out), str(first), str(second)]
    subprocess.run(tie_to_parent(command), check=True)
    written, read = digests(first), digests(second)
    problems += [f"{name} is not the same after loading" for name in sorted(written) if written[name] != read.get(name)]
    num_bytes = sum(path.stat().st_size for path in first.iterdir())
    for folder in (first, second):
        shutil.rmtree(folder)
    return Report(
        line=f"{len(written)} files, {num_bytes / 1e9:.3g} GB written in {seconds:.1f} s, the same bits after loading",
        numbers={"bytes": num_bytes, "seconds_to_write": seconds, "files": sorted(written)},
        problems=problems,
    )


def load_and_save(proof: Proof, first: Path, second: Path) -> None:
    """Load a checkpoint into a learner that never trained, and write it."""
    with process.learner(proof, proof.thin_folder, proof.learner_config()) as rank:
        if rank.load(first) != 1:
            raise ValueError(f"{first}: the checkpoint is not of one optimizer step")
        rank.save(second)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


if __name__ == "__main__":
    load_and_save(
        Proof(device=sys.argv[1], out=Path(sys.argv[2]), folder=Path(sys.argv[3]).parent, seconds=0.0),  # type: ignore[arg-type]
        Path(sys.argv[3]),
        Path(sys.argv[4]),
    )
