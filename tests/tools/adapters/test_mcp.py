"""Tools of MCP servers: a real server of the official SDK, over its pipes and over HTTP, which answers, fails, hangs and dies."""

import base64
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image as PILImage

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image
from tests.support.processes import started
from tools.adapters import mcp, mcp_connection
from tools.adapters.mcp import mcp_tools
from tools.adapters.mcp_content import MAX_IMAGES, as_result
from tools.base import Execution, ToolContext

ROOT = str(Path(__file__).parents[3])
COMMAND = ["python", "-m", "tests.support.mcp_echo_server"]
NAMES = ["add", "image", "fail", "slow", "hang", "die", "surroundings"]
NOTHING = ToolContext(session="s", images={}, texts={}, image_names=[])


def entry(*names, **mcp):
    return {"mcp": {"command": COMMAND, "cwd": ROOT, **mcp}, "tools": list(names)}


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def offered():
    """All tools of one server, listed once; they share a connection."""
    before = started()
    tools = {tool.name: tool for tool in mcp_tools(entry(*NAMES), "file: tools[0]")}
    assert started() == before, "the server that listed its tools is gone"
    yield tools
    for tool in tools.values():
        tool.close()
    assert started() == before, "close() ended the server"


def pid_of_server(offered):
    return int(offered["surroundings"].call({}, NOTHING).text.split()[0])


def test_the_schema_is_the_servers(offered):
    function = offered["add"].schema["function"]
    assert (function["name"], function["description"]) == ("add", "Adds two numbers.")
    assert function["parameters"]["required"] == ["a", "b"]
    assert function["parameters"]["properties"]["a"]["type"] == "integer"
    assert list(offered) == NAMES, "in the order of the entry"


def test_a_call(offered):
    result = offered["add"].call({"a": 2, "b": 40}, NOTHING)
    assert (result.status, result.text, result.images) == ("ok", "42", ())


def test_wrong_arguments_do_not_reach_the_server(offered):
    assert offered["add"].call({"a": "two", "b": 1}, NOTHING).status == "bad_arguments"
    assert offered["add"].call({"a": 2}, NOTHING).text == "Error: 'b' is a required property"


def test_images_are_images(offered):
    result = offered["image"].call({"width": 30}, NOTHING)
    assert result.status == "ok"
    assert result.text == "a picture\n[an image was left out: it cannot be read]"
    assert [image.size for image in result.images] == [(30, 8)]
    assert result.images[0].pil().getpixel((0, 0)) == (255, 0, 0)


def test_an_error_of_the_tool_is_a_failed_call(offered):
    result = offered["fail"].call({}, NOTHING)
    assert result.status == "failed"
    assert "no luck today" in result.text


def test_one_connection_serves_all_tools_and_threads(offered):
    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(lambda n: offered["add"].call({"a": n, "b": 1}, NOTHING).text, range(40)))
        pids = set(threads.map(lambda _: pid_of_server(offered), range(8)))
    assert texts == [str(n + 1) for n in range(40)]
    assert len(pids) == 1


def test_a_slow_call_is_a_timeout_and_the_server_stays(offered):
    pid = pid_of_server(offered)
    offered["slow"].execution = Execution(isolation="thread", timeout_seconds=0.3)
    result = offered["slow"].call({"seconds": 60}, NOTHING)
    assert (result.status, result.text) == ("timeout", "Error: slow took longer than 0.3 seconds")
    assert pid_of_server(offered) == pid


def test_a_server_that_dies_in_a_call_fails_that_call_and_comes_back(offered):
    pid = pid_of_server(offered)
    result = offered["die"].call({}, NOTHING)
    assert (result.status, result.text) == ("failed", "Error: die: its server ended during the call")
    assert offered["add"].call({"a": 1, "b": 1}, NOTHING).text == "2"
    assert pid_of_server(offered) != pid


def test_a_server_that_died_between_calls_is_not_noticed(offered):
    pid = pid_of_server(offered)
    connection = mcp._CONNECTIONS[offered["add"].server]
    os.kill(pid, signal.SIGKILL)
    until(lambda: connection._ended.is_set())
    assert offered["add"].call({"a": 1, "b": 2}, NOTHING).text == "3"


def test_a_server_that_hangs_altogether_is_replaced(offered, monkeypatch):
    monkeypatch.setattr(mcp_connection, "PROBE_SECONDS", 0.2)
    pid = pid_of_server(offered)
    offered["hang"].execution = Execution(isolation="thread", timeout_seconds=0.3)
    assert offered["hang"].call({}, NOTHING).status == "timeout"
    connection = mcp._CONNECTIONS[offered["hang"].server]
    until(lambda: connection._ended.is_set())
    assert pid_of_server(offered) != pid
    until(lambda: not psutil.pid_exists(pid))


