"""Tool executors on a real Ray: whatever happens to a call is an observation, and the next call works."""

import asyncio
import time

import pytest
import ray
import yaml
from ray.exceptions import RayActorError

from actors.tool_executor import ToolExecutor, ToolPool
from arm_rl.core import session
from arm_rl.core.config import SessionConfig, ToolsConfig
from arm_rl.core.images import Image
from arm_rl.core.session import Memory
from arm_rl.core.types import ToolCall
from tests.support.scripted import ANSWER, ZOOM, Scripted, make_sample, noise
from tests.support.scripted import call as call_turn

SCENE = Image.from_pil(noise(64, 48))


@pytest.fixture(scope="module")
def tool_file(tmp_path_factory):
    """The zoom, and every odd tool."""
    path = tmp_path_factory.mktemp("tools") / "odd.yaml"
    odd = ("Count", "Slow", "Raising", "Crashing", "Reckless", "Mirror", "Inline", "Keeping", "KeepingApart")
    path.write_text(
        yaml.safe_dump(
            {"tools": [{"class_name": ZOOM}, *({"class_name": f"tests.support.odd_tools.{name}Tool"} for name in odd)]}
        )
    )
    return str(path)


@pytest.fixture
def start(local_ray, tool_file):
    """Starts executors and gives their pool."""
    started = []

    def start(number=1, **settings):
        config = ToolsConfig(files=(tool_file,), **settings)
        executors = [
            ray.remote(ToolExecutor).options(num_cpus=0, max_restarts=-1).remote(config) for _ in range(number)
        ]
        started.extend(executors)
        return ToolPool(executors, ray.get([executor.traits.remote() for executor in executors])[0])

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


async def test_a_call_that_takes_too_long(start):
    pool = start(timeout_seconds=0.5)
    result = await pool(call("slow", seconds=30.0), memory())
    assert (result.status, result.text) == ("timeout", "Error: slow took longer than 0.5 seconds")
    assert (await pool(call("count"), memory())).status == "ok"


async def test_a_crash_takes_only_its_worker_along(start):
    pool = start()
    first = await pool(call("mirror"), memory())
    result = await pool(call("crashing"), memory())
    assert (result.status, result.text) == ("failed", "Error: crashing crashed")
    assert (await pool(call("mirror"), memory())).text == first.text, "the same executor"


async def test_an_executor_that_dies_comes_back(start):
    pool = start()
    assert (await pool(call("count"), memory())).status == "ok"
    result = await pool(call("reckless"), memory(original_image=SCENE))
    assert (result.status, result.text) == ("failed", "Error: reckless crashed")
    limit = time.monotonic() + 60
    while (again := await pool(call("count"), memory())).status != "ok":
        assert again.status == "failed"
        assert time.monotonic() < limit
        await asyncio.sleep(0.2)
    assert again.text.startswith("1 "), "a new process counts anew"


async def test_a_call_is_run_again_where_its_executor_was_killed(start):
    pool = start()
    session = memory(original_image=SCENE)
    kept = await pool(call("keeping"), session)
    assert kept.text.split()[0] == "1"
    before = (await pool(call("slow"), session)).text
    slow = asyncio.create_task(pool(call("slow", seconds=4.0), session))  # longer than Ray may take to kill
    await pool(call("count"), session)  # sent after it, so that it is there
    ray.kill(pool._executors[session.session], no_restart=False)
    result = await slow
    assert (result.status, result.text == before) == ("ok", False), "by another process, and nobody has noticed"
    lost = await pool(call("keeping"), session)
    assert (lost.status, lost.text) == (
        "failed",
        "Error: keeping was started anew and has forgotten this session's earlier calls",
    )
    assert (await pool(call("keeping"), session)).text.split()[0] == "1", "told once; then it begins anew"


async def test_executors_take_turns_and_a_session_stays_with_its_own(start):
    pool = start(2)
    sessions = [memory(original_image=SCENE) for _ in range(4)]
    results = [await pool(call("mirror", image="original_image"), session) for _ in range(3) for session in sessions]
    processes = [result.text.rsplit(" ", 1)[1] for result in results]
    assert processes[0] == processes[2] != processes[1] == processes[3]
    assert processes == processes[:4] * 3


