"""The frame of the GPU proof: sections that raise, hang or are killed stop no other, and what is written of them."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from arm_rl.experiments.processes import is_alive
from arm_rl.gpu_proof import frame
from arm_rl.gpu_proof.frame import Outcome, Report, Section, run_proof
from arm_rl.gpu_proof.scale import Proof
from arm_rl.gpu_proof.section_process import judge
from arm_rl.gpu_proof.sections import MODELS, SECTIONS
from jobs import gpu_proof

# A section's process in the tests: what it does is the name of its module.
PROGRAM = """
import json, os, signal, subprocess, sys, time
folder = sys.argv[sys.argv.index("--folder") + 1]
def report(verdict, **numbers):
    with open(os.path.join(folder, "result.json"), "w") as file:
        json.dump({"verdict": verdict, "line": sys.argv[1], "numbers": numbers}, file)
match sys.argv[1]:
    case "good": report("passed", efficiency={"matmul": 0.5}, box=sys.argv[-1])
    case "bad": report("failed"); sys.exit(1)
    case "raises": raise RuntimeError("no such kernel")
    case "hangs":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(os.path.join(folder, "child"), "w") as file: file.write(str(child.pid))
        time.sleep(600)
    case "killed": os.kill(os.getpid(), signal.SIGKILL)
    case "crashes":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(os.path.join(folder, "child"), "w") as file: file.write(str(child.pid))
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
"""
COMMAND = (sys.executable, "-c", PROGRAM)


def section(number: int, module: str, weight: float = 1.0) -> Section:
    """Return a section that does what its module's name says."""
    return Section(number=number, title=f"section {number}", module=module, weight=weight)


@pytest.fixture
def run(tmp_path):
    """Run sections by what they do; returns their outcomes and the lines on the screen."""

    def proof(*modules: str, seconds: float = 60) -> tuple[list[Outcome], list[str]]:
        lines: list[str] = []
        sections = [section(number, module) for number, module in enumerate(modules)]
        found = run_proof(sections, device="cpu", out=tmp_path, seconds=seconds, command=COMMAND, show=lines.append)
        return found, lines

    return proof


def test_every_section_is_run_whatever_the_ones_before_did(run, tmp_path):
    outcomes, lines = run("bad", "raises", "killed", "good")
    assert [one.verdict for one in outcomes] == ["failed", "failed", "killed", "passed"]
    assert len(lines) == 4
    assert "ended with status 1 and without a result" in lines[1]
    assert "SIGKILL" in lines[2]
    assert "no such kernel" in (tmp_path / "sections" / "raises" / "log.txt").read_text()


def test_a_section_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    started = time.monotonic()
    sections = [section(0, "hangs", weight=0.25), section(1, "good")]
    outcomes = run_proof(sections, device="cpu", out=tmp_path, seconds=40, command=COMMAND, show=str)
    assert [one.verdict for one in outcomes] == ["timeout", "passed"]
    assert time.monotonic() - started < 40
    assert outcomes[0].time_box == pytest.approx(8, abs=0.2)
    assert not is_alive(int((tmp_path / "sections" / "hangs" / "child").read_text()))


def test_what_a_section_started_ends_also_where_the_section_itself_died(run, tmp_path):
    """Nothing then says any more whose process it was."""
    (outcome,), _ = run("crashes")
    assert outcome.verdict == "killed"
    assert not is_alive(int((tmp_path / "sections" / "crashes" / "child").read_text()))


def test_time_that_a_section_saves_is_there_for_the_next_ones(run):
    (first, second), _ = run("good", "good", seconds=40)
    assert first.time_box == pytest.approx(20, abs=0.2)
    assert second.time_box == pytest.approx(40 - first.seconds, abs=0.5)
    assert float(second.numbers["box"]) == pytest.approx(second.time_box, abs=0.1)


def test_the_summary_has_every_section_and_what_was_measured_for_the_plan(run, tmp_path):
    run("good", "raises")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["device"], summary["passed"], summary["efficiency"]) == ("cpu", False, {"matmul": 0.5})
    assert [(one["section"], one["verdict"]) for one in summary["sections"]] == [(0, "passed"), (1, "failed")]
    run("good")
    assert json.loads((tmp_path / "summary.json").read_text())["passed"]


def test_a_result_of_an_earlier_proof_is_not_read_again(run, tmp_path):
    run("good")
    (tmp_path / "sections" / "raises").mkdir()
    (tmp_path / "sections" / "good" / "result.json").rename(tmp_path / "sections" / "raises" / "result.json")
    (outcome,), _ = run("raises")
    assert outcome.verdict == "failed"


@pytest.fixture
def fake_section(monkeypatch, tmp_path):
    """Judge a section whose `run` is given."""

    def judged(function):
        module = ModuleType("arm_rl.gpu_proof.fake")
        module.run = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return judge("fake", Proof(device="cpu", out=tmp_path, folder=tmp_path, seconds=1))

    return judged


def test_a_report_without_problems_passes(fake_section):
    assert fake_section(lambda proof: Report(line="2 steps", numbers={"a": 1})) == ("passed", "2 steps", {"a": 1})


def test_problems_fail_a_section_and_come_first(fake_section):
    verdict, line, _ = fake_section(lambda proof: Report(line="2 steps", problems=["the loss is nan"]))
    assert (verdict, line) == ("failed", "the loss is nan; 2 steps")


def test_an_error_fails_a_section_in_one_line(fake_section):
    def run(proof: Proof) -> Report:
        raise RuntimeError("CUDA out of memory\nand a page more")

    verdict, line, _ = fake_section(run)
    assert verdict == "failed"
    assert line.startswith("RuntimeError: CUDA out of memory; see ")


def test_a_missing_package_is_told_apart(fake_section):
    def run(proof: Proof) -> Report:
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm")

    assert fake_section(run)[:2] == ("not installed", "vllm is missing: make install")


def test_the_sections_are_those_of_the_table():
    assert [one.number for one in SECTIONS] == list(range(11))
    for one in (MODELS, *SECTIONS):
        assert Path(frame.__file__).with_name(f"{one.module}.py").is_file()
    assert len({one.module for one in SECTIONS}) == len(SECTIONS)


@pytest.mark.parametrize(("verdict", "status"), [("passed", 0), ("failed", 1), ("timeout", 1), ("not installed", 1)])
def test_the_exit_status_tells_whether_all_passed(verdict, status, monkeypatch, tmp_path, capsys):
    def run(sections, **options) -> list[Outcome]:
        asked.extend(one.number for one in sections)
        passed = Outcome(section=1, title="a", verdict="passed", seconds=1, time_box=2, line="b")
        return [passed, replace(passed, verdict=verdict)]

    asked: list[int] = []
    monkeypatch.setattr(gpu_proof, "run_proof", run)
    assert gpu_proof.main(["--device", "cpu", "--out", str(tmp_path), "--sections", "5,1"]) == status
    assert asked == [-1, 1, 5]
    assert f"{2 - status} of 2 passed" in capsys.readouterr().out


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(gpu_proof, "_has_gpu", lambda: False)
    assert gpu_proof.main([]) == 1
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize("sections", ["11", "-2", "1,x"])
def test_an_unknown_section_is_a_usage_error(sections):
    with pytest.raises(SystemExit) as ended:
        gpu_proof.main([f"--sections={sections}"])
    assert ended.value.code == 2