def test_it_pickles_and_has_its_own_connection_elsewhere(offered):
    pid_of_server(offered)  # connected
    code = """
import pickle, sys
tool = pickle.load(sys.stdin.buffer)
from tools.base import ToolContext
print(tool.call({}, ToolContext(images={}, texts={}, image_names=[])).text)
"""
    data = pickle.dumps(offered["surroundings"])
    told = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, timeout=60, check=True
    )
    pid = int(told.stdout.split()[0])
    assert pid != pid_of_server(offered)
    until(lambda: not psutil.pid_exists(pid))  # it went with its process, though nobody closed it


def test_the_server_goes_when_its_process_is_killed(tmp_path):
    stubborn = tmp_path / "stubborn.py"  # ends neither when its input does, nor when it is asked to
    stubborn.write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'pid')!r} + '.new', 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'pid')!r} + '.new', {str(tmp_path / 'pid')!r})\n"
        "time.sleep(3600)\n"
    )
    entry = {"mcp": {"command": ["python", str(stubborn)]}, "tools": ["x"]}
    code = f"from tools.adapters.mcp import mcp_tools; mcp_tools({entry!r}, '')"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        until((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(pid)
    finally:
        process.kill()
        process.wait()
    until(lambda: not psutil.pid_exists(pid))


def test_the_environment_is_what_the_entry_names(monkeypatch):
    monkeypatch.setenv("OUR_TOKEN", "s3cret")
    monkeypatch.setenv("OTHER", "private")
    (tool,) = mcp_tools(entry("surroundings", env={"TOKEN": "OUR_TOKEN"}), "")
    try:
        assert b"s3cret" not in pickle.dumps(tool)
        assert tool.call({}, NOTHING).text.split()[1:] == ["s3cret", "-"]
        assert "s3cret" not in repr(tool) + str(vars(tool))
    finally:
        tool.close()


def test_over_http(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OUR_HEADER", "Bearer s3cret")
    web = entry("add", "image", "fail")
    web["mcp"] = {"url": f"http://127.0.0.1:{port}/mcp", "headers": {"Authorization": "OUR_HEADER"}}
    with pytest.raises(
        UserError, match=r"file: tools\[0\].mcp: http://127.0.0.1:\d+/mcp: it does not answer as an MCP server"
    ):
        mcp_tools(web, "file: tools[0]")
    process = start_http(port)
    tools = {tool.name: tool for tool in mcp_tools(web, "file: tools[0]")}
    try:
        assert tools["add"].call({"a": 2, "b": 3}, NOTHING).text == "5"
        assert tools["image"].call({"width": 9}, NOTHING).images[0].size == (9, 8)
        assert tools["fail"].call({}, NOTHING).status == "failed"
        process.kill()
        process.wait()
        assert tools["add"].call({"a": 2, "b": 3}, NOTHING).status == "failed"
        process = start_http(port)
        assert tools["add"].call({"a": 2, "b": 4}, NOTHING).text == "6"
    finally:
        process.kill()
        process.wait()
        for tool in tools.values():
            tool.close()


def start_http(port):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.mcp_echo_server", "http", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens)
    return process


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mcp": None}, "mcp: either command .* or url"),
        ({"mcp": {"env": {}}}, "mcp: either command .* or url"),
        ({"mcp": {"command": ["x"], "url": "http://x"}}, "mcp: unknown key 'url'; known beside command: env, cwd"),
        ({"mcp": {"url": "http://x", "env": {}}}, "mcp: unknown key 'env'; known beside url: headers"),
        ({"mcp": {"command": "python server.py"}}, "mcp.command: a list of texts"),
        ({"mcp": {"command": []}}, "mcp.command: a list of texts"),
        ({"mcp": {"command": ["x"], "cwd": "/no/such/folder"}}, "mcp.cwd: there is no folder /no/such/folder"),
        ({"mcp": {"command": ["no-such-program-anywhere"]}}, "mcp: .*it said: no-such-program-anywhere: No such file"),
        ({"mcp": {"url": "ftp://host/mcp"}}, "mcp.url: an address such as"),
        ({"mcp": {"url": "https://user:word@host/mcp"}}, "mcp.url: .*without user, password"),
        ({"mcp": {"url": "https://host/mcp?key=word"}}, "mcp.url: .*without user, password"),
        ({"mcp": {"command": ["x"], "env": ["TOKEN"]}}, "mcp.env: a mapping"),
        (
            {"mcp": {"command": ["x"], "env": {"TOKEN": "NOT_SET_ANYWHERE"}}},
            "mcp.env.TOKEN: the name of an environment variable that is set",
        ),
        (
            {"mcp": {"command": ["python", "-c", "raise SystemExit('bad licence')"]}},
            "mcp: .*: it does not answer as an MCP server: .*it said: bad licence",
        ),
    ],
)
def test_a_wrong_entry_is_named(given, message):
    with pytest.raises(UserError, match=rf"file: tools\[0\].{message}"):
        mcp_tools({"tools": ["add"], **given}, "file: tools[0]")


@pytest.mark.parametrize("value", ["sk-1234-secret", "secret", 1234567])
def test_a_value_in_the_place_of_a_name_is_refused_and_not_shown(value):
    with pytest.raises(UserError) as raised:
        mcp_tools(entry("add", env={"TOKEN": value}), "file: tools[0]")
    assert str(value) not in str(raised.value)


def test_what_a_server_says_of_a_secret_is_hidden(monkeypatch):
    monkeypatch.setenv("OUR_TOKEN", "s3cret")
    code = "import os; raise SystemExit('cannot log in with ' + os.environ['TOKEN'])"
    with pytest.raises(UserError, match=r"cannot log in with \*\*\*$"):
        mcp_tools({"mcp": {"command": ["python", "-c", code], "env": {"TOKEN": "OUR_TOKEN"}}, "tools": ["x"]}, "")


def test_a_server_that_says_nothing(monkeypatch):
    monkeypatch.setattr(mcp_connection, "START_SECONDS", 0.3)
    monkeypatch.setattr("tools.adapters.mcp.START_SECONDS", 0.3)
    before = started()
    with pytest.raises(UserError, match=r"listed no tools within 0.3 seconds"):
        mcp_tools({"mcp": {"command": ["python", "-c", "import sys; sys.stdin.read()"]}, "tools": ["x"]}, "")
    assert started() == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["add", "multiply"],
            r"tools: python -m tests.support.mcp_echo_server has no tool 'multiply'; it offers add, odd, outward",
        ),
        (None, "tools: a list of names, each once, is needed; the server offers add, odd, outward"),
        (["add", "add"], "tools: a list of names, each once"),
        (["add", 3], "tools: a list of names, each once"),
        ([], "tools: a list of names, each once"),
        (["add", "odd"], "tools: odd: its inputSchema is not a JSON schema: 'word' is not valid"),
        (["outward"], "tools: outward: its inputSchema refers to another document"),
    ],
)
def test_tools_are_named_and_their_schemas_checked(monkeypatch, names, message):
    schemas = {
        "add": {},
        "odd": {"properties": {"a": {"type": "word"}}},
        "outward": {"properties": {"a": {"$ref": "http://host/a"}}},
    }

    async def list_tools(server, errors):
        return {
            name: SimpleNamespace(name=name, description=None, input_schema=schema) for name, schema in schemas.items()
        }

    monkeypatch.setattr("tools.adapters.mcp.list_tools", list_tools)
    with pytest.raises(UserError, match=message):
        mcp_tools({**entry(), "tools": names}, "file: tools[0]")
    (plain,) = mcp_tools(entry("add"), "")
    assert plain.schema["function"] == {
        "name": "add",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    }


