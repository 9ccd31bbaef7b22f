"""Sessions of a policy that writes anything, with a tool that answers anything: tokens, masks, images, events and rewards hold."""

import asyncio
import collections
import copy
import math
import operator

import pytest
from hypothesis import given, settings, strategies

from actors.scorer import score
from arm_rl.core import session, trajectory_file
from arm_rl.core.config import RewardConfig, SessionConfig
from arm_rl.core.images import Image
from arm_rl.core.parsing import TOOL_FORMATS
from arm_rl.core.session import Completion, Start, ToolResult
from arm_rl.core.training_sample import training_sample
from arm_rl.core.types import Message
from arm_rl.report import trajectories
from arm_rl.report.index import Index
from arm_rl.run.metrics import evaluation_metrics, rollout_metrics
from arm_rl.run.metrics_log import _NAME
from rewards import REWARDS
from tests.fuzz.writing import NAMES, TEXTS, TOOL_TURNS, TURNS
from tests.support.scripted import ZOOM, make_sample, noise
from tools import load_tools
from tools.base import ToolContext

SIZES = [(32, 32), (1, 300), (1, 1), (90, 30)]
BROKEN = [b"", b"no image", Image.from_pil(noise(64, 64)).data[:-2000]]
PICTURES = [*(Image.from_pil(noise(*size)) for size in SIZES), *(Image.from_bytes(data) for data in BROKEN)]
RESULTS = strategies.builds(
    ToolResult,
    status=strategies.sampled_from(["ok", "failed", "timeout"]),
    text=TEXTS | strategies.sampled_from(["\ud83d", "a\udc00b", "x" * 500]) | NAMES,
    images=strategies.lists(strategies.sampled_from(PICTURES), max_size=3).map(tuple),
)
LIMITS = strategies.builds(
    SessionConfig,
    max_turns=strategies.integers(2, 5) | strategies.integers(1, 2),
    max_response_tokens=strategies.integers(300, 3000) | strategies.integers(1, 300),
    max_tool_response_chars=strategies.integers(32, 200),
)


class Engine:
    """Samples what it is told to as an engine would: as tokens, no pads among them, up to a call's end or the budget."""

    def __init__(self, template, turns, cuts):
        self.template, self.turns, self.cuts = template, iter(turns), iter(cuts)
        self.asked, self.given = [], []

    async def __call__(self, request):
        self.asked.append(request)
        text = next(self.turns, "<think></think><answer>Overall Judgment: True</answer>")
        end = text.find("</tool_call>")
        text = text if end < 0 else text[: end + len("</tool_call>")]
        forbidden = {*self.template.never_sampled_ids, *(() if request.allow_call else (self.template.call_token_id,))}
        written = self.template.tokenizer.encode(text, add_special_tokens=False)
        ids = tuple(number for number in written if number not in forbidden)
        if not next(self.cuts, False) and (not ids or ids[-1] != self.template.end_token_id) and end < 0:
            ids += (self.template.end_token_id,)
        reason = "length" if len(ids) > request.max_tokens else "stop"
        ids = ids[: request.max_tokens]
        done = Completion(
            token_ids=ids,
            logprobs=(-0.5,) * len(ids),
            text=self.template.decode(ids),
            finish_reason=reason,
            policy_version=len(self.asked),
        )
        self.given.append(done)
        return done


class Environment:
    """The zoom as it is, and a tool that answers what it is told to; keeps what really happened."""

    def __init__(self, results):
        (self.zoom,) = load_tools(["configs/tools/image_zoom.yaml"]).values()
        self.results = iter(results)
        self.happened = []

    async def __call__(self, call, memory):
        if call.name == ZOOM:
            context = ToolContext(
                session=memory.session, images=memory.images, texts=memory.texts, image_names=list(memory.images)
            )
            result = self.zoom.call(call.arguments, context)
            assert result.status in ("ok", "bad_arguments"), "it breaks of nothing that a policy writes"
        else:
            result = next(self.results, ToolResult(status="ok", text=str(call.arguments)))
        self.happened.append(result.status)
        return result

    async def release(self, memory):
        pass


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("fuzz"), tools=(ZOOM, "echo"), texts=("one", "two"))


