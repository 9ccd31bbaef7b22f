"""A trajectory as HTML: what the judge saw, thought, called and said, with the boxes that it chose. The page's script puts pixels in."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from html import escape

from arm_rl.core.types import ImagePart, Sample, ScoredTrajectory, ToolEvent, Trajectory, Turn
from arm_rl.report.index import LogFile

LONG_TEXT = 500  # characters; longer texts are folded

_PIECES = re.compile(r"<(think|tool_call|answer)>(.*?)(?:</\1>|\Z)", flags=re.DOTALL)


def card(file: LogFile, scored: ScoredTrajectory, sample: Sample, advantage: float | None) -> str:
    """What happened, turn by turn, and what it was worth."""
    trajectory = scored.trajectory
    turns = "".join(_turn(trajectory, number, turn) for number, turn in enumerate(trajectory.turns, start=1))
    return (
        f'<article class="card" data-file="{escape(file.name)}"><header><h4>{model_label(file)}</h4>{_verdict(scored)}</header>'
        f'{_prompt_images(trajectory, sample)}<div class="tokens" hidden></div><ol class="turns">{turns}</ol>'
        f"{_error_details(scored)}<footer>{_reward(scored, advantage)}<br>{_facts(trajectory)}</footer></article>"
    )


def model_label(file: LogFile) -> str:
    """Return which model a trajectory is of."""
    if file.is_evaluation:
        return f"held out, {escape(file.model)} step {file.step}"
    return f"in {escape(file.stage)}, step {file.step}"


def question(sample: Sample) -> str:
    """What was asked."""
    asked = [message for message in sample.messages if message.role != "system"]
    text = "\n".join(" ".join(part for part in message.parts if not isinstance(part, ImagePart)) for message in asked)
    return f'<p class="question">{_fold(text.strip())} <span class="label">Right judgment: {_escape(_judgment(sample.label))}</span></p>'


def _judgment(label: str) -> str:
    return f"Answer {label}" if label.isdigit() else label.capitalize()


def _verdict(scored: ScoredTrajectory) -> str:
    if scored.trajectory.end == "aborted" or scored.reward is None:
        return '<span class="badge">– not judged</span>'
    return '<span class="badge right">✓ right</span>' if scored.correct else '<span class="badge wrong">✗ wrong</span>'


def _error_details(scored: ScoredTrajectory) -> str:
    """Return the traceback of a session or a scorer that failed."""
    error = scored.trajectory.error or scored.error
    if not error:
        return ""
    title = "the session broke" if scored.trajectory.error else "the scorer failed"
    return f'<details class="error"><summary>{title}</summary><pre>{_escape(error)}</pre></details>'


def _prompt_images(trajectory: Trajectory, sample: Sample) -> str:
    """Return the images that the sample came with; the target box is on the first."""
    made = {name for event in trajectory.tool_events for name in event.image_names}
    given = [info.name for info in trajectory.images if info.name not in made]
    target = "" if sample.target_box is None else _box(sample.target_box, "", "target")
    return _pictures([_image(trajectory, name, "" if number else target) for number, name in enumerate(given)])


def _turn(trajectory: Trajectory, number: int, turn: Turn) -> str:
    pieces = [
        _piece(kind, text) for kind, text in _split_pieces(turn.text) if not (kind == "tool_call" and turn.tool_events)
    ]
    pieces += [_event(trajectory, number, event) for event in turn.tool_events]
    if turn.finish_reason == "length":
        pieces.append('<p class="note">cut off: no tokens were left</p>')
    return f'<li value="{number}">{"".join(pieces)}</li>'


def _split_pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield a turn's pieces in order as (`think` | `tool_call` | `answer` | `other`, text)."""
    end = 0
    for match in _PIECES.finditer(text):
        if text[end : match.start()].strip():
            yield "other", text[end : match.start()].strip()
        yield match[1], match[2].strip()
        end = match.end()
    if text[end:].strip():
        yield "other", text[end:].strip()


