"""The judge's service: what it answers, what it refuses, what it counts."""

import asyncio
import base64
import io
import json
import threading
from contextlib import asynccontextmanager

import httpx
import pytest

from arm_rl.core.images import Image
from arm_rl.judge.judge import Judge
from arm_rl.judge.service import JudgeRequest, ServiceLimits, build_app
from arm_rl.judge.wire import WireError
from tests.judge.test_judge import Preferring
from tests.support.scripted import noise
from tools import load_tools
from tools.execution.local import LocalTools

IMAGE = io.BytesIO()
noise().save(IMAGE, format="PNG")
PICTURE = base64.b64encode(IMAGE.getvalue()).decode()
STRIP = base64.b64encode(Image.from_pil(noise(1000, 4)).data).decode()
WEBP_BOMB = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0/" + (13299 | 13299 << 14).to_bytes(4, "little") + bytes(9)
ASKED = {"question": "Which?", "answers": ["7", "4"], "images": [PICTURE]}


class TextJudge(Preferring):
    """A policy that is shown no image, and so makes no call."""

    async def __call__(self, request):
        request = type("Asked", (), {"messages": (*request.messages, None)})()
        return await super().__call__(request)


@pytest.fixture
def serve(template):
    """Starts a service around a policy, and gives a client."""

    @asynccontextmanager
    async def start(policy=None, token=None, **limits):
        @asynccontextmanager
        async def entered():
            yield policy or Preferring(template)

        judge = Judge(entered(), template, LocalTools(load_tools(["configs/tools/digits.yaml"])))
        app = build_app(judge, ServiceLimits(**limits), token)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", timeout=60) as client,
        ):
            yield client

    return start


async def test_answers_are_compared_with_tools(serve):
    async with serve() as client:
        answer = (await client.post("/v1/judge", json=ASKED)).json()
    assert (answer["choice"], answer["consistent"]) == (2, True)
    assert answer["confidence"] == pytest.approx(0.9)
    (opinion,) = answer["opinions"]
    assert [(call["tool"], call["status"]) for call in opinion["calls"]] == [("image_zoom_in_tool", "ok")]
    assert opinion["turns"][-1].endswith("Overall Judgment: Answer 2 is better.</answer>")


async def test_one_answer_is_checked_and_many_are_ranked(serve):
    async with serve() as client:
        checked = (await client.post("/v1/judge", json=ASKED | {"answers": ["7"]})).json()
        ranked = (await client.post("/v1/rank", json=ASKED | {"answers": ["3", "1", "2"]})).json()
    assert checked["choice"] is True
    assert ranked["best"] == 2
    assert [one["answers"] for one in ranked["comparisons"]] == [[1, 2], [2, 3]]


async def test_half_characters_are_repaired(serve):
    """JSON can hold half of a surrogate pair: in texts, in keys, and in what is refused and sent back."""
    async with serve() as client:
        headers = {"Content-Type": "application/json"}
        for body, status in (
            (ASKED | {"question": "\ud800?", "answers": ["7\udfff", "4"]}, 200),
            (ASKED | {"\ud800": 1}, 422),
            (ASKED | {"answers": ["\ud800", 1]}, 422),
            ("\ud800", 422),
        ):
            response = await client.post("/v1/judge", content=json.dumps(body), headers=headers)
            assert response.status_code == status, response.text
        asked = {"query": ["Which?\ud8007"], "prompts": ["Which?\ud800"]}
        response = await client.post("/get_reward", content=json.dumps(asked), headers=headers)
        assert response.status_code in (200, 502), response.text  # this policy needs an image


async def test_a_data_url_is_an_image_too(serve):
    async with serve() as client:
        answer = await client.post("/v1/judge", json=ASKED | {"images": [f"data:image/png;base64,{PICTURE}"]})
    assert answer.json()["choice"] == 2


