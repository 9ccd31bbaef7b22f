"""The `arm-rl` command: what it lists, what it imports, and that a command behaves as its job does."""

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import arm_rl
from jobs import export
from jobs.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


def is_program(path: Path) -> bool:
    """Return whether a module runs something when it is called by `python -m`."""
    return any(
        isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in ast.parse(path.read_text()).body
    )


def test_every_job_is_a_command():
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "cli" and is_program(path)}
    assert {name.replace("-", "_") for name in COMMANDS} == jobs


def test_help_lists_every_command_on_a_line_of_its_own(capsys):
    assert main(["--help"]) == 0
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert dict(listed) == COMMANDS


def test_help_imports_only_the_standard_library():
    program = (
        "import sys; before = set(sys.modules); from jobs.cli import main; main(['--help']); main(['--version']); "
        "main(['tran']); print(sorted({name.split('.')[0] for name in set(sys.modules) - before}), file=sys.stderr)"
    )
    imported = ast.literal_eval(ran("-c", program).stderr.splitlines()[-1])
    assert set(imported) - sys.stdlib_module_names == {"arm_rl", "jobs"}


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"arm-rl {arm_rl.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran", "x.yaml"], "arm-rl: error: there is no command 'tran'; did you mean 'train'?\n"),
        (["prepare_data"], "arm-rl: error: there is no command 'prepare_data'; did you mean 'prepare-data'?\n"),
        (["--config"], "arm-rl: error: there is no command '--config'; arm-rl --help lists the commands.\n"),
    ],
)
def test_an_unknown_command_is_a_usage_error(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == message


def test_no_command_prints_the_commands(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_the_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: arm-rl {name} ")
    assert "python -m jobs" not in shown


def test_a_configuration_of_evaluate_is_parsed_from_the_given_arguments(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "configs/demo.yaml", "--unknown"])
    assert ended.value.code == 2
    assert "arm-rl evaluate: error: unrecognized arguments: --unknown" in capsys.readouterr().err


def test_a_command_ends_as_its_job_does(capsys):
    assert export.main(["nowhere"]) == 1
    of_the_job = capsys.readouterr()
    command = ran("-m", "jobs.cli", "export", "nowhere")
    assert (command.returncode, command.stdout, command.stderr) == (1, of_the_job.out, of_the_job.err)
    assert command.stderr == "error: nowhere: not a run's folder: it has no config.yaml\n"


def test_a_usage_error_names_the_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["export"])
    assert ended.value.code == 2
    assert "arm-rl export: error: the following arguments are required: run" in capsys.readouterr().err


def test_modules_of_the_current_folder_are_found(tmp_path, monkeypatch):
    """A console script has its own folder in the path, `python -m` the current one."""

    def job(arguments: list[str], *, program: str) -> int:
        import tool_of_the_current_folder  # noqa: F401

        return len(arguments)

    (tmp_path / "tool_of_the_current_folder.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "jobs.export", SimpleNamespace(main=job))
    assert main(["export", "a", "b"]) == 2
