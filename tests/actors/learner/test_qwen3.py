"""Qwen3-VL, whose language model sees an image in several layers: engine, weight sync and learner against Hugging Face.

The learner's policy model has its tests in `test_policy_model`, which run for both families.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.learner.ranks import LearnerRanks
from actors.rollout.engine import Engine
from actors.weights.files import write_weights
from arm_rl.core.batching import make_batch
from arm_rl.core.config import ModelConfig
from arm_rl.core.loss import SftObjective
from arm_rl.core.micro_batch import collate
from tests.actors.learner.test_learner import NUM_STEPS, Setup, Task, spec_of
from tests.actors.rollout.test_engine import ROLLOUT, VIEW, Judge, check_three_turns, environment, noise  # noqa: F401
from tests.support import random_samples, tiny, tiny_qwen3
from tests.support.random_samples import Ids

IN_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Judge:
    folder = tiny_qwen3.build(tmp_path_factory.mktemp("tiny"), seed=0)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return Judge(model, AutoTokenizer.from_pretrained(folder), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(judge: Judge, environment: None) -> AsyncIterator[Engine]:  # noqa: F811
    engine = Engine(ModelConfig(path=str(judge.folder), dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False)
    await engine.start()
    yield engine
    await engine.close()


@IN_ONE_LOOP
async def test_the_engine_is_hugging_face_before_and_after_updates(
    engine: Engine, judge: Judge, tmp_path: Path
) -> None:
    await check_three_turns(engine, judge, version=0)
    for version in (1, 2):  # loaded by vLLM, then as recorded
        tiny.spread(judge.model, seed=1000 + version)
        await engine.load_weights(write_weights(judge.model.state_dict(), tmp_path, version).path, version)
        await check_three_turns(engine, judge, version)


@IN_ONE_LOOP
async def test_what_layers_see_of_an_image_matters(judge: Judge) -> None:
    """Else the tests above would say nothing of it."""
    ids = judge.ids("{} Which digit?", noise(1))
    seen = judge.logits(ids, [noise(1)])
    mergers = judge.model.model.visual.deepstack_merger_list
    kept = [merger.linear_fc2.weight.detach().clone() for merger in mergers]
    with torch.no_grad():
        for merger in mergers:
            merger.linear_fc2.weight.zero_()
        changed = judge.logits(ids, [noise(1)])
        for merger, weight in zip(mergers, kept, strict=True):
            merger.linear_fc2.weight.copy_(weight)
    assert (seen - changed).abs().max() > 1e-2


@pytest.fixture(scope="module")
def task(judge: Judge) -> Task:
    ids = Ids.of(judge.folder)
    images = [random_samples.image(1), random_samples.image(2, 64, 32)]
    samples = random_samples.group(ids, images[:1], [[], images[1:], []], seed=1)
    return Task(judge.folder, ids, {image.key: image for image in images}, samples)


@pytest.mark.parametrize("setup", [Setup(2, 3, 120)], ids=str)
def test_learners_train_all_of_it_and_publish_what_they_trained(setup, task, local_ray, tmp_path) -> None:
    """The loss that a group reports at its last step is that of the weights it had published, in Hugging Face's model."""
    group = LearnerRanks(spec_of(task, setup), [{"num_cpus": 0.25}] * setup.num_ranks)
    try:
        batch = make_batch(task.samples, num_ranks=setup.num_ranks, micro_batch_tokens=setup.micro_batch_tokens)
        losses = [group.train(batch, task.where(), SftObjective())["learner/loss"] for _ in range(NUM_STEPS - 1)]
        published = load_file(group.publish(tmp_path / "weights", 1).file.path)
        losses.append(group.train(batch, task.where(), SftObjective())["learner/loss"])
        group.export(tmp_path / "export")
    finally:
        group.close()
    assert losses[0] > losses[1] > losses[2]
    before = load_file(task.folder / "model.safetensors")
    assert published.keys() == before.keys() == load_file(tmp_path / "export" / "model.safetensors").keys()
    changed = {name for name in before if not torch.equal(before[name], published[name])}
    assert any("deepstack_merger_list" in name for name in changed)
    model = AutoModelForImageTextToText.from_pretrained(task.folder, dtype=torch.float32)
    model.load_state_dict(published, strict=False)
    policy = PolicyModel(model, never_sampled_ids=task.ids.never_sampled, call_token_id=task.ids.tool_call).eval()
    row = collate(task.samples)
    preparer = ImagePreparer(AutoImageProcessor.from_pretrained(task.folder), random_samples.VIEW)
    with torch.no_grad():
        logprobs, _ = policy(row, preparer.prepare(row.image_keys, task.images))
    assert losses[2] == pytest.approx(-logprobs.mean().item(), rel=1e-5)