def _piece(kind: str, text: str) -> str:
    return f'<p class="{kind}">{_fold(text)}</p>'


def _event(trajectory: Trajectory, number: int, event: ToolEvent) -> str:
    arguments = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in event.call.arguments.items()
    )
    status = (
        f'<span class="status {event.status}">{event.status.replace("_", " ")} · {event.seconds * 1000:.0f} ms</span>'
    )
    text = f'<p class="observation">{_fold(event.text)}</p>' if event.text.strip() else ""
    images = [_image(trajectory, name) for name in event.image_names]
    box, source = _box_of(event), event.call.arguments.get("image")
    if box is not None and isinstance(source, str) and any(info.name == source for info in trajectory.images):
        images = [
            _image(trajectory, source, _box(box, str(number), "zoomed" if event.status == "ok" else "refused")),
            *images,
        ]
    call = f'<p class="call"><code>{_escape(event.call.name or "?")}({_escape(arguments)})</code> {status}</p>'
    return f"{call}{text}{_pictures(images)}"


def _pictures(figures: Sequence[str]) -> str:
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _image(trajectory: Trajectory, name: str, boxes: str = "") -> str:
    """An image by its name in the session's memory, with boxes on it."""
    keys = {info.name: info.key for info in trajectory.images}
    return (
        f'<figure class="image"><div><img data-key="{_escape(keys.get(name, ""))}" alt="{_escape(name)}">{boxes}</div>'
        f"<figcaption>{_escape(name)}</figcaption></figure>"
    )


def _box_of(event: ToolEvent) -> list[float] | None:
    """The box that a call asked for, clamped to the image and turned upright; None where there is none that can be drawn."""
    box = event.call.arguments.get("bbox_2d")
    if not isinstance(box, list) or len(box) != 4:
        return None
    if not all(isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) for value in box):
        return None
    # clamped first: a whole number may be too large for a float
    x1, y1, x2, y2 = (float(min(max(value, 0), 1000)) for value in box)
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _box(box: Sequence[float], label: str, kind: str) -> str:
    left, top, right, bottom = (value / 10 for value in box)
    place = f"left:{left:g}%;top:{top:g}%;width:{right - left:g}%;height:{bottom - top:g}%"
    return f'<span class="box {kind}" style="{place}">{f"<b>{label}</b>" if label else ""}</span>'


def _reward(scored: ScoredTrajectory, advantage: float | None) -> str:
    if scored.reward is None:
        return "no reward"
    parts = " + ".join(f"{_escape(name)} {value:g}" for name, value in scored.parts.items() if value)
    form = "" if scored.format_ok else ' <span class="badge wrong">format broken</span>'
    better = "" if advantage is None else f" · advantage <strong>{advantage:+.2f}</strong>"
    return f"reward <strong>{scored.reward:g}</strong>{f' = {parts}' if parts else ''}{better}{form}"


def _facts(trajectory: Trajectory) -> str:
    versions = sorted({turn.policy_version for turn in trajectory.turns})
    sampled = f" · sampled by version {'–'.join(map(str, versions))}" if versions else ""
    turns = "1 turn" if len(trajectory.turns) == 1 else f"{len(trajectory.turns)} turns"
    return (
        f"{trajectory.end.replace('_', ' ')} · {turns} · {trajectory.num_sampled_tokens} tokens sampled"
        f"{sampled} · {trajectory.seconds:.3g} s"
    )


def _fold(text: str) -> str:
    """Return a text as HTML; a long one can be unfolded."""
    if len(text) <= LONG_TEXT:
        return _escape(text)
    return f'{_escape(text[:LONG_TEXT])}<span class="more" hidden>{_escape(text[LONG_TEXT:])}</span><button class="unfold">… all</button>'


def _escape(text: str) -> str:
    """Escape a model's text: no markup, and no lone surrogates, which cannot be encoded."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))