async def test_rewards_as_openrlhf_asks_for_them(serve, template):
    """What its `RemoteRewardModel` posts: decoded token ids, special tokens and all; `raise_for_status`, then the answer's keys."""
    chat = "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    prompts = ["Which?", "Which?", chat, "Which?"]
    queries = ["Which?7", "<|endoftext|><s>Which?4</s>", f"{chat}7<|im_end|>\n<|endoftext|>", "Which?7\n"]
    async with serve(TextJudge(template)) as client:
        response = await client.post(
            "/get_reward", json={"query": queries, "prompts": prompts, "labels": ["", None, "7", ""]}
        )
    response.raise_for_status()
    answer = response.json()
    assert answer["rewards"] == pytest.approx([0.9, 0.1, 0.9, 0.9])
    assert answer["scores"] == answer["rewards"]
    assert answer["extra_logs"] == {}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/judge", {"question": "Which?"}, 422, "answers"),
        ("/v1/judge", ASKED | {"answers": []}, 422, "at least 1"),
        ("/v1/judge", ASKED | {"answer": "7"}, 422, "Extra inputs"),
        ("/v1/judge", ASKED | {"answers": ["1"] * 9}, 422, "8 at most, not 9"),
        ("/v1/judge", ASKED | {"question": "?" * 1001}, 422, "1001 characters, 1000 at most"),
        ("/v1/judge", ASKED | {"images": ["%%%"]}, 422, "images[0]"),
        ("/v1/judge", ASKED | {"images": ["aGVsbG8="]}, 422, "not a readable image"),
        ("/v1/judge", ASKED | {"images": ["A" * 200_000]}, 413, "more than 100000 bytes"),
        ("/v1/rank", ASKED | {"answers": ["1"]}, 422, "at least 2 are ranked"),
        ("/get_reward", {"query": ["Which?7"]}, 422, "prompts"),
        ("/get_reward", {"query": ["Which?7"], "prompts": ["Who?"]}, 422, "does not begin with"),
        ("/get_reward", {"query": ["Oh. Which?7"], "prompts": ["Which?"]}, 422, "query[0] does not begin with"),
        ("/v1/judge", ASKED | {"images": ["é"]}, 422, "images[0]"),
        ("/v1/judge", ASKED | {"images": [STRIP]}, 422, "images[0]: an image of 1000 x 4 px"),
        ("/v1/judge", ASKED | {"answers": ["7", "word " * 20_000]}, 422, "session.max_prompt_tokens is"),
        ("/v1/rank", ASKED | {"answers": ["7", "4", "word " * 20_000]}, 422, "session.max_prompt_tokens is"),
        (
            "/get_reward",
            {"query": ["<|image_pad|>?7"], "prompts": ["<|image_pad|>?"]},
            422,
            "prompts[0] shows an image",
        ),
    ],
)
async def test_what_cannot_be_judged_is_refused(serve, path, body, status, message):
    limits = {} if "word" in str(body) else {"max_characters": 1000, "max_body_bytes": 100_000}
    async with serve(max_answers=8, **limits) as client:
        if status != 413 and "images" in body and body["images"] == [PICTURE]:
            body = body | {"images": []}
        answer = await client.post(path, json=body)
    assert answer.status_code == status
    assert message in answer.text


async def test_a_row_that_cannot_be_judged_leaves_the_others_their_rewards(serve, template, caplog):
    """The third answer has too many tokens for the judge, the fourth too many characters, the fifth another prompt."""
    answers = ["7", "4", "word " * 20_000, "x" * 150_000, "7"]
    prompts = ["Which?"] * 4 + ["What?"]
    queries = [f"Which?{answer}" for answer in answers]
    async with serve(TextJudge(template), max_characters=140_000) as client:
        response = await client.post("/get_reward", json={"query": queries, "prompts": prompts})
        alone = await client.post("/get_reward", json={"query": queries[2:3], "prompts": prompts[2:3]})
    assert response.json()["rewards"] == pytest.approx([0.9, 0.1, 0.5, 0.5, 0.5])
    assert alone.json()["rewards"] == [0.5]
    for reason in ("max_prompt_tokens", "140000 at most", "query[4] does not begin with prompts[4]"):
        assert reason in caplog.text


async def test_a_token_is_asked_for(serve):
    async with serve(token="secret") as client:
        answers = [
            await client.post("/v1/judge", json=ASKED, headers=headers)
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer secret"})
        ]
        assert (await client.get("/health")).status_code == 200
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert "secret" not in answers[0].text


async def ask_raw(app, path="/v1/judge", headers=(), chunks=(), idle=True):
    """Post a body in chunks and, unless `idle` is false, never its end; return the status and the text of the answer."""
    sent, waiting = [], list(chunks)

    async def receive():
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or idle}
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
    }
    await app(
        {**scope, "http_version": "1.1", "scheme": "http", "server": ("service", 80), "client": ("a", 1)}, receive, send
    )
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent).decode()


