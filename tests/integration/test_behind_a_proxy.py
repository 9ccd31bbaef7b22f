"""Every client and every process of the project with proxies in the environment that lead nowhere."""

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import time

import pytest

from actors.cluster.connection import cluster
from arm_rl.data.image_store import FetchLimits, ImageSource
from arm_rl.judge.chat_client import ChatServer
from arm_rl.judge.reward_client import RewardClient
from arm_rl.machine.services import check_hub
from jobs.server_options import read_server
from tests.support.chat_server import FakeServer
from tests.support.http_server import LoopbackServer, send
from tests.support.scripted import noise
from tools.adapters.mcp_connection import McpServer, list_tools
from tools.web.search import WebSearchTool

NOWHERE = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
NOWHERE |= {"ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def proxies(monkeypatch):
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


async def test_chat_servers():
    with FakeServer(lambda body: "hello") as server:
        chat = ChatServer(f"{server.url}/v1")
        choice = await chat.complete({"messages": []})
        await chat.close()
        assert choice["message"]["content"] == "hello"
        options = argparse.Namespace(concurrency=1, api_key_variable=None, served_model=None, timeout=5.0, retries=0)
        assert read_server(f"{server.url}/v1", options)[0].model == "judge"


def test_images_of_data_files(tmp_path):
    buffer = io.BytesIO()
    noise().save(buffer, format="PNG")
    with LoopbackServer(lambda handler: send(handler, buffer.getvalue())) as server:
        read = ImageSource(tmp_path, limits=FetchLimits(fetch=True)).read(f"{server.url}/a.png")
    assert read.data == buffer.getvalue()


def test_the_reward_client():
    answer = json.dumps({"choice": True, "confidence": 0.75}).encode()
    with LoopbackServer(lambda handler: send(handler, answer)) as server:
        client = RewardClient(server.url)
        assert client.reward("Which?", "7") == 0.75
        client.close()


def test_the_doctors_question_to_a_mirror_of_the_hub():
    def respond(handler):
        send(handler, b"")

    with LoopbackServer(respond) as server:
        assert check_hub({"HF_ENDPOINT": server.url}).verdict == "ok"


def test_the_web_search():
    found = json.dumps({"results": [{"title": "A title", "url": "https://a.example", "content": "A text"}]}).encode()
    with LoopbackServer(lambda handler: send(handler, found)) as server:
        tool = WebSearchTool(engine="searxng", base_url=server.url, retries=0)
        result = tool.run(WebSearchTool.Arguments(query="a title"), None)
        tool.close()
    assert (result.status, "A text" in result.text) == ("ok", True)


def test_tools_of_an_mcp_server(free_port):
    command = [sys.executable, "-m", "tests.support.mcp_echo_server", "http", str(free_port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    tools = asyncio.run(list_tools(McpServer(url=f"http://127.0.0.1:{free_port}/mcp"), None))
                    break
                except Exception:
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
        finally:
            process.kill()
    assert "add" in tools


def test_ray_starts_and_runs_actors(no_ray):
    import ray

    with cluster():

        @ray.remote(num_cpus=0)
        def environment():
            return os.environ["ALL_PROXY"]

        assert ray.get(environment.remote(), timeout=120) == NOWHERE["ALL_PROXY"]
