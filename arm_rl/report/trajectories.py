"""The report's trajectories: what the judge saw, thought, called and said, with the boxes that it chose."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from arm_rl.core.types import ImagePart, Sample, Scored, ToolEvent, Trajectory, Turn
from arm_rl.report.pictures import Picture, picture
from arm_rl.report.run_data import EVALUATION, RunData, stage_of
from arm_rl.trajectory_log import TrajectoryLog

NUM_MORE = 4  # trajectories of the last stage beside the one that is followed through the stages
LONG_TEXT = 500  # characters; longer texts are folded

_PIECES = re.compile(r"<(think|tool_call|answer)>(.*?)(?:</\1>|\Z)", flags=re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A trajectory with the log that it stands in."""

    scored: Scored
    log: TrajectoryLog

    @property
    def trajectory(self) -> Trajectory:
        """The trajectory itself."""
        return self.scored.trajectory

    @property
    def sample(self) -> Sample:
        """What was judged."""
        return self.log.samples[self.trajectory.sample_id]

    @property
    def looked(self) -> bool:
        """A call succeeded."""
        return any(event.status == "ok" for event in self.trajectory.tool_events)


def show(run: RunData) -> str:
    """One sample after each stage, then others of the last stage."""
    stages = [[Shown(scored=one, log=log) for one in log.scored if one.trajectory.end != "aborted"] for log in run.logs]
    stages = [stage for stage in stages if stage]
    if not stages:
        return '<p class="empty">No trajectories have been written yet.</p>'
    followed = _followed(stages)
    pieces = []
    if len(followed) > 1:
        pieces.append(
            f"<h3>One sample, judged after each stage</h3>{_question(followed[-1].sample)}{_cards(followed, with_question=False)}"
        )
    more = _varied([one for one in stages[-1] if one.trajectory.sample_id != followed[-1].trajectory.sample_id])
    if more:
        pieces.append(f"<h3>Others, {_when(more[0])}</h3>{_cards(more, with_question=True)}")
    elif len(followed) == 1:
        pieces.append(_cards(followed, with_question=True))
    return "".join(pieces)


def _followed(stages: Sequence[Sequence[Shown]]) -> list[Shown]:
    """The same sample in each stage that judged it: right in the end, after a look, and wrong before where there is such a one."""
    earlier = [{one.trajectory.sample_id: one for one in stage} for stage in stages[:-1]]

    def worth(last: Shown) -> tuple[int, bool, bool, int]:
        before = [stage[last.trajectory.sample_id] for stage in earlier if last.trajectory.sample_id in stage]
        return len(before), last.scored.correct, last.looked, sum(not one.scored.correct for one in before)

    last = max(stages[-1], key=worth)
    return [stage[last.trajectory.sample_id] for stage in earlier if last.trajectory.sample_id in stage] + [last]


def _varied(shown: Sequence[Shown]) -> list[Shown]:
    """A few, of different samples: most of them right after a look, and a wrong one where there is one."""
    kinds: dict[tuple[bool, bool], list[Shown]] = {}
    for one in {one.trajectory.sample_id: one for one in shown}.values():
        kinds.setdefault((one.scored.correct, one.looked), []).append(one)
    wrong = (kinds.get((False, True), []) + kinds.get((False, False), []))[:1]
    right = kinds.get((True, True), [])[: NUM_MORE - 2] + kinds.get((True, False), [])[:1] + kinds.get((True, True), [])[NUM_MORE - 2 :]
    return right[: NUM_MORE - len(wrong)] + wrong


def _cards(shown: Sequence[Shown], *, with_question: bool) -> str:
    return f'<div class="cards">{"".join(_card(one, with_question) for one in shown)}</div>'


def _card(shown: Shown, with_question: bool) -> str:
    scored = shown.scored
    verdict = '<span class="badge right">✓ right</span>' if scored.correct else '<span class="badge wrong">✗ wrong</span>'
    turns = "".join(_turn(shown, number, turn) for number, turn in enumerate(shown.trajectory.turns, start=1))
    return (
        f'<article class="card"><header><h4>{_when(shown)}</h4>{verdict}</header>'
        f"{_question(shown.sample) if with_question else ''}{_given_images(shown)}"
        f'<ol class="turns">{turns}</ol><footer>{_reward(scored)}</footer></article>'
    )


def _when(shown: Shown) -> str:
    if shown.log.stage.endswith(EVALUATION):
        return f"after {escape(stage_of(shown.log))}"
    return f"in {escape(shown.log.stage)}, step {shown.log.step}"


def _question(sample: Sample) -> str:
    asked = [message for message in sample.messages if message.role != "system"]
    text = "\n".join(" ".join(part for part in message.parts if not isinstance(part, ImagePart)) for message in asked)
    return f'<p class="question">{_folded(text.strip())} <span class="label">Right judgment: {escape(_judgment(sample.label))}</span></p>'


