"""Where calls run: in time, so many together, and apart where a tool may hang, crash or eat memory."""

import asyncio
import os
import signal
import subprocess
import time

import psutil
import pytest

from arm_rl.core.images import Image
from arm_rl.core.session import Memory
from arm_rl.core.types import ToolCall
from arm_rl.experiments.processes import is_alive
from tests.support import odd_tools
from tests.support.processes import started
from tests.support.scripted import noise
from tools.base import Execution, ToolContext
from tools.execution.local import LocalTools
from tools.execution.runner import ToolRunner

MINE = ToolContext(session="mine", images={}, texts={}, image_names=[])


def of(session):
    return ToolContext(session=session, images={}, texts={}, image_names=[])


@pytest.fixture
def runner():
    """Makes runners of odd tools by their classes' names; changes of a tool's execution by its name."""
    made = []

    def make(*names, concurrency=32, timeout_seconds=30.0, **executions):
        tools = {tool.name: tool for tool in (getattr(odd_tools, f"{name}Tool")() for name in names)}
        for name, execution in executions.items():
            tools[name].execution = execution
        made.append(ToolRunner(tools, concurrency=concurrency, timeout_seconds=timeout_seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(name, **arguments):
    return ToolCall(name=name, arguments=arguments)


def wait_for_end(child):
    """Returns once the process has ended, all of its threads; its exit status is left to its owner."""
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


async def test_each_isolation_is_where_it_says(runner):
    tools = runner("Inline", "Slow", "Busy")
    assert (await tools.call(call("inline"), MINE)).text == "1 mine []"
    assert (await tools.call(call("slow"), MINE)).text == str(os.getpid())
    worker = (await tools.call(call("busy"), MINE)).text
    assert int(worker) in started()
    assert (await tools.call(call("busy"), MINE)).text == worker, "a worker is used again"


async def test_what_hangs_in_a_thread_takes_nobodys_place(runner):
    tools = runner("Slow", "Count", concurrency=1, timeout_seconds=1.0)
    results = [await tools.call(call("slow", seconds=60.0), MINE) for _ in range(3)]
    assert [(result.status, result.text) for result in results] == [
        ("timeout", "Error: slow took longer than 1 seconds")
    ] * 3
    assert (await tools.call(call("slow"), MINE)).status == "ok"


async def test_what_hangs_in_a_process_is_killed_and_replaced(runner):
    tools = runner("Busy", busy=Execution(concurrency=1, timeout_seconds=1.0))
    first = (await tools.call(call("busy"), MINE)).text
    result = await tools.call(call("busy", seconds=60.0), MINE)
    assert (result.status, result.text) == ("timeout", "Error: busy took longer than 1 seconds")
    assert not psutil.pid_exists(int(first))
    second = await tools.call(call("busy"), MINE)
    assert second.status == "ok", "the time of a start is not the call's"
    assert second.text != first


async def test_a_crash_is_a_failed_call_and_leaves_no_child(runner):
    before = started()
    tools = runner("Crashing", crashing=Execution(concurrency=1))
    for _ in range(2):
        result = await tools.call(call("crashing"), MINE)
        assert (result.status, result.text) == ("failed", "Error: crashing crashed")
    assert started() == before
    sleepers = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "4321"]]
    assert sleepers == []


async def test_a_call_whose_process_was_killed_is_run_once_more(runner):
    tools = runner("Busy", busy=Execution(concurrency=1))
    first = int((await tools.call(call("busy"), MINE)).text)
    running = asyncio.create_task(tools.call(call("busy", seconds=0.5), MINE))
    await asyncio.sleep(0)  # the call is on its way
    os.kill(first, signal.SIGKILL)
    result = await running
    assert result.status == "ok"
    assert int(result.text) != first


async def test_state_that_went_with_its_process_is_said_to_be_lost_once(runner):
    tools = runner("KeepingApart", keeping_apart=Execution(isolation="process", concurrency=1))
    process = int((await tools.call(call("keeping_apart"), MINE)).text.split()[2])
    os.kill(process, signal.SIGKILL)
    wait_for_end(process)
    lost = await tools.call(call("keeping_apart"), MINE)
    assert (lost.status, lost.text) == (
        "failed",
        "Error: keeping_apart was started anew and has forgotten this session's earlier calls",
    )
    assert (await tools.call(call("keeping_apart"), MINE)).text.split()[0] == "1"
    assert (await tools.call(call("keeping_apart"), of("another"))).text.split()[0] == "1", (
        "who had no state has lost none"
    )


async def test_memory_is_limited(runner):
    result = await runner("Hungry").call(call("hungry"), MINE)
    assert (result.status, result.text) == ("failed", "Error: hungry failed: MemoryError")


async def test_what_a_tool_prints_is_no_result(runner):
    assert (await runner("Talking").call(call("talking"), MINE)).text == "said"


