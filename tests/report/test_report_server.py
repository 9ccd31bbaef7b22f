"""The report's server: all trajectories of a run, to this machine alone; and its memory with very many of them."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from arm_rl.report import server
from tests.report.test_report import write_groups, write_run
from tests.support.many_trajectories import write_many

HELD_MB = 350  # that 100,000 trajectories may take beside what the program itself does

MEASURED = """
import json, resource, sys
from pathlib import Path
from arm_rl.report import server
from arm_rl.report.static_report import write_report

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder = Path(sys.argv[1])
empty = folder / "empty"
empty.mkdir()
write_report(empty)
before = peak_mb()
page_bytes = write_report(folder, max_mb=4).stat().st_size
report = server.Report(folder)
listed = len(json.loads(report.index([]))["columns"]["reward"])
found = len(json.loads(report.search([("text", "too small")])))
shown = json.loads(report.contents([("row", "stage2-000499/199")]))[0]["card"]
print(json.dumps({"held_mb": peak_mb() - before, "page_bytes": page_bytes, "listed": listed, "found": found, "shown": shown}))
"""


@pytest.fixture
def address(tmp_path):
    """Of a server of a small run."""
    report = server.Report(write_run(tmp_path))
    with server.make_server(report, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_the_server_gives_the_page_and_what_it_asks_for(address):
    with httpx.Client(base_url=address) as client:
        page = client.get("/")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "connect-src 'self'" in page.text
        index = client.get("/index").json()
        assert [(file["stage"], file["rows"]) for file in index["files"]][-1] == ("stage2-evaluation", 1)
        assert index["columns"]["flags"] == [2, 2, 3]
        (content,) = client.get("/contents", params={"row": "stage2-evaluation-000003/0"}).json()
        assert "It is a 4." in content["card"]
        picture = {"file": "stage2-evaluation-000003", "key": content["keys"][0]}
        assert client.get("/picture", params=picture).json()["uri"].startswith("data:image/png;base64,")
        assert client.get("/picture", params=picture | {"key": "no such"}).json() is None
        assert len(client.get("/search", params={"text": "IT IS A 4"}).json()) == 3
        assert client.get("/search", params={"text": "never said"}).json() == []


def test_what_is_not_there_is_not_found(address):
    with httpx.Client(base_url=address) as client:
        for wrong in (
            "/etc/passwd",
            "/contents?row=../../etc/passwd/0",
            "/contents?row=sft-evaluation-000003/7",
            "/picture",
            "/search",
        ):
            assert client.get(wrong).status_code == 404
        for wrong in ("-1", "x", ""):
            assert client.get("/contents", params={"row": f"sft-evaluation-000003/{wrong}"}).status_code == 404
        assert client.get("/index").status_code == 200


def test_a_page_from_elsewhere_reads_nothing(address):
    assert httpx.get(address, headers={"Host": "elsewhere.example:80"}).status_code == 403
    port = address.rpartition(":")[2]
    assert httpx.get(address, headers={"Host": f"localhost:{port}"}).status_code == 200


def test_the_page_shows_what_the_run_has_written_since(address, tmp_path):
    write_groups(tmp_path, {"a": [0.0, 1.0]}, step=9)
    assert '"total":5' in httpx.get(address).text
    assert len(httpx.get(f"{address}/index").json()["columns"]["reward"]) == 5


@pytest.mark.slow
def test_100_000_trajectories_are_never_held_at_once(tmp_path):
    write_many(tmp_path, num_files=500, rows_in_file=200)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    assert measured.returncode == 0, measured.stderr
    numbers = json.loads(measured.stdout)
    assert numbers["listed"] == numbers["found"] == 100_000
    assert "It is a 4." in numbers["shown"]
    assert numbers["page_bytes"] < 4.2e6
    assert numbers["held_mb"] < HELD_MB
