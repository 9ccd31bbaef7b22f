"""Trajectories made by hand, for the tests of metrics, of the trajectory log and of the report."""

from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.core.types import (
    ImageInfo,
    ImagePart,
    ImageRef,
    Message,
    Sample,
    ScoredTrajectory,
    ToolCall,
    ToolEvent,
    Trajectory,
    Turn,
)


def make_image(color: str, size: int = 64) -> Image:
    return Image.from_pil(PILImage.new("RGB", (size, size), color))


def make_sample(id: str = "s0", track: str = "zoom", **changes) -> Sample:
    values = {
        "messages": (
            Message(role="system", parts=("Judge.",)),
            Message(role="user", parts=(ImagePart(name="original_image"), "Which digit?\nAnswer 1: 4\nAnswer 2: 7")),
        ),
        "images": (ImageRef(path="data/train.parquet", row=3),),
        "texts": ("4", "7"),
        "label": "1",
        "tools": ("image_zoom_in_tool",),
        "target_box": (0.0, 0.0, 250.0, 250.0),
    }
    return Sample(id=id, track=track, **{**values, **changes})


def zoom_event(
    box=(0, 0, 250, 250), status="ok", image="original_image", name="image_zoom_in_tool", seconds=0.5
) -> ToolEvent:
    return ToolEvent(
        call=ToolCall(name=name, arguments={"image": image, "bbox_2d": list(box)}),
        status=status,
        text="" if status == "ok" else "Error: no",
        image_names=("observation_1",) if status == "ok" else (),
        seconds=seconds,
    )


def make_turn(text: str, *events: ToolEvent, num_tokens: int = 3, num_observation_tokens: int = 0, **changes) -> Turn:
    values = {
        "token_ids": tuple(range(num_tokens)),
        "logprobs": tuple(-0.1 * k for k in range(num_tokens)),
        "finish_reason": "stop",
        "tool_events": events,
        "observation_ids": tuple(range(num_observation_tokens)),
    }
    return Turn(text=text, **{**values, **changes})


def make_scored(
    *turns: Turn,
    sample_id="s0",
    track="zoom",
    group_id="g0",
    index=0,
    end="answered",
    images=(),
    seconds=1.0,
    reward=1.0,
    **changes,
) -> ScoredTrajectory:
    trajectory = Trajectory(
        sample_id=sample_id,
        track=track,
        group_id=group_id,
        index=index,
        prompt_ids=tuple(range(10)),
        turns=turns,
        images=tuple(images),
        end=end,
        seconds=seconds,
    )
    return ScoredTrajectory(trajectory=trajectory, reward=reward, **changes)


def looked(correct: bool = True, box=(10, 0, 250, 250), **changes) -> tuple[ScoredTrajectory, dict[str, Image]]:
    """A session with one zoom, and its images."""
    images = {image.key: image for image in (make_image("white"), make_image("red", 32))}
    first, second = images
    call = f'{{"name": "image_zoom_in_tool", "arguments": {{"image": "original_image", "bbox_2d": {list(box)}}}}}'
    answer = f"Overall Judgment: Answer {1 if correct else 2} is better."
    scored = make_scored(
        make_turn(
            f"<think>Too small to read.</think><tool_call>{call}</tool_call>", zoom_event(box), num_observation_tokens=5
        ),
        make_turn(f"<think>It is a 4.</think><answer>{answer}</answer>", call_forbidden=True, policy_version=3),
        images=(ImageInfo(name="original_image", key=first), ImageInfo(name="observation_1", key=second)),
        **{
            "correct": correct,
            "format_ok": True,
            "parts": {"format": 0.3, "accuracy": 0.7 if correct else 0.0},
            **changes,
        },
    )
    return scored, images