async def test_a_tool_that_raises(runner):
    result = await runner("Raising").call(call("raising"), MINE)
    assert (result.status, result.text) == ("failed", "Error: raising failed: ZeroDivisionError")


async def test_wrong_arguments_are_told_across_a_process(runner):
    result = await runner("Busy").call(call("busy", seconds="long"), MINE)
    assert (result.status, result.text) == ("bad_arguments", "Error: seconds: 'long' is not of type 'number'")


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_calls_run_together_up_to_the_limit(runner, isolation):
    tools = runner("Slow", slow=Execution(isolation=isolation, concurrency=2, timeout_seconds=20))
    await asyncio.gather(*(tools.call(call("slow"), MINE) for _ in range(2)))  # workers have started
    started = time.monotonic()
    results = await asyncio.gather(*(tools.call(call("slow", seconds=0.3), MINE) for _ in range(6)))
    assert [result.status for result in results] == ["ok"] * 6
    assert time.monotonic() - started >= 0.9, "two at a time: three rounds"


async def test_the_time_in_the_queue_is_not_the_calls(runner):
    tools = runner("Slow", slow=Execution(isolation="thread", concurrency=1, timeout_seconds=2.0))
    results = await asyncio.gather(*(tools.call(call("slow", seconds=0.8), MINE) for _ in range(4)))
    assert [result.status for result in results] == ["ok"] * 4


async def test_a_session_finds_its_state_again_in_its_worker(runner):
    tools = runner("KeepingApart")
    seen = [
        (await tools.call(call("keeping_apart"), of(session))).text.split() for session in ("a", "b", "a", "b", "a")
    ]
    assert [turn for turn, _, _ in seen] == ["1", "1", "2", "2", "3"]
    assert len({process for _, _, process in seen}) == 2, "sessions are spread over the workers"
    await tools.release("a")
    await tools.release("a")  # one that is not known is no error
    assert (await tools.call(call("keeping_apart"), of("a"))).text.split()[0] == "1"
    assert (await tools.call(call("keeping_apart"), of("b"))).text.split()[0] == "3"


async def test_a_lost_worker_loses_the_state_but_not_the_session(runner):
    tools = runner("KeepingApart")
    worker = int((await tools.call(call("keeping_apart"), of("a"))).text.split()[2])
    psutil.Process(worker).kill()
    wait_for_end(worker)
    seen = await tools.call(call("keeping_apart"), of("a"))
    assert seen.text.split()[0] == "1" or seen.status == "failed"
    assert (await tools.call(call("keeping_apart"), of("a"))).status == "ok"
    await tools.release("a")


async def test_a_cancelled_call_frees_its_worker(runner):
    tools = runner("Busy", busy=Execution(concurrency=1))
    waiting = asyncio.create_task(tools.call(call("busy", seconds=60.0), MINE))
    while not started():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await tools.call(call("busy"), MINE)).status == "ok"


async def test_workers_end_with_their_runner(runner):
    before = started()
    tools = runner("Busy")
    worker = int((await tools.call(call("busy"), MINE)).text)
    assert worker in started()
    tools.close()
    assert started() == before


def test_workers_end_with_their_owner_however_it_ends(tmp_path):
    program = (
        "import asyncio, os, signal\n"
        "from tests.support.odd_tools import BusyTool\n"
        "from tools.base import ToolContext\n"
        "from tools.execution.runner import ToolRunner\n"
        "from arm_rl.core.types import ToolCall\n"
        "async def main():\n"
        "    tools = ToolRunner({'busy': BusyTool()}, concurrency=1, timeout_seconds=30)\n"
        "    context = ToolContext(session='', images={}, texts={}, image_names=[])\n"
        "    print((await tools.call(ToolCall(name='busy', arguments={}), context)).text, flush=True)\n"
        "    asyncio.create_task(tools.call(ToolCall(name='busy', arguments={'seconds': 60.0}), context))\n"
        "    await asyncio.sleep(0.3)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    import sys

    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    worker = int(answer.stdout)
    while is_alive(worker):  # the test's time limit is the patience
        time.sleep(0.05)


async def test_local_tools_are_the_same_tools():
    tools = LocalTools({tool.name: tool for tool in (odd_tools.KeepingTool(), odd_tools.MirrorTool())})
    scene = Image.from_pil(noise(8, 8))
    first, second = Memory(images={"original_image": scene}, texts={"text_0": "x"}), Memory()
    assert (await tools(call("mirror", image="original_image"), first)).images == (scene,)
    assert [(await tools(call("keeping"), memory)).text.split()[:2] for memory in (first, second, first)] == [
        ["1", "1"],
        ["1", "2"],
        ["2", "2"],
    ]
    await tools.release(first)
    assert (await tools(call("keeping"), second)).text.split()[:2] == ["2", "1"]
    tools.close()
