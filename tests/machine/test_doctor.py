"""The frame of the doctor: whatever a check does, the command goes on and says so."""

import json
import sys

import pytest

from arm_rl.machine import doctor
from arm_rl.machine.doctor import Check, examine
from arm_rl.machine.finding import Finding, fault, format_findings, ok, warning
from jobs.doctor import main


@pytest.fixture
def check(monkeypatch):
    """A check that runs a given program in place of the real one; returns its findings."""

    def run(program: str, *, seconds: float = 20, is_needed: bool = True) -> list[Finding]:
        monkeypatch.setitem(doctor.CHECKS, "ray", Check(run=list, seconds=seconds, is_needed=is_needed))
        return examine(["ray"], checks=[sys.executable, "-c", program, "the name follows:"])

    return run


def test_findings_are_read_from_the_process(check):
    program = f"print('noise'); print({doctor._RESULT + json.dumps([ok('Ray', 'starts').as_json()])!r})"
    assert check(program) == [ok("Ray", "starts")]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise RuntimeError('the raylet is gone')", "status 1: RuntimeError: the raylet is gone"),
        ("import os; os.kill(os.getpid(), 9)", "status -9: it printed nothing"),
        ("print('half')", "status 0: half"),
    ],
)
def test_a_check_that_fails_is_a_fault_in_one_line(check, program, words):
    (found,) = check(program)
    assert (found.name, found.verdict) == ("ray", "fault")
    assert words in found.text


def test_a_check_that_hangs_is_ended(check):
    (found,) = check("import time; time.sleep(60)", seconds=0.5)
    assert (found.verdict, found.text) == ("fault", "no answer within 0.5 seconds")


def test_what_a_run_can_do_without_is_a_warning_only(check):
    (found,) = check("raise SystemExit(3)", is_needed=False)
    assert found.verdict == "warning"


def test_every_real_check_of_this_machine_is_one_that_the_command_can_print(capsys):
    assert main(["versions", "shm", "files", "--json"]) in (0, 1)
    names = {finding["name"] for finding in json.loads(capsys.readouterr().out)}
    assert {"versions", "/dev/shm", "open files"} <= names


@pytest.mark.parametrize(
    ("finding", "status"), [(ok("a", "b"), 0), (warning("a", "b", "c"), 0), (fault("a", "b", "c"), 1)]
)
def test_the_exit_status_is_1_on_faults_alone(finding, status, monkeypatch, capsys):
    monkeypatch.setattr("jobs.doctor.examine", lambda names: [finding])
    assert main([]) == status
    assert capsys.readouterr().out == format_findings([finding]) + "\n"


def test_advice_is_below_its_line():
    assert format_findings([ok("a", "good"), fault("longer", "bad", "mend it")]) == (
        "ok       a       good\nfault    longer  bad\n                 -> mend it"
    )


def test_an_unknown_check_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["gpus"])
    assert ended.value.code == 2
    assert "there is no check 'gpus'; the checks are versions, gpu" in capsys.readouterr().err
