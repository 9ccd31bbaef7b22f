"""The runs of the findings: data and base model once; for each seed a cold start, its evaluation, stage 1, and each design's stage 2.

    ROOT/base_model  ROOT/data/{train,validation,test}.parquet  ROOT/base
    ROOT/SEED/demonstrations.parquet  ROOT/SEED/{sft,cold_start,stage1,DESIGN}     each a run folder

Everything that is there is left as it is, and a run that was stopped goes on from its last checkpoint. One set of engines serves all runs
of a seed: a run's first weights reach it as any version does.
"""

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.cluster.reservation import reserve
from arm_rl.core.atomic_file import replace_file
from arm_rl.core.config_file import list_override, load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.demo.base import make_base
from arm_rl.demo.pretrain import PretrainPlan
from arm_rl.demo.scenes import Split
from arm_rl.demo.tracks import TILES
from arm_rl.experiments.findings import setting
from arm_rl.experiments.findings.designs import DESIGNS
from arm_rl.prepare.screening import run_screened_sessions
from arm_rl.run.folder import is_finished, require_same_settings
from arm_rl.training.evaluation import evaluate_model
from arm_rl.training.grpo import train_grpo
from arm_rl.training.inputs import read_inputs
from arm_rl.training.sft import train_sft
from arm_rl.training.startup import rollout_service
from tools import load_tools
from tools.execution.local import LocalTools


@dataclass(frozen=True, kw_only=True)
class FindingsSize:
    """How much of everything."""

    train: int = setting.NUM_TRAIN  # samples
    held_out: int | None = None  # samples of the split that is judged; by default setting.NUM_JUDGED
    demonstrations: int = setting.NUM_DEMONSTRATIONS  # that pass the screening
    pretraining: float = 1.0  # share of its steps
    steps: int = setting.STEPS  # of all GRPO of a design
    stage1_steps: int = setting.STAGE1_STEPS  # of these in stage 1
    overrides: tuple[str, ...] = ()  # of all GRPO runs


QUICK = FindingsSize(
    train=96,
    held_out=24,
    demonstrations=32,
    pretraining=0.004,
    steps=3,
    stage1_steps=1,
    overrides=("algorithm.drop_flat_groups=false",),  # an untrained judge earns nothing
)
_WAYS = (
    "evaluation.without_tools=true",
    f"evaluation.prefill_without_tools='{setting.ANSWER_OPENING}'",
    f"evaluation.prefill='{setting.CALL_OPENING}'",
)


