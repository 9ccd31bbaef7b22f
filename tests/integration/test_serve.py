"""The service on Ray Serve: started as a user starts it, asked over HTTP, ended by a signal."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.test_service import ASKED


@pytest.mark.ray
def test_a_judge_is_served_and_ends_without_a_trace(judge_folder, tmp_path, free_port):
    config = tmp_path / "config.yaml"
    shipped = yaml.safe_load(Path("configs/demo.yaml").read_text())
    session = {"max_turns": 2, "max_prompt_tokens": 128, "max_response_tokens": 128}
    config.write_text(yaml.safe_dump(shipped | {"session": session}))
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "jobs.serve", str(judge_folder), "--config", str(config), "--port", str(free_port)]
    command += ["--token-file", str(tmp_path / "token")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    url, headers = f"http://127.0.0.1:{free_port}", {"Authorization": "Bearer secret"}
    try:
        deadline = time.monotonic() + 300
        while "serving the judge" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert httpx.get(f"{url}/health", timeout=60).json() == {"status": "ok"}
        assert httpx.post(f"{url}/v1/judge", json=ASKED, timeout=60).status_code == 401
        answer = httpx.post(f"{url}/v1/judge", json=ASKED, headers=headers, timeout=120).json()
        assert answer.keys() == {"choice", "confidence", "consistent", "reasoning", "opinions"}
        assert answer["opinions"][0]["turns"]
        assert 'status="200"} 1.0' in httpx.get(f"{url}/metrics", timeout=60).text
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert psutil.wait_procs(below, timeout=60)[1] == []
    finally:
        process.kill()
    assert "secret" not in (tmp_path / "log").read_text()
