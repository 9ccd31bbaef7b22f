"""The command line against a small server: tables, files, resuming, comparing, and what it says when it cannot."""

import contextlib
import json
import re
import shutil

import pytest

from arm_rl.core import trajectory_file
from jobs import evaluate
from tests.benchmarks import published
from tests.support.chat_server import FakeServer, text_of

ZOOM = "image_zoom_in_tool"
ROOM = ["session.max_prompt_tokens=20000", "session.max_response_tokens=4000", "session.max_turns=3"]


def says(answer):
    return f"<think>?</think><answer>{answer}</answer>"


def first_option(body):
    """Zooms once where it may, then chooses the first option."""
    if body.get("tool_choice") == "auto" and not any(message["role"] == "tool" for message in body["messages"]):
        call = {"name": ZOOM, "arguments": {"image": "original_image", "bbox_2d": [0, 0, 500, 500]}}
        return f"<think>?</think><tool_call>{json.dumps(call)}</tool_call>"
    return says("A" if "Options:" in text_of(body) else "Overall Judgment: Answer 1 is better")


@pytest.fixture
def server():
    with FakeServer(first_option) as running:
        yield running


@pytest.fixture
def run(server, judge_folder, tmp_path, capsys):
    def run(*arguments, out="run", url=None):
        options = ["--processor", str(judge_folder), "--out", str(tmp_path / out), "--retries", "0"]
        status = evaluate.main([url or server.url, *arguments, *ROOM, *options])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_benchmarks_both_ways_in_both_orders(run, server, tmp_path):
    bench = f"vl_rewardbench={published.vl_rewardbench(tmp_path, ['RLHF-V-1', 'mathverse_2', 'RLHF-V-3'])}"
    status, out, err = run(f"vstar={published.vstar(tmp_path)}", bench, "--both", "--both-orders")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"done: results.jsonl, summary.json and the trajectories are in {tmp_path / 'run'}"
    found = summary(tmp_path / "run")
    assert list(found) == ["vstar", "vl_rewardbench"]
    tools, bare = found["vstar"]["tools"], found["vstar"]["no tools"]
    assert tools["scores"]["overall"]["value"] == bare["scores"]["overall"]["value"] == 0.25
    assert (tools["calls"], tools["ok_calls"], bare["calls"]) == (1.0, 1.0, 0.0)
    position = found["vl_rewardbench"]["tools"]["position"]
    assert (position["first"], position["same"], position["num_pairs"]) == (1.0, 0.0, 3.0)
    assert re.search(r"overall +│ +25\.0 \(0\.0 to 75\.0\) │ +25\.0", out)
    assert "for the answer shown first" in out
    assert "direct_attributes" in out
    compared = json.loads((tmp_path / "run" / "tools-compared.json").read_text())
    assert {name: (one["num_rows"], one["won"], one["lost"]) for name, one in compared.items()} == {
        "vstar": (4, 0, 0),
        "vl_rewardbench": (3, 0, 0),
    }
    assert "p (McNemar)" in out
    num_sessions = 2 * (4 + 6)
    assert len(server.bodies) == num_sessions + num_sessions // 2, "one turn more where there is a call"
    log = trajectory_file.read(tmp_path / "run/trajectories/vstar-tools-evaluation-000000.parquet")
    assert all(len(one.trajectory.turns) == 2 and one.trajectory.tool_events[0].status == "ok" for one in log.scored)
    assert sum(one.correct for one in log.scored) == 1

    asked = len(server.bodies)
    status, again, _ = run(f"vstar={published.vstar(tmp_path)}", bench, "--both", "--both-orders")
    assert (status, again, len(server.bodies)) == (0, out, asked)


def test_a_server_that_fails_for_a_while_and_a_run_that_goes_on(run, server, tmp_path):
    server.answer = lambda body: 500 if "glove 2" in text_of(body) else first_option(body)
    vstar = f"vstar={published.vstar(tmp_path)}"
    status, out, _ = run(vstar, "run.max_broken_sessions=0.3")
    assert status == 0
    assert "1 of 4 sessions broke: the same command asks them again" in out
    assert summary(tmp_path / "run")["vstar"]["tools"]["missing"] == 1
    server.answer = lambda body: 400
    status, _, err = run(vstar)
    assert status == 1
    assert "1 sessions broke, more than run.max_broken_sessions allows" in err
    server.answer = first_option
    assert run(vstar)[0] == 0
    assert summary(tmp_path / "run")["vstar"]["tools"]["missing"] == 0


