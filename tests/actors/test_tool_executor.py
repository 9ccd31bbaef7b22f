"""Tool executors on a real Ray: whatever happens to a call is an observation, and the next call works."""

import asyncio
import time

import pytest
import ray
import yaml

from actors.cluster import cluster
from actors.tool_executor import ToolExecutor, ToolPool
from arm_rl.core import session
from arm_rl.core.config import SessionConfig, ToolsConfig
from arm_rl.core.images import Image
from arm_rl.core.session import Memory
from arm_rl.core.types import ToolCall
from tests.scripted import ANSWER, ZOOM, Scripted, make_sample, noise
from tests.scripted import call as call_turn

pytestmark = pytest.mark.ray

SCENE = Image.from_pil(noise(64, 48))


@pytest.fixture(scope="module")
def local_ray():
    with cluster():
        yield


@pytest.fixture(scope="module")
def tool_file(tmp_path_factory):
    """The zoom, and every odd tool."""
    path = tmp_path_factory.mktemp("tools") / "odd.yaml"
    odd = ("CountTool", "SlowTool", "RaisingTool", "CrashingTool", "MirrorTool")
    path.write_text(yaml.safe_dump({"tools": [{"class_name": ZOOM}, *({"class_name": f"tests.odd_tools.{name}"} for name in odd)]}))
    return str(path)


@pytest.fixture
def start(local_ray, tool_file):
    """Starts executors and gives their pool."""
    started = []

    def start(number=1, **settings):
        config = ToolsConfig(files=(tool_file,), **settings)
        executors = [ray.remote(ToolExecutor).options(num_cpus=0, max_restarts=-1).remote(config) for _ in range(number)]
        started.extend(executors)
        ray.get([executor.ready.remote() for executor in executors])
        return ToolPool(executors)

    yield start
    for executor in started:
        ray.kill(executor)


def call(name, **arguments):
    return ToolCall(name=name, arguments=arguments)


def memory(**images):
    return Memory(images=dict(images), texts={"text_0": "It is a 4."})


async def test_a_call_that_works(start):
    result = await start()(call(ZOOM, image="original_image", bbox_2d=[0, 0, 1000, 1000]), memory(original_image=SCENE))
    assert (result.status, result.text) == ("ok", "")
    assert result.images[0].pil().size == (128, 96)


async def test_an_image_arrives_as_it_was_and_alone(start):
    """Only what the arguments name travels; the names of all are known."""
    other = Image.from_pil(noise(8, 8, seed=1))
    result = await start()(call("mirror", image="original_image"), memory(original_image=SCENE, observation_1=other))
    assert result.images == (SCENE,)
    assert result.text.startswith("['original_image'] ['It is a 4.'] ['original_image', 'observation_1'] ")


async def test_wrong_arguments(start):
    pool = start()
    result = await pool(call(ZOOM, image="observation_1", bbox_2d=[0, 0, 1, 1]), memory(original_image=SCENE))
    assert result.status == "bad_arguments"
    assert "known: original_image" in result.text
    result = await pool(call(ZOOM, image="original_image", bbox_2d=["0", 0, 1, 1]), memory(original_image=SCENE))
    assert result.status == "bad_arguments"


async def test_a_tool_that_raises_has_failed(start):
    pool = start()
    result = await pool(call("raising"), memory())
    assert (result.status, result.text) == ("failed", "Error: raising failed: ZeroDivisionError")
    assert "secret" not in result.text, "the policy does not see the machine's messages"
    assert (await pool(call("count"), memory())).status == "ok"


async def test_a_slow_tool_times_out_and_takes_nobodys_place(start):
    """With room for one call at a time: what hangs on in its thread does not block the next call."""
    pool = start(concurrency=1, timeout_seconds=0.5)
    results = [await pool(call("slow", seconds=30.0), memory()) for _ in range(2)]
    assert [result.status for result in results] == ["timeout", "timeout"]
    assert results[0].text == "Error: slow took longer than 0.5 seconds"
    assert (await pool(call("count"), memory())).status == "ok"