def answer(*content, is_error=False, structured=None):
    return as_result(SimpleNamespace(content=content, is_error=is_error, structured_content=structured))


def part(type_, **fields):
    return SimpleNamespace(type=type_, **fields)


def test_other_content_is_named():
    resource = part("resource", resource=SimpleNamespace(text="inside", mime_type="text/plain", uri="a:b"))
    link = part("resource_link", name="report", uri="file:///report.pdf")
    result = answer(part("text", text="one"), resource, link, part("audio", data="", mime_type="audio/wav"))
    assert result.text == "one\ninside\nreport: file:///report.pdf\n[content of type audio was left out]"
    assert answer(structured={"result": 3}).text == '{"result": 3}'
    assert answer(is_error=True).status == "failed"


def test_images_are_bounded_in_number_and_size(monkeypatch):
    data = base64.b64encode(Image.from_pil(PILImage.new("L", (100, 100))).data).decode()
    images = [part("image", data=data, mime_type="image/png")] * (MAX_IMAGES + 2)
    result = answer(*images)
    assert len(result.images) == MAX_IMAGES
    assert result.text.count("left out") == 2
    monkeypatch.setattr("arm_rl.core.images.MAX_PIXELS", 90 * 90 - 1)
    file = io.BytesIO()
    PILImage.new("L", (90, 90)).save(file, "PNG")
    large = base64.b64encode(file.getvalue()).decode()
    assert answer(part("image", data=large, mime_type="image/png")).text == "[an image was left out: it cannot be read]"
    assert answer(part("image", data="%%%", mime_type="image/png")).text == "[an image was left out: it cannot be read]"