@pytest.fixture(scope="module")
def play(template, sample):
    """Runs a session and checks all that must hold of it."""
    template = copy.copy(template)
    template.schemas = {**template.schemas, "echo": template.schemas[ZOOM]}
    start = Start.of(sample, template)
    special = {number for number, token in template.tokenizer.added_tokens_decoder.items() if token.special}

    def control(ids):
        return collections.Counter(number for number in ids if number in special and number != template.image_pad_id)

    between = {
        ended: control(template.observation_ids(Message(role="tool", parts=("a",)), {}, turn_ended=ended))
        for ended in (False, True)
    }
    marks = control(
        template.tokenizer.encode("<|vision_start|><|vision_end|>", add_special_tokens=False)
    )  # around an image; others may have none

    def play(turns, results, cuts, limits):
        engine, environment = Engine(template, turns, cuts), Environment(results)
        finished = asyncio.run(session.run(sample, engine, environment, limits, template=template, start=lambda: start))
        trajectory = finished.trajectory
        assert trajectory.error is None
        assert trajectory.end in ("answered", "length", "turn_limit")
        # Token in, token out.
        assert [turn.token_ids for turn in trajectory.turns] == [done.token_ids for done in engine.given]
        context = trajectory.prompt_ids
        for turn, asked in zip(trajectory.turns, engine.asked, strict=True):
            assert asked.prompt_ids == context
            context += turn.token_ids + turn.observation_ids
        assert len(context) - len(trajectory.prompt_ids) <= limits.max_response_tokens
        # Control tokens are those of the messages, images those that are shown.
        for turn in trajectory.turns:
            num_images = sum(len(event.image_names) for event in turn.tool_events)
            if turn.observation_ids:
                ended = bool(turn.token_ids) and turn.token_ids[-1] == template.end_token_id
                expected = between[ended] + collections.Counter(
                    {mark: num_images * number for mark, number in marks.items()}
                )
                assert control(turn.observation_ids) == expected
            assert not set(turn.token_ids) & set(template.never_sampled_ids)
        learned = training_sample(trajectory, 1.0, image_pad_id=template.image_pad_id)
        assert learned.token_ids == context
        sampled = [number for number, loss in zip(learned.token_ids, learned.loss_mask, strict=True) if loss]
        assert sampled == [number for done in engine.given for number in done.token_ids]
        assert len(learned.image_keys) == len(learned.image_tokens) == len(trajectory.images)
        # Only the environment says that a tool succeeded.
        events = trajectory.tool_events
        assert sum(event.status == "ok" for event in events) <= environment.happened.count("ok")
        assert len([event for event in events if event.status not in ("unknown_tool", "bad_arguments")]) <= len(
            environment.happened
        )
        for event in events:
            event.text.encode()  # it is logged and shown
            assert len(event.text) <= limits.max_tool_response_chars
        return finished

    return play


SESSIONS = {
    "turns": strategies.builds(
        operator.add, strategies.lists(TOOL_TURNS, min_size=1, max_size=3), strategies.lists(TURNS, max_size=2)
    ),
    "results": strategies.lists(RESULTS, min_size=1, max_size=3),
    "cuts": strategies.lists(strategies.booleans(), max_size=3),
    "limits": LIMITS,
}


@given(**SESSIONS)
def test_a_session_holds(play, turns, results, cuts, limits):
    play(turns, results, cuts, limits)


@given(**SESSIONS, label=strategies.sampled_from(["1", "2", "true", "false"]))
def test_its_reward_is_finite_and_in_its_range(play, sample, turns, results, cuts, limits, label):
    trajectory = play(turns, results, cuts, limits).trajectory
    judged = type(sample)(**{name: getattr(sample, name) for name in sample.__slots__} | {"label": label})
    for name in REWARDS:
        scored = score(trajectory, judged, RewardConfig(name=name), TOOL_FORMATS["hermes"])
        assert scored.error is None
        assert math.isfinite(scored.reward)
        assert 0 <= scored.reward <= 1.5
        assert scored.reward == 0 or scored.format_ok
        assert "success" not in scored.parts or any(event.status == "ok" for event in trajectory.tool_events)


@given(**SESSIONS)
@settings(max_examples=max(settings.default.max_examples // 4, 1))
def test_it_is_measured_logged_and_shown(play, sample, tmp_path_factory, turns, results, cuts, limits):
    finished = play(turns, results, cuts, limits)
    scored = [score(finished.trajectory, sample, RewardConfig(), TOOL_FORMATS["hermes"])]
    samples = {sample.id: sample}
    for name, value in (
        rollout_metrics(scored, samples)
        | {f"evaluation/{k}": v for k, v in evaluation_metrics(samples, scored).items()}
    ).items():
        assert _NAME.fullmatch(name)
        assert math.isfinite(value)
    run = tmp_path_factory.getbasetemp() / "fuzz"
    path = run / "trajectories" / trajectory_file.file_name("fuzz", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    trajectory_file.write(path, scored, samples, finished.images, stage="fuzz", step=1)
    log = trajectory_file.read(path)
    assert repr(log.scored[0].trajectory) == repr(finished.trajectory), "NaN in arguments equals itself only as text"
    index = Index(folder=run)
    index.refresh(["fuzz"])
    page = trajectories.card(index.files[0], log.scored[0], sample, None)
    page.encode()
    assert "<script" not in page