def _judgment(label: str) -> str:
    return f"Answer {label}" if label.isdigit() else label.capitalize()


def _given_images(shown: Shown) -> str:
    """The images that the sample came with, with the boxes zoomed into; the target only on the first."""
    made = {name for event in shown.trajectory.tool_events for name in event.image_names}
    given = [info.name for info in shown.trajectory.images if info.name not in made]
    return "".join(_image(shown, name, show_target=number == 0) for number, name in enumerate(given))


def _turn(shown: Shown, number: int, turn: Turn) -> str:
    pieces = [_piece(kind, text) for kind, text in _split(turn.text) if not (kind == "tool_call" and turn.tool_events)]
    pieces += [_event(shown, event) for event in turn.tool_events]
    if turn.finish_reason == "length":
        pieces.append('<p class="note">cut off: no tokens were left</p>')
    return f'<li value="{number}">{"".join(pieces)}</li>'


def _split(text: str) -> Iterator[tuple[str, str]]:
    """A turn's pieces as (`think` | `tool_call` | `answer` | `other`, text): all that the judge wrote, in order."""
    end = 0
    for match in _PIECES.finditer(text):
        if text[end : match.start()].strip():
            yield "other", text[end : match.start()].strip()
        yield match[1], match[2].strip()
        end = match.end()
    if text[end:].strip():
        yield "other", text[end:].strip()


def _piece(kind: str, text: str) -> str:
    return f'<p class="{kind}">{_folded(text)}</p>'


def _event(shown: Shown, event: ToolEvent) -> str:
    arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in event.call.arguments.items())
    status = f'<span class="status {event.status}">{event.status.replace("_", " ")} · {event.seconds * 1000:.0f} ms</span>'
    text = f'<p class="observation">{_folded(event.text)}</p>' if event.text.strip() else ""
    images = "".join(_image(shown, name, show_target=False) for name in event.image_names)
    return f'<p class="call"><code>{escape(event.call.name or "?")}({_escaped(arguments)})</code> {status}</p>{text}{images}'


def _image(shown: Shown, name: str, *, show_target: bool) -> str:
    """An image by its name in the session's memory, with the boxes of the calls on it."""
    keys = {info.name: info.key for info in shown.trajectory.images}
    image = shown.log.images.get(keys.get(name, ""))
    if image is None:
        return f'<p class="note">{escape(name)}: the image was not kept</p>'
    boxes = "".join(
        _box(box, str(number), "zoomed" if event.status == "ok" else "refused")
        for number, turn in enumerate(shown.trajectory.turns, start=1)
        for event in turn.tool_events
        if event.call.arguments.get("image") == name and (box := _box_of(event)) is not None
    )
    target = shown.sample.target_box
    if show_target and target is not None:
        boxes = _box(target, "", "target") + boxes
    seen: Picture = picture(image)
    kind = "image small" if seen.is_small else "image"
    return (
        f'<figure class="{kind}" style="--width:{seen.width}px"><div><img src="{seen.uri}" alt="{escape(name)}">{boxes}</div>'
        f"<figcaption>{escape(name)} · {seen.width} × {seen.height}</figcaption></figure>"
    )


def _box_of(event: ToolEvent) -> list[float] | None:
    """The box that a call asked for, clamped to the image and turned upright; None where there is none that can be drawn."""
    box = event.call.arguments.get("bbox_2d")
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in box):
        return None
    x1, y1, x2, y2 = (min(max(float(value), 0.0), 1000.0) for value in box)
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _box(box: Sequence[float], label: str, kind: str) -> str:
    left, top, right, bottom = (value / 10 for value in box)
    place = f"left:{left:g}%;top:{top:g}%;width:{right - left:g}%;height:{bottom - top:g}%"
    return f'<span class="box {kind}" style="{place}">{f"<b>{label}</b>" if label else ""}</span>'


def _reward(scored: Scored) -> str:
    if scored.reward is None:
        return "no reward: the scorer failed"
    parts = " + ".join(f"{escape(name)} {value:g}" for name, value in scored.parts.items() if value)
    form = "" if scored.format_ok else ' <span class="badge wrong">format broken</span>'
    return f"reward <strong>{scored.reward:g}</strong>{f' = {parts}' if parts else ''}{form}"


def _folded(text: str) -> str:
    """A text as HTML; a long one can be unfolded."""
    if len(text) <= LONG_TEXT:
        return _escaped(text)
    return f'{_escaped(text[:LONG_TEXT])}<span class="more" hidden>{_escaped(text[LONG_TEXT:])}</span><button class="unfold">… all</button>'


def _escaped(text: str) -> str:
    """Whatever a model wrote, as text: no markup, and no half characters, which cannot be encoded."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))
