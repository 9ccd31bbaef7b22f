"""TRL's side of the benchmarks against it: a GRPOTrainer that does as many steps as it is told. Runs in TRL's own environment.

    a line with a number on standard input -> so many steps -> a line of JSON on standard output

Between two commands it sleeps, so that the other side has the machine to itself. What libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from PIL import Image as PILImage
from transformers import AutoProcessor, TrainerCallback

from arm_rl.core import images
from arm_rl.core.resize import ViewSize
from arm_rl.core.types import Sample
from arm_rl.data.samples import read_samples
from arm_rl.experiments.bench.trl_task import TOOL, TrlTask, crop_box, reward

CALL_END = "</tool_call>"
NEVER_SAMPLED = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
ALL_STEPS = 1_000_000

# How a turn is read: a thought, calls, and what is left. TRL asks for it where it runs tools.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": CALL_END,
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}


class Samples:
    """The data in memory: decoded and at the size that the judge sees, so that no step of TRL's has to do it again."""

    def __init__(self, task: TrlTask, view: ViewSize) -> None:
        self.samples: list[Sample] = [*read_samples([task.data], [TOOL])]
        self.full = [images.load(sample.images[0]).pil() for sample in self.samples]
        self.views = [view.resize(images.load(sample.images[0])) for sample in self.samples]
        self.texts = [sample.messages[-1].text for sample in self.samples]
        self.notice = task.notice


def environment(samples: Samples) -> type:
    """The class that TRL makes one object of for each session; its methods are the tools."""

    class TrlSession:
        def reset(self, number: int, **_: Any) -> list[dict[str, Any]]:
            self._full: PILImage.Image = samples.full[number]
            return [{"type": "image", "image": samples.views[number]}, {"type": "text", "text": samples.texts[number]}]

        def image_zoom_in_tool(self, image: str, bbox_2d: list[float]) -> list[dict[str, Any]]:
            """Zooms into a part of an image and shows it at full resolution.

            Args:
                image: Name of an image.
                bbox_2d: The box.

            Returns:
                The crop.
            """
            crop = self._full.crop(crop_box(bbox_2d, *self._full.size))
            seen = {"type": "text", "text": "observation_1: "}
            return [seen, {"type": "image", "image": crop}, {"type": "text", "text": samples.notice}]

    return TrlSession


class Trainer(trl.GRPOTrainer):
    """TRL's trainer with clocks, and counts of what was sampled."""

    clocks: dict[str, float]
    counts: dict[str, float]

    def start_counting(self) -> None:
        """From nothing."""
        self.clocks, self.counts = defaultdict(float), defaultdict(float)

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.clocks[name] += time.perf_counter() - started

    def _generate(self, prompts: list) -> Any:
        with self._clock("generate"):
            found = super()._generate(prompts)
        prompt_ids, completion_ids, tool_mask, completions = found[:4]
        self.counts["prompt_tokens"] += sum(map(len, prompt_ids))
        self.counts["sampled_tokens"] += sum(map(sum, tool_mask))
        self.counts["observation_tokens"] += sum(map(len, completion_ids)) - sum(map(sum, tool_mask))
        self.counts["turns"] += sum(message["role"] == "assistant" for messages in completions for message in messages)
        self.counts["tool_images"] += sum(bool(shown) for shown in found[7])
        return found

    def _generate_and_score_completions(self, inputs: list) -> Any:
        with self._clock("generate_and_score"):
            return super()._generate_and_score_completions(inputs)

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        """TRL's, timed: the forward pass."""
        with self._clock("forward"):
            return super().compute_loss(*arguments, **named)

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        """TRL's, timed: all but the optimizer."""
        with self._clock("training_step"):
            return super().training_step(*arguments, **named)


class StepPacer(TrainerCallback):
    """Does the steps that it is told, and says how long they took."""

    def __init__(self, trainer: Trainer, task: TrlTask, answers: Any) -> None:
        self._trainer, self._task, self._answers = trainer, task, answers
        self._left = self._number = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ready."""
        self._answer(
            {"versions": {"trl": trl.__version__, "torch": torch.__version__}, "threads": torch.get_num_threads()}
        )
        self._next(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the optimizer."""
        self._left -= 1
        if self._left == 0:
            seconds = time.perf_counter() - self._started
            trajectories = self._number * self._task.num_trajectories
            phases = {name: value / self._number for name, value in self._trainer.clocks.items()}
            means = {name: value / trajectories for name, value in self._trainer.counts.items()}
            phases["cpu"] = (time.process_time() - self._cpu_started) / self._number
            self._answer({"seconds": seconds, "trajectories": trajectories, "phases": phases, "means": means})
            self._next(control)

    def _next(self, control: Any) -> None:
        line = sys.stdin.readline().strip()
        self._left = self._number = int(line or 0)
        if not self._left:
            control.should_training_stop = True
        self._trainer.start_counting()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def _answer(self, values: dict[str, Any]) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def make_trainer(task: TrlTask, folder: Path) -> Trainer:
    """Return a trainer with the settings that were found to be the fastest on CPUs."""
    processor = AutoProcessor.from_pretrained(task.model, padding_side="left", truncation_side="left")
    tokenizer = processor.tokenizer
    # TRL ends a turn at the tokenizer's end token and at those of the model, and writes an observation after the tokenizer's: a call's
    # last token in this place stops the turn there, as on our side.
    tokenizer.eos_token = CALL_END
    tokenizer.response_template = RESPONSE_TEMPLATE
    sizes = processor.image_processor
    view = ViewSize(
        factor=sizes.patch_size * sizes.merge_size,
        min_pixels=sizes.size["shortest_edge"],
        max_pixels=sizes.size["longest_edge"],
    )
    samples = Samples(task, view)
    prompt = [
        {"role": "system", "content": task.system_prompt},
        {"role": "user", "content": ""},
    ]  # reset() adds what the user says
    dataset = Dataset.from_dict(
        {"prompt": [prompt] * len(samples.samples), "number": list(range(len(samples.samples)))}
    )

    def rewards(completions: list, number: list[int], **_: Any) -> list[float]:
        return [
            reward(messages, samples.samples[place].label) for messages, place in zip(completions, number, strict=True)
        ]

    accumulated = task.num_trajectories // task.micro_batch
    config = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        beta=0.0,
        num_iterations=1,
        loss_type="dapo",
        scale_rewards="group",
        epsilon=0.2,
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=accumulated,
        num_generations=task.group_size,
        max_completion_length=task.response_tokens,
        mask_truncated_completions=False,
        max_tool_calling_iterations=1,
        temperature=1.0,
        generation_kwargs={
            "max_new_tokens": task.turn_tokens,
            "suppress_tokens": tokenizer.convert_tokens_to_ids(list(NEVER_SAMPLED)),
        },
        learning_rate=0.0,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        max_steps=ALL_STEPS,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_multimodal=False,
        dataloader_pin_memory=False,
        seed=task.seed,
        model_init_kwargs={"dtype": "float32"},
    )
    return Trainer(
        model=task.model,
        reward_funcs=rewards,
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        environment_factory=environment(samples),
    )


def main() -> None:
    """Serves until standard input ends."""
    path = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = TrlTask.read(path)
    torch.set_num_threads(task.num_threads)
    trainer = make_trainer(task, path.parent / "output")
    trainer.start_counting()
    trainer.add_callback(StepPacer(trainer, task, answers))
    trainer.train()


if __name__ == "__main__":
    main()