async def test_idle_connections_take_no_slot(serve, template):
    """Of 140 clients that send one byte: without the token refused at once, with it told off when their time is up."""
    async with serve(token="secret", max_requests=1, body_seconds=1.0) as client:
        app = client._transport.app
        bearer = [(b"authorization", b"Bearer secret")]
        without = await asyncio.gather(*(ask_raw(app, chunks=[b"{"]) for _ in range(140)))
        assert {status for status, _ in without} == {401}
        idle = asyncio.gather(*(ask_raw(app, headers=bearer, chunks=[b"{"]) for _ in range(140)))
        await asyncio.sleep(0)
        answer = await client.post("/v1/judge", json=ASKED, headers={"Authorization": "Bearer secret"})
        assert (answer.status_code, (await client.get("/health")).status_code) == (200, 200)
        assert {status for status, _ in await idle} == {408}


async def test_a_body_is_refused_by_its_header_and_by_all_that_is_held(serve):
    async with serve(max_body_bytes=1000) as client:
        app = client._transport.app
        status, text = await ask_raw(app, headers=[(b"content-length", b"1001")])
        assert (status, "more than 1000 bytes" in text) == (413, True)
        hung = [asyncio.create_task(ask_raw(app, chunks=[b" " * 1000])) for _ in range(32)]
        await asyncio.sleep(0.1)
        assert (await ask_raw(app, chunks=[b" "]))[0] == 429
        for one in hung:
            one.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        assert (await ask_raw(app, chunks=[b"{}"], idle=False))[0] == 422


JSON_BOMBS = {
    "lists": '{"question": "?", "answers": [' + "[]," * 300_000 + "[]]}",
    "wrong answers": '{"question": "?", "answers": [' + "1," * 300_000 + "1]}",
    "few wrong answers": '{"question": "?", "answers": [' + "1," * 4000 + "1]}",
    "unknown keys": "{" + ",".join(f'"{number}": 1' for number in range(100_000)) + "}",
    "deep": '{"question": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a list": "[" + "[]," * 300_000 + "[]]",
    "no JSON": "[" * 1000,
    "not a number": '{"question": NaN, "answers": ["7"]}',
}


@pytest.mark.parametrize("name", JSON_BOMBS)
async def test_of_a_wrong_body_only_the_first_fault_is_told(serve, name):
    async with serve() as client:
        for path in ("/v1/judge", "/v1/rank", "/get_reward"):
            answer = await client.post(path, content=JSON_BOMBS[name], headers={"Content-Type": "application/json"})
            assert answer.status_code == 422
            assert len(answer.text) < 500


