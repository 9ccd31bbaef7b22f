"""Metrics of a step: summaries of its trajectories as numbers, by pure functions. Where they are written is `metrics_log`.

Names say the part they come from: `rollout/…`, `reward/…`, `learner/…`, `tools/…`, `time/…`, `evaluation/…`, `recovery/…`.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from arm_rl.core.types import Sample, ScoredTrajectory, ToolEvent, Trajectory

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in 0..1000

ZOOM_TOOL = "image_zoom_in_tool"
WHOLE_IMAGE = "original_image"
HIT_IOU = 0.5  # a box hits from this overlap on
NO_TOOL, OTHER_TOOL = "none", "other"  # in place of the name of a tool that was called first


def rollout_metrics(
    scored: Sequence[ScoredTrajectory], samples: Mapping[str, Sample] | None = None
) -> dict[str, float]:
    """A training step's trajectories in numbers.

    Broken sessions are counted in `rollout/broken_sessions` and left out of everything else; trajectories whose scorer failed are
    counted in `reward/scorer_failures` and left out of rewards and accuracy. A mean of nothing is 0.

    Args:
        scored: all trajectories of the step.
        samples: by id, for `tools/box_hit` and `tools/by_name/…`, which are left out without them.
    """
    finished = [one for one in scored if one.trajectory.end != "aborted"]
    judged = [one for one in finished if one.reward is not None]
    metrics = {
        "rollout/num_trajectories": float(len(scored)),
        "rollout/broken_sessions": share(one.trajectory.end == "aborted" for one in scored),
        **_reward_metrics(judged),
        "reward/scorer_failures": share(one.reward is None for one in finished),
        **_length_metrics([one.trajectory for one in finished]),
        **_tool_metrics([one.trajectory for one in finished]),
    }
    for track, members in _split_by_track(judged).items():
        metrics[f"reward/mean/{track}"] = mean(one.reward for one in members if one.reward is not None)
        metrics[f"rollout/accuracy/{track}"] = share(one.correct for one in members)
        metrics[f"tools/calls/{track}"] = mean(len(one.trajectory.tool_events) for one in members)
    if samples is not None:
        metrics["tools/box_hit"] = box_hit_rate(samples, finished)
        metrics |= _metrics_by_tool(samples, [one.trajectory for one in finished])
    return metrics


def evaluation_metrics(samples: Mapping[str, Sample], scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """The judge on held-out samples, in the numbers of `summary.json`; for each track as well (`accuracy/TRACK`) where there are several.

    Broken sessions and failed scorers are no judgments: they are counted in `broken_sessions` and `scorer_failures`, and left out of
    the rest, `num_samples` included.

    Args:
        samples: by id.
        scored: one or more trajectories of each.

    Returns:
        `accuracy`, `tool_calls` (a sample), `tool_rate` (share of samples with a call), `box_hit` (see there), `format`, `num_samples`,
        and `first_tool/NAME`: shares of sessions by the tool that they called first.
    """
    judged = [one for one in scored if one.trajectory.end != "aborted" and one.reward is not None]
    metrics = _judgment_metrics(samples, judged)
    metrics["broken_sessions"] = float(sum(one.trajectory.end == "aborted" for one in scored))
    metrics["scorer_failures"] = float(sum(one.trajectory.end != "aborted" and one.reward is None for one in scored))
    chosen = first_tools(samples, judged)
    metrics |= {f"first_tool/{name}": rate for name, rate in chosen.items()}
    for track, members in _split_by_track(judged).items():
        metrics |= {f"{name}/{track}": value for name, value in _judgment_metrics(samples, members).items()}
        metrics |= {f"first_tool/{name}/{track}": first_tools(samples, members).get(name, 0.0) for name in chosen}
    return metrics


def first_tools(samples: Mapping[str, Sample], scored: Sequence[ScoredTrajectory]) -> dict[str, float]:
    """Shares of sessions by the tool that they called first: each tool that was called or that a sample expects, and two names more.

    `none`: no call. `other`: a tool that the sample does not offer, or a call that could not be read; what a policy makes up is no name
    of a metric.
    """
    counts = Counter(_first_tool(samples[one.trajectory.sample_id], one.trajectory) for one in scored)
    expected = {name for one in scored for name in samples[one.trajectory.sample_id].expected_tools}
    names = dict.fromkeys((*sorted((expected | set(counts)) - {NO_TOOL, OTHER_TOOL}), NO_TOOL, OTHER_TOOL))
    return {name: counts[name] / max(len(scored), 1) for name in names}


def box_hit_rate(samples: Mapping[str, Sample], scored: Iterable[ScoredTrajectory]) -> float:
    """Return the share of successful zooms into the whole image whose box overlaps the target box with IoU >= 0.5.

    Only calls on samples that have a target box count; 0 where there are none.
    """
    hits = []
    for one in scored:
        target = samples[one.trajectory.sample_id].target_box
        if target is not None:
            hits += [
                intersection_over_union(box, target) >= HIT_IOU
                for box in map(zoomed_box, one.trajectory.tool_events)
                if box
            ]
    return share(hits)


def zoomed_box(event: ToolEvent) -> Box | None:
    """The box of a successful zoom into the whole image; None for any other call."""
    arguments = event.call.arguments
    if event.status != "ok" or event.call.name != ZOOM_TOOL or arguments.get("image") != WHOLE_IMAGE:
        return None
    x1, y1, x2, y2 = (float(value) for value in arguments["bbox_2d"])
    return x1, y1, x2, y2


def intersection_over_union(first: Box, second: Box) -> float:
    """Overlap of two boxes: 0 (apart) to 1 (the same)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = _area(first) + _area(second) - common
    return common / union if union > 0 else 0.0


