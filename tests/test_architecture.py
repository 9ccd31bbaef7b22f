"""Imports run one way, and the large libraries stay where they belong: the sources are read, not imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("jobs", "arm_rl", "actors", "rewards", "tools", "arm_rl.core")

# jobs -> arm_rl -> actors -> {rewards, tools} -> arm_rl.core
MAY_IMPORT = {
    "arm_rl.core": {"arm_rl.core"},
    "rewards": {"rewards", "arm_rl.core"},
    "tools": {"tools", "arm_rl.core"},
    "actors": {"actors", "rewards", "tools", "arm_rl.core"},
    "arm_rl": {"arm_rl", "actors", "rewards", "tools", "arm_rl.core"},
    "jobs": set(LAYERS),
}

# Where a library may be imported: files, or folders with all in them.
HOMES = {
    "vllm": (
        "actors/rollout/engine.py",
        "actors/rollout/vllm_process.py",
        "actors/rollout/vllm_worker.py",
        "actors/weights/direct.py",
    ),
    "deepspeed": ("actors/learner/", "actors/weights/gather.py"),
    "peft": ("actors/weights/lora.py",),
    "ray": ("actors/", "arm_rl/training/", "arm_rl/experiments/bench/", "arm_rl/judge/deployment.py", "jobs/"),
    "wandb": ("arm_rl/run/wandb_log.py",),
    "tensorboard": ("arm_rl/run/tensorboard_log.py",),
}


def layer(module: str) -> str | None:
    """The layer that a module belongs to; None for what is not the project's."""
    if module == "arm_rl.core" or module.startswith("arm_rl.core."):
        return "arm_rl.core"
    top = module.split(".")[0]
    return top if top in LAYERS else None


def imports(source: str) -> Iterator[str]:
    """Modules that a source imports, inside functions too, and by name through `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at `path`, which is relative to the root."""
    own = layer(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert own is not None
    found = []
    for module in imports(source):
        target = layer(module)
        if target is not None and target not in MAY_IMPORT[own]:
            found.append(f"{path}: {own} imports {module}")
        homes = HOMES.get(module.split(".")[0])
        if homes is not None and not any(
            path == home or (home.endswith("/") and path.startswith(home)) for home in homes
        ):
            found.append(f"{path}: imports {module}, which belongs to {', '.join(homes)}")
    return found


def sources() -> list[str]:
    tops = sorted({name.split(".")[0] for name in LAYERS})
    return [str(path.relative_to(ROOT)) for top in tops for path in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("path", sources())
def test_imports_run_one_way(path):
    assert violations(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", sources())
def test_options_of_calls_stand_at_the_function_itself(path):
    """Ray unwraps a decorated method, and reads none of the options above its last decorator."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not any("ray.method" in ast.unparse(decorator) for decorator in node.decorator_list[:-1]), node.name


def test_all_layers_were_read():
    assert {layer(path.removesuffix(".py").replace("/", ".")) for path in sources()} == set(LAYERS)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("arm_rl/core/session.py", "import ray"),
        ("arm_rl/core/loss.py", "def f():\n    from vllm import LLM"),
        ("arm_rl/core/batching.py", "from arm_rl import driver"),
        ("arm_rl/core/batching.py", "import arm_rl.training.driver as d"),
        ("arm_rl/core/batching.py", "import importlib\nimportlib.import_module('actors.learner.rank')"),
        ("rewards/stage1.py", "from tools.base import Tool"),
        ("rewards/stage1.py", "import ray.util"),
        ("tools/ocr.py", "from actors import tool_executor"),
        ("actors/rollout/actor.py", "from vllm.v1.engine import async_llm"),
        ("actors/rollout/actor.py", "from arm_rl.data.samples import Cursor"),
        ("actors/rollout/engine.py", "import deepspeed"),
        ("arm_rl/training/driver.py", "from jobs import train"),
        ("arm_rl/report.py", "import ray"),
        ("jobs/train.py", "import wandb"),
    ],
)
def test_a_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jobs/train.py", "import ray\nfrom arm_rl import driver\nfrom arm_rl.core.config_file import load"),
        ("arm_rl/training/driver.py", "import ray\nfrom actors.learner.rank import Learner"),
        ("arm_rl/core/session.py", "import array\nfrom arm_rl.core.types import Sample"),
        ("actors/rollout/vllm_worker.py", "from vllm import distributed"),
    ],
)
def test_what_is_allowed_is_not_found(path, source):
    assert violations(path, source) == []


def test_no_job_imports_another_job():
    """A job imports the shared command-line helpers only; `prepare_data` also the modules of its commands."""
    shared = ("jobs.command_line.", "jobs.judge_options.", "jobs.server_options.")
    for path in sources():
        allowed = (*shared, "jobs.prepare.") if path == "jobs/prepare_data.py" else shared
        if layer(path.removesuffix(".py").replace("/", ".")) == "jobs":
            modules = [module for module in imports((ROOT / path).read_text()) if layer(module) == "jobs"]
            assert [module for module in modules if not module.startswith(allowed)] == [], path