BODIES = {  # a repeated piece of 16 MB, what stands before it, and whether it is parsed: it holds few values
    "lists": (b'{"answers": [', b"[],", False),
    "empty texts": (b'{"answers": [', b'"",', False),
    "keys": (b"{", b'"1":1,', False),
    "blanks": (b"", b" ", False),
    "depth": (b"", b"[", False),
    "quotes": (b"", b'"', False),
    "a text without an end": (b'{"question": "', b'\\"', True),
    "one text": (b'{"question": "', b"[],", True),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_very_many_values_is_not_parsed(name, monkeypatch):
    head, piece, parses = BODIES[name]
    parsed = []
    monkeypatch.setattr("arm_rl.judge.wire.json.loads", parsed.append)
    with pytest.raises(WireError):
        JudgeRequest.parse(head + piece * ((16 << 20) // len(piece)))
    assert bool(parsed) == parses


async def test_rows_of_a_batch_are_limited(serve):
    async with serve(max_rows=3) as client:
        answer = await client.post("/get_reward", json={"query": ["a"] * 4, "prompts": ["a"] * 4})
    assert (answer.status_code, answer.json()["detail"]) == (422, "query: 3 at most, not 4")


async def test_images_are_decoded_in_a_thread_inside_the_limit(serve, monkeypatch):
    """A decoding that waits holds neither the event loop nor, beyond the limit, another client."""
    gate = threading.Event()
    monkeypatch.setattr("arm_rl.judge.service.check_image", lambda data: gate.wait(60))
    async with serve(max_requests=1) as client:
        first = asyncio.create_task(client.post("/v1/judge", json=ASKED))
        while "judge_requests_running 1.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)
        refused = await client.post("/v1/judge", json=ASKED)
        assert (refused.status_code, (await client.get("/health")).status_code) == (429, 200)
        gate.set()
        assert (await first).status_code == 200


async def test_honest_clients_lose_nothing_beside_hostile_ones(serve):
    """140 idle connections, bodies of millions of values and image bombs: sixteen clients get all their answers."""
    bomb = base64.b64encode(WEBP_BOMB).decode()
    bearer = {"Authorization": "Bearer secret"}
    async with serve(token="secret", body_seconds=5.0) as client:
        app = client._transport.app

        async def ask_honestly():
            return [(await client.post("/v1/judge", json=ASKED, headers=bearer)).status_code for _ in range(3)]

        idle = [asyncio.create_task(ask_raw(app, chunks=[b"{"])) for _ in range(140)]
        lists = [
            asyncio.create_task(client.post("/v1/judge", content=JSON_BOMBS["lists"], headers=bearer)) for _ in range(8)
        ]
        images = [
            asyncio.create_task(client.post("/v1/judge", json=ASKED | {"images": [bomb] * 4}, headers=bearer))
            for _ in range(8)
        ]
        honest = await asyncio.gather(*(ask_honestly() for _ in range(16)))
        assert honest == [[200] * 3] * 16
        assert {status for status, _ in await asyncio.gather(*idle)} == {401}
        assert {answer.status_code for answer in await asyncio.gather(*lists, *images)} == {422}


async def test_pixels_of_a_request_are_limited(serve):
    async with serve(max_pixels=2 * 256 * 256) as client:
        answers = [await client.post("/v1/judge", json=ASKED | {"images": [PICTURE] * number}) for number in (2, 3)]
    assert [answer.status_code for answer in answers] == [200, 422]
    assert "131,072 pixels at most" in answers[1].text


async def test_too_many_at_a_time_are_told_to_come_again(serve, template):
    gate, inside = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Waiting(Preferring):
        async def __call__(self, request):
            loop.call_soon_threadsafe(inside.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(gate.wait(), loop))
            return await super().__call__(request)

    async with serve(Waiting(template), max_requests=1) as client:
        first = asyncio.create_task(client.post("/v1/judge", json=ASKED))
        await inside.wait()
        refused = await client.post("/v1/judge", json=ASKED)
        gate.set()
        assert (await first).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert 'judge_requests_total{endpoint="judge",status="200"} 1.0' in metrics
    assert 'judge_requests_total{endpoint="judge",status="429"} 1.0' in metrics
    assert 'judge_tool_calls_total{status="ok",tool="image_zoom_in_tool"} 1.0' in metrics
    assert "judge_requests_running 0.0" in metrics


async def test_a_client_that_goes_away_ends_its_session(serve, template):
    inside, cancelled = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def endless(request):
        loop.call_soon_threadsafe(inside.set)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            loop.call_soon_threadsafe(cancelled.set)
            raise

    async with serve(endless) as client:
        asked = asyncio.create_task(client.post("/v1/judge", json=ASKED))
        await inside.wait()
        asked.cancel()
        await asyncio.wait_for(cancelled.wait(), 20)
        metrics = (await client.get("/metrics")).text
    assert 'judge_requests_total{endpoint="judge",status="499"} 1.0' in metrics


async def test_a_session_that_breaks_is_no_fault_of_the_client(serve):
    async def gone(request):
        raise httpx.ReadError("the server is gone")

    async with serve(gone) as client:
        answer = await client.post("/v1/judge", json=ASKED)
        metrics = (await client.get("/metrics")).text
    assert answer.status_code == 502
    assert answer.json()["detail"] == "a session broke: httpx.ReadError: the server is gone"
    assert 'judge_requests_total{endpoint="judge",status="502"} 1.0' in metrics


async def test_a_health_check_carries_the_token_of_the_process(template):
    app = build_app(None, ServiceLimits(), health_token="ours")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        answer = await client.get("/health")
    assert (answer.json(), answer.headers["X-Server-Token"]) == ({"status": "ok"}, "ours")


async def test_it_describes_itself(serve):
    async with serve() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    assert {"/v1/judge", "/v1/rank", "/get_reward", "/health", "/metrics"} <= set(paths)