def test_two_runs_are_compared(run, server, tmp_path, capsys):
    vstar = f"vstar={published.vstar(tmp_path, 'ABCDABCDAB')}"
    run(vstar, "--no-tools", out="before")

    def right_from_one_on(body):
        number = int(re.search(r"glove (\d+)", text_of(body))[1])
        return says("B" if number == 0 else "ABCDABCDAB"[number])

    server.answer = right_from_one_on
    run(vstar, "--no-tools", out="after")
    assert evaluate.main(["compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"done: the numbers are in {tmp_path / 'after/compared-with-before.json'}"
    )
    found = json.loads((tmp_path / "after/compared-with-before.json").read_text())["vstar, no tools"]
    assert (found["lost"], found["won"], found["p"]) == (1, 7, pytest.approx(2 * (1 + 8) / 2**8))
    assert found["scores"]["overall"]["difference"] == pytest.approx(0.6)


def test_another_model_needs_another_folder(run, tmp_path):
    vstar = f"vstar={published.vstar(tmp_path)}"
    assert run(vstar)[0] == 0
    status, _, err = run(vstar, "evaluation.temperature=1")
    assert status == 1
    assert "temperature: 1.0 now, 0.0 before; " in err
    assert "choose another --out" in err
    status, _, err = run(vstar, "run.seed=3")
    assert status == 1
    assert "seed: 3 now, 0 before; " in err


def test_the_server_says_what_it_serves(judge_folder, tmp_path, capsys):
    processor = tmp_path / "processor"
    # the weights are where the server is
    shutil.copytree(judge_folder, processor, ignore=shutil.ignore_patterns("*.safetensors"))
    server = FakeServer(first_option, models=[{"id": "some/judge", "root": str(processor)}])
    try:
        out = ["--out", str(tmp_path / "run"), "--no-tools"]
        assert evaluate.main([server.url, f"vstar={published.vstar(tmp_path)}", *ROOM, *out]) == 0
        assert {body["model"] for body in server.bodies} == {"some/judge"}
    finally:
        server.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vstar"], "vstar: a benchmark is written NAME=FILE, with NAME one of armbench_vl, "),
        (["other=x"], "other=x: a benchmark is written NAME=FILE"),
        (["session.max_turns=2"], "no benchmark is named"),
        (["vstar=a", "vstar=b"], "vstar=b: vstar is named twice"),
        (["vstar=none.jsonl"], "none.jsonl: No such file"),
        (["vstar=none.jsonl", "session.turns=2"], "session.turns: unknown key"),
    ],
)
def test_what_cannot_be_followed_is_said(run, arguments, message):
    status, _, err = run(*arguments)
    assert status == 1
    assert message in err


def test_no_server_no_key_no_runs(judge_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_KEY_HERE", raising=False)
    assert evaluate.main(["http://127.0.0.1:9/v1", "vstar=x"]) == 1
    assert "http://127.0.0.1:9/v1: no list of models" in capsys.readouterr().err
    assert evaluate.main(["http://127.0.0.1:9/v1", "vstar=x", "--api-key-variable", "NO_KEY_HERE"]) == 1
    assert "there is no environment variable NO_KEY_HERE" in capsys.readouterr().err
    assert evaluate.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "there are no verdicts" in capsys.readouterr().err


def test_a_configuration_judges_its_held_out_samples_as_before(monkeypatch, capsys, tmp_path):
    command = [
        "configs/demo.yaml",
        "data.held_out=[README.md]",
        f"data.train=[{tmp_path / 'none.parquet'}]",
        f"model.path={tmp_path}",
    ]
    monkeypatch.setattr("sys.argv", ["evaluate", *command])
    monkeypatch.setattr("actors.cluster.connection.cluster", contextlib.nullcontext)
    monkeypatch.setattr("arm_rl.training.evaluation.evaluate_model", held_out)
    assert evaluate.main(command) == 0
    assert (
        capsys.readouterr().out == "accuracy 0.5\ndone: evaluation.json and the trajectories are in runs/demo/stage2; "
        "`python -m jobs.report runs/demo/stage2` shows the trajectories\n"
    )


async def held_out(config):
    return {"accuracy": 0.5}