async def test_inline_calls_that_come_together_travel_together(start):
    pool = start(2)
    sessions = [Memory(texts={"text_0": "x"}) for _ in range(200)]
    results = await asyncio.gather(*(pool(call("inline"), session) for session in sessions))
    assert [result.text.split(" ", 1)[1] for result in results] == [
        f"{session.session} ['text_0']" for session in sessions
    ]
    assert sorted(int(result.text.split()[0]) for result in results) == sorted([*range(1, 101)] * 2)
    assert not pool._waiting
    await asyncio.sleep(0)
    assert not pool._sending


async def test_a_lost_executor_fails_every_inline_call(start):
    pool = start()
    session = memory()
    await pool(call("inline"), session)
    executor = pool._executors[session.session]
    ray.kill(executor, no_restart=True)
    with pytest.raises(RayActorError):
        await executor.wait_until_death.remote()  # Ray kills in its own time
    results = await asyncio.gather(*(pool(call("inline"), memory()) for _ in range(5)))
    assert [(result.status, result.text) for result in results] == [("failed", "Error: inline crashed")] * 5


async def test_an_image_is_stored_once_and_forgotten_with_its_last_session(start):
    pool = start()
    same = Image.from_bytes(SCENE.data)
    other = Image.from_pil(noise(8, 8, seed=1))
    first, second = memory(original_image=SCENE), memory(original_image=same, observation_1=other)
    await pool(call("mirror", image="original_image"), first)
    await pool(call("mirror", images=["original_image"]), second)
    assert list(pool._stored) == [SCENE.key]
    await pool(call("mirror", image="observation_1"), second)
    assert set(pool._stored) == {SCENE.key, other.key}
    await pool.release(second)
    assert list(pool._stored) == [SCENE.key]
    await pool.release(first)
    assert pool._stored == {}
    assert (await pool(call("mirror", image="original_image"), first)).images == (SCENE,)


@pytest.mark.slow
async def test_two_thousand_sessions_leave_nothing_behind(start):
    """State in threads and in workers, inline calls, images: all of it is gone with the sessions."""
    pool = start(2)

    async def one(number):
        session = memory(original_image=SCENE)
        for turn in range(1, 3):
            kept = await pool(call("keeping"), session)
            assert kept.text.split()[0] == str(turn), "a session's own state, and nobody else's"
        if number % 10 == 0:
            assert (await pool(call("keeping_apart"), session)).text.split()[0] == "1"
        await pool(call("inline"), session)
        await pool(call("mirror", image="original_image"), session)
        await pool.release(session)

    for start_number in range(0, 2000, 100):
        await asyncio.gather(*(one(start_number + number) for number in range(100)))
    assert (pool._executors, pool._stored, pool._instances, pool._waiting) == ({}, {}, {}, {})
    last = [memory() for _ in range(2)]  # one for each executor
    for name in ("keeping", "keeping_apart"):
        kept = [(await pool(call(name), session)).text.split() for session in last]
        assert kept[0][2] != kept[1][2]
        assert [number_known for _, number_known, _ in kept] == ["1", "1"], (
            f"{name}: nobody is known but the one who asks"
        )


async def test_a_session_leaves_nothing_behind(start, template, tmp_path):
    """A whole session over the executors; its end releases what it used."""
    pool = start()
    turns = (call_turn(), call_turn(image="observation_1"), call_turn([5, 1, 1, 1]), ANSWER)
    finished = await session.run(
        make_sample(tmp_path), Scripted(template, *turns), pool, SessionConfig(), template=template
    )
    assert finished.trajectory.end == "answered"
    assert [event.status for event in finished.trajectory.tool_events] == ["ok", "ok", "bad_arguments"]
    assert (pool._executors, pool._stored) == ({}, {})


async def test_a_call_of_any_shape_gets_to_a_tool(start, template, tmp_path):
    """As deep as a call may be, halves of characters, numbers beyond floats: all of it travels."""
    pool = start()
    deep: list = []
    for _ in range(25):
        deep = [deep]
    odd = {"image": "\ud83d", "bbox_2d": [10**400, float("nan"), float("-inf"), deep], "\0": {"é": None}}
    result = await pool(call(ZOOM, **odd), memory(original_image=SCENE))
    assert result.status == "bad_arguments"