def mean(values: Iterable[float]) -> float:
    """The mean; 0 of nothing."""
    values = list(values)
    return statistics.fmean(values) if values else 0.0


def share(flags: Iterable[bool]) -> float:
    """The share that is true; 0 of nothing."""
    return mean(float(flag) for flag in flags)


def _reward_metrics(judged: Sequence[ScoredTrajectory]) -> dict[str, float]:
    rewards = [one.reward for one in judged if one.reward is not None]
    groups: dict[str, list[float]] = defaultdict(list)
    for one, reward in zip(judged, rewards, strict=True):
        groups[one.trajectory.group_id].append(reward)
    parts = sorted({name for one in judged for name in one.parts})
    return {
        "reward/mean": mean(rewards),
        "reward/std": statistics.pstdev(rewards) if rewards else 0.0,
        "reward/group_std": mean(statistics.pstdev(group) for group in groups.values()),
        "reward/flat_groups": share(len(set(group)) == 1 for group in groups.values()),
        "reward/format": share(one.format_ok for one in judged),
        **{f"reward/part/{name}": mean(one.parts.get(name, 0.0) for one in judged) for name in parts},
        "rollout/accuracy": share(one.correct for one in judged),
    }


def _length_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    sampled = [trajectory.num_sampled_tokens for trajectory in trajectories]
    ends = Counter(trajectory.end for trajectory in trajectories)
    return {
        "rollout/prompt_tokens": mean(len(trajectory.prompt_ids) for trajectory in trajectories),
        "rollout/response_tokens": mean(sampled),
        "rollout/response_tokens_max": float(max(sampled, default=0)),
        "rollout/observation_tokens": mean(
            sum(len(turn.observation_ids) for turn in one.turns) for one in trajectories
        ),
        "rollout/turns": mean(len(trajectory.turns) for trajectory in trajectories),
        "rollout/session_seconds": mean(trajectory.seconds for trajectory in trajectories),
        **{f"rollout/end/{end}": ends[end] / max(len(trajectories), 1) for end in ("answered", "length", "turn_limit")},
    }


def _tool_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    events = [event for trajectory in trajectories for event in trajectory.tool_events]
    statuses = Counter(event.status for event in events)
    seconds = [event.seconds for event in events]
    return {
        "tools/calls": len(events) / max(len(trajectories), 1),
        "tools/rate": share(bool(trajectory.tool_events) for trajectory in trajectories),
        "tools/success_rate": share(
            any(event.status == "ok" for event in trajectory.tool_events) for trajectory in trajectories
        ),
        **{
            f"tools/status/{status}": statuses[status] / max(len(events), 1)
            for status in ("ok", "bad_arguments", "unknown_tool", "timeout", "failed")
        },
        "tools/seconds": mean(seconds),
        "tools/seconds_max": max(seconds, default=0.0),
    }


def _metrics_by_tool(samples: Mapping[str, Sample], trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Of each tool that was called where it was offered: what a policy makes up is no name of a metric."""
    events: dict[str, list[ToolEvent]] = defaultdict(list)
    for one in trajectories:
        for event in one.tool_events:
            if event.call.name in samples[one.sample_id].tools:
                events[event.call.name].append(event)
    metrics = {}
    for name, calls in sorted(events.items()):
        metrics[f"tools/by_name/{name}/calls"] = len(calls) / len(trajectories)
        metrics[f"tools/by_name/{name}/ok"] = share(event.status == "ok" for event in calls)
        metrics[f"tools/by_name/{name}/seconds"] = mean(event.seconds for event in calls)
    return metrics


def _judgment_metrics(samples: Mapping[str, Sample], judged: Sequence[ScoredTrajectory]) -> dict[str, float]:
    return {
        "accuracy": share(one.correct for one in judged),
        "tool_calls": mean(len(one.trajectory.tool_events) for one in judged),
        "tool_rate": share(bool(one.trajectory.tool_events) for one in judged),
        "box_hit": box_hit_rate(samples, judged),
        "format": share(one.format_ok for one in judged),
        "num_samples": float(len({one.trajectory.sample_id for one in judged})),
    }


def _first_tool(sample: Sample, trajectory: Trajectory) -> str:
    if not trajectory.tool_events:
        return NO_TOOL
    name = trajectory.tool_events[0].call.name
    return name if name in sample.tools else OTHER_TOOL


def _split_by_track(scored: Iterable[ScoredTrajectory]) -> dict[str, list[ScoredTrajectory]]:
    """Return trajectories by track; nothing if there is one track only, which would duplicate every number."""
    tracks: dict[str, list[ScoredTrajectory]] = defaultdict(list)
    for one in scored:
        tracks[one.trajectory.track].append(one)
    return {track: tracks[track] for track in sorted(tracks)} if len(tracks) > 1 else {}


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
