"""What is said of the hub and of W&B's key."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from arm_rl.machine import services
from arm_rl.machine.services import check_hub, check_wandb


@pytest.fixture
def mirror() -> Iterator[str]:
    """Address of a server that answers every question after the hub with "not found", but that of its root."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path in ("/", "") else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_that_answers(mirror):
    found = check_hub({"HF_ENDPOINT": mirror})
    assert (found.verdict, found.text) == ("ok", f"{mirror} answers")


def test_a_hub_that_answers_with_an_error(mirror):
    found = check_hub({"HF_ENDPOINT": f"{mirror}/nowhere"})
    assert (found.verdict, "status 404" in found.text) == ("warning", True)


def test_a_hub_that_cannot_be_reached(free_port):
    found = check_hub({"HF_ENDPOINT": f"http://127.0.0.1:{free_port}"})
    assert found.verdict == "warning"
    assert "model.path" in found.advice


@pytest.mark.parametrize("name", services.OFFLINE)
def test_an_environment_that_stays_offline_is_respected(name, free_port):
    found = check_hub({name: "1", "HF_ENDPOINT": f"http://127.0.0.1:{free_port}"})
    assert found.verdict == "ok"
    assert name in found.text


def test_the_key_of_wandb_is_never_printed(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 8)
    found = check_wandb()
    assert (found.verdict, found.text) == ("ok", "a key is present")


def test_without_a_key_of_wandb_there_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert check_wandb().verdict == "warning"
