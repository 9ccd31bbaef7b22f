"""The whole proof on CPUs: every section runs small, so that the command is tested where no GPU is at hand."""

import json

import pytest

from jobs.gpu_proof import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_every_section_passes_on_cpus(tmp_path, capsys):
    assert main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "1400"]) == 0, capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [one["section"] for one in summary["sections"]] == list(range(-1, 11))
    lines = {one["section"]: one["line"] for one in summary["sections"]}
    # A section with a part that only a GPU has says so.
    assert all("not on CPU" in lines[number] for number in (0, 1, 3, 5, 6, 8, 9, 10))
    assert summary["efficiency"] == {}, "the plan's table is of GPUs"