class Findings:
    """All runs below one folder."""

    def __init__(
        self, root: Path, size: FindingsSize, *, split: setting.JudgedSplit, log: Callable[[str], None]
    ) -> None:
        """`log` gets a line for each part that begins; `split` is what judges are judged on: `validation` while settings are sought."""
        self.root, self.size, self.split, self.log = root, size, split, log
        self.base, self.data = root / "base_model", root / "data"

    def run(self, seeds: Sequence[int], designs: Sequence[str]) -> None:
        """Everything that is not done yet.

        Raises:
            ConfigError: the folder holds runs of another setting.
        """
        self._check_setting()
        self._make_data()
        self._make_base()
        for seed in seeds:
            self._train_cold_start(seed)
            asyncio.run(self._train(seed, designs))
        if not (self.root / "base" / "evaluation.json").is_file():
            self.log("the base model, judging")
            asyncio.run(evaluate_model(self.config(self.base, f"run.root={self.root}", "run.name=base", *_WAYS)))

    def config(self, model: Path, *overrides: str) -> TrainConfig:
        """The GRPO configuration of a run."""
        files = [
            list_override("data.train", self.data / "train.parquet"),
            list_override("data.held_out", (self.data / self.split).with_suffix(".parquet")),
        ]
        return load(TrainConfig, setting.CONFIG, [f"model.path={model}", *files, *self.size.overrides, *overrides])

    def _check_setting(self) -> None:
        """Raise a ConfigError if the folder holds runs of another setting, which cannot be compared."""
        settings = {**setting.setting_values(), "split": self.split, "size": dataclasses.asdict(self.size)}
        require_same_settings(self.root / "setting.json", settings, remedy="choose another --out")

    def _make_data(self) -> None:
        sizes: dict[Split, int] = {
            "train": self.size.train,
            self.split: self.size.held_out or setting.NUM_JUDGED[self.split],
        }
        for split, number in sizes.items():
            path = self.data / f"{split}.parquet"
            if not path.is_file():
                self.log(f"{number} samples: {split}")
                dataset.write(path, seed=0, split=split, num_samples=number, tracks=setting.MIXED)

    def _make_base(self) -> None:
        """The first demo's base model, and from it the one of the mixed task."""
        config = load(SftConfig, setting.SFT_CONFIG, [])
        schemas = {name: tool.schema for name, tool in load_tools(config.tools.files).items()}
        first = self.root / "demo_base"
        plans = {
            first: ("the demo's base model", TILES, PretrainPlan(num_threads=1), None),
            self.base: ("the base model: plain digits as well, and a third call", setting.MIXED, setting.PLAN, first),
        }
        for folder, (title, tracks, steps, start) in plans.items():
            if not folder.is_dir():
                self.log(title)
                with replace_file(folder) as temporary:
                    make_base(
                        temporary,
                        config.template,
                        schemas,
                        tracks=tracks,
                        plan=steps,
                        seed=0,
                        share=self.size.pretraining,
                        start=start,
                    )

    def _train_cold_start(self, seed: int) -> None:
        folder = self.root / str(seed)
        demonstrations = folder / "demonstrations.parquet"
        if not demonstrations.is_file():
            self.log(f"seed {seed}: demonstrations")
            write_demonstrations(demonstrations, self._run_teacher(seed))
        files = [list_override("data.train", demonstrations), f"model.path={self.base}"]
        config = load(SftConfig, setting.SFT_CONFIG, [*files, f"run.root={folder}", f"run.seed={seed}"])
        if not (config.run.folder / "export" / "config.json").is_file():
            self.log(f"seed {seed}: cold start")
            asyncio.run(train_sft(config))

    def _run_teacher(self, seed: int) -> list:
        config = self.config(self.base)
        tools = load_tools(config.tools.files)
        template = Template.load(config.model, config.template, {name: tool.schema for name, tool in tools.items()})
        teacher = dataclasses.replace(setting.TEACHER, seed=seed)
        samples = read_samples(config.data.train, list(tools))
        with contextlib.closing(LocalTools(tools)) as local:
            sessions = run_screened_sessions(
                samples, lambda sample: teacher.policy(sample, template), local, config.session, template
            )
            return list(itertools.islice(sessions, self.size.demonstrations))

    async def _train(self, seed: int, designs: Sequence[str]) -> None:
        """Evaluates the cold start and runs stages, all on the same engines; nothing is started where nothing is left to do."""
        folder, common = self.root / str(seed), (f"run.root={self.root / str(seed)}", f"run.seed={seed}")
        cold = self.config(folder / "sft" / "export", "run.name=cold_start", *common, *_WAYS)
        judged = (cold.run.folder / "evaluation.json").is_file()
        stages = dict(self._stage_configs(folder, common, designs))
        left = {
            name: config for name, config in stages.items() if not is_finished(config.run.folder, config.num_steps or 0)
        }
        if judged and not left:
            return
        async with (
            reserve(f"findings-{seed}", cold.placement, 0, cold.rollout) as reservation,
            rollout_service(cold, read_inputs(cold).template, reservation) as engines,
        ):
            if not judged:
                self.log(f"seed {seed}: the cold start, judging")
                await evaluate_model(cold, engines)
            for name, config in left.items():
                self.log(f"seed {seed}: {name}")
                await train_grpo(config, engines)

    def _stage_configs(
        self, folder: Path, common: Sequence[str], designs: Sequence[str]
    ) -> Iterator[tuple[str, TrainConfig]]:
        """Yield names and configurations, in the order in which they need each other."""
        cold_start = folder / "sft" / "export"
        if any(DESIGNS[name].staged for name in designs):
            changed = (
                f"reward.name={setting.STAGE1}",
                f"learner.learning_rate={setting.STAGE1_LEARNING_RATE}",
                "evaluation.final=false",
            )
            yield (
                setting.STAGE1,
                self._stage_config(setting.STAGE1, cold_start, self.size.stage1_steps, *common, *changed),
            )
        for name in designs:
            design = DESIGNS[name]
            start, done = (
                (folder / setting.STAGE1 / "export", self.size.stage1_steps) if design.staged else (cold_start, 0)
            )
            ways = _WAYS if design.ways else ()
            yield (
                name,
                self._stage_config(name, start, self.size.steps - done, *common, f"reward.name={design.reward}", *ways),
            )

    def _stage_config(self, name: str, model: Path, steps: int, *overrides: str) -> TrainConfig:
        return self.config(model, f"run.name={name}", f"num_steps={steps}", *overrides)