async def test_a_timeout_ends_no_other_call(start):
    pool = start(concurrency=8, timeout_seconds=4.0)
    await pool(call("count"), memory())  # both start at once, neither pays for the first call

    async def later():
        await asyncio.sleep(2.0)
        return await pool(call("slow", seconds=3.0), memory())

    slow, late = await asyncio.gather(pool(call("slow", seconds=30.0), memory()), later())
    assert (slow.status, late.status) == ("timeout", "ok")


async def test_calls_run_together_up_to_the_limit(start):
    pool = start(concurrency=3, timeout_seconds=30.0)
    results = await asyncio.gather(*(pool(call("count", seconds=0.2), memory()) for _ in range(9)))
    assert [result.status for result in results] == ["ok"] * 9
    num_calls, most_running = max(tuple(map(int, result.text.split())) for result in results)
    assert num_calls == 9
    assert 2 <= most_running <= 3


async def test_the_time_in_the_queue_is_not_the_calls(start):
    """Three calls of half the limit, one after the other: all of them in time."""
    pool = start(concurrency=1, timeout_seconds=4.0)
    results = await asyncio.gather(*(pool(call("slow", seconds=2.0), memory()) for _ in range(3)))
    assert [result.status for result in results] == ["ok"] * 3


async def test_a_crash_is_a_failed_call_and_the_executor_comes_back(start):
    pool = start()
    assert (await pool(call("count"), memory())).status == "ok"
    result = await pool(call("crashing"), memory(original_image=SCENE))
    assert (result.status, result.text) == ("failed", "Error: crashing crashed")
    limit = time.monotonic() + 60
    while (again := await pool(call("count"), memory())).status != "ok":
        assert again.status == "failed"
        assert time.monotonic() < limit
        await asyncio.sleep(0.2)
    assert again.text.startswith("1 "), "a new process counts anew"


async def test_executors_take_turns(start):
    pool = start(2)
    results = [await pool(call("mirror", image="original_image"), memory(original_image=SCENE)) for _ in range(4)]
    processes = [result.text.rsplit(" ", 1)[1] for result in results]
    assert processes[0] == processes[2] != processes[1] == processes[3]


async def test_an_image_is_stored_once_and_forgotten_with_its_session(start):
    pool = start()
    same = Image.from_bytes(SCENE.data)
    other = Image.from_pil(noise(8, 8, seed=1))
    await pool(call("mirror", image="original_image"), memory(original_image=SCENE))
    await pool(call("mirror", image="original_image"), memory(original_image=same))
    assert list(pool._stored) == [SCENE.key]
    await pool(call("mirror", image="observation_1"), memory(original_image=SCENE, observation_1=other))
    assert set(pool._stored) == {SCENE.key, other.key}
    pool.release([SCENE.key, "never stored"])
    assert list(pool._stored) == [other.key]
    pool.release([other.key])
    assert pool._stored == {}
    assert (await pool(call("mirror", image="original_image"), memory(original_image=SCENE))).images == (SCENE,)


async def test_a_session_leaves_nothing_behind(start, template, tmp_path):
    """A whole session over the executors, released as the rollouts do it."""
    pool = start()
    turns = (call_turn(), call_turn(image="observation_1"), call_turn([5, 1, 1, 1]), ANSWER)
    finished = await session.run(make_sample(tmp_path), Scripted(template, *turns), pool, SessionConfig(), template=template)
    assert finished.trajectory.end == "answered"
    assert [event.status for event in finished.trajectory.tool_events] == ["ok", "ok", "bad_arguments"]
    assert pool._stored
    pool.release(list(finished.images))
    assert pool._stored == {}


async def test_a_call_of_any_shape_gets_to_a_tool(start, template, tmp_path):
    """As deep as a call may be, halves of characters, numbers beyond floats: all of it travels."""
    pool = start()
    deep: list = []
    for _ in range(25):
        deep = [deep]
    odd = {"image": "\ud83d", "bbox_2d": [10**400, float("nan"), float("-inf"), deep], "\0": {"é": None}}
    result = await pool(call(ZOOM, **odd), memory(original_image=SCENE))
    assert result.status == "bad_arguments"
