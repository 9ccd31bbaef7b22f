"""The service on Ray Serve: started as a user starts it, asked over HTTP, left by a client, ended by a signal while it works."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from arm_rl.export.judge_config import FILE
from tests.judge.test_service import ASKED

HEADERS = {"Authorization": "Bearer secret"}
MANY = {"question": "Which?", "answers": [str(number) for number in range(30)]}  # 29 sessions


@pytest.fixture
def folder(judge_folder, tmp_path) -> Path:
    """An export of an untrained judge: it rambles to the limit of its tokens."""
    folder = tmp_path / "export"
    folder.mkdir()
    for file in judge_folder.iterdir():
        (folder / file.name).symlink_to(file)
    session = {"max_turns": 2, "max_prompt_tokens": 256, "max_response_tokens": 256}
    shipped = yaml.safe_load(Path("configs/demo.yaml").read_text())
    (folder / FILE).write_text(yaml.safe_dump(shipped | {"session": session, "rollout": {"max_model_len": 512}}))
    return folder


def wait_until(holds: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def begun(port: int, body: dict) -> socket.socket:
    """A connection with a request on its way: closing it is what a client does that goes away."""
    content = json.dumps(body).encode()
    head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nAuthorization: {HEADERS['Authorization']}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(head.encode() + content)
    return connection


def assert_taken(command: list[str], port: int) -> None:
    """Check that a second server on the port is an error, and not taken for the first one."""
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"error: 127.0.0.1:{port} cannot be listened on" in second.stderr
    assert "serving" not in second.stdout


@pytest.mark.slow
def test_a_judge_is_served_and_ends_without_a_trace(folder, tmp_path, free_port):
    (tmp_path / "token").write_text("secret\n")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "jobs.serve", str(folder), "--port", str(free_port)]
    command += ["--token-file", str(tmp_path / "token"), "--concurrency", "1", "--max-requests", "2"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{free_port}"
    client = httpx.Client(base_url=url, headers=HEADERS, timeout=240)

    def value(metric: str) -> float:
        found = re.search(rf"^{re.escape(metric)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    answers: list[httpx.Response] = []

    def ask(body: dict) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/judge", json=body, headers=HEADERS, timeout=240))
        )
        thread.start()
        return thread

    try:
        wait_until(lambda: "serving the judge" in log.read_text(), process, log)
        assert client.get("/health").json() == {"status": "ok"}
        assert_taken(command, free_port)
        assert_taken([*command, "--model-only"], free_port)
        assert httpx.post(f"{url}/v1/judge", json=ASKED).status_code == 401
        answer = client.post("/v1/judge", json=ASKED).json()
        assert answer.keys() == {"choice", "confidence", "consistent", "reasoning", "opinions"}
        assert answer["opinions"][0]["turns"]
        assert value('judge_requests_total{endpoint="judge",status="200"}') == 1

        # A client that goes away in the middle of its sessions leaves room for others.
        with begun(free_port, MANY):
            wait_until(lambda: value("judge_requests_running") == 1, process, log)
        wait_until(lambda: value('judge_requests_total{endpoint="rank",status="499"}') == 1, process, log)
        assert value("judge_requests_running") == 0
        assert client.post("/v1/judge", json=ASKED).status_code == 200

        # More than it takes: told to come again, and those that run are answered.
        asking = [ask(ASKED) for _ in range(12)]
        for thread in asking:
            thread.join()
        assert {answer.status_code for answer in answers} == {200, 429}

        # The end lets what runs be answered.
        answers.clear()
        last = ask(ASKED)
        wait_until(lambda: value("judge_requests_running") == 1, process, log)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        last.join()
        assert [answer.status_code for answer in answers] == [200]
        assert process.wait(120) == 0
        assert psutil.wait_procs(below, timeout=60)[1] == []
    finally:
        process.kill()
    assert "secret" not in log.read_text()
