"""The shape of the sources: layers, homes of the large libraries, packages without cycles, and files of a readable size.

The sources are read, not imported. Each rule is one test that collects every violation.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

from tests.conftest import LONG_FILES

ROOT = Path(__file__).parent.parent
LAYERS = ("jobs", "arm_rl", "actors", "rewards", "tools", "arm_rl.core")
TOPS = tuple(sorted({layer.split(".")[0] for layer in LAYERS}))

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
    "ray": (
        "actors/",
        "arm_rl/training/",
        "arm_rl/experiments/bench/",
        "arm_rl/gpu_proof/",
        "arm_rl/judge/deployment.py",
        "jobs/",
    ),
    "wandb": ("arm_rl/run/wandb_log.py",),
    "tensorboard": ("arm_rl/run/tensorboard_log.py",),
}

# Only these files make HTTP clients: one decides what goes through a proxy, the other is copied into other trainers.
CLIENT_HOMES = ("arm_rl/core/http_clients.py", "arm_rl/judge/reward_client.py")
CLIENT_LIBRARIES = ("requests", "aiohttp", "urllib3", "openai", "http.client", "urllib.request")
CLIENTS = re.compile(
    r"httpx2?\.(Async)?(Client|HTTPTransport)|httpx2?\.(get|post|put|patch|delete|head|options|request|stream)"
)

MAX_LINES = 400
MAX_LOOSE_MODULES = 2  # directly in arm_rl/
# Folders of tests/ that belong to no package: helpers, whole runs, what users write wrong, and random input.
UNMIRRORED = {"support", "integration", "bad_input", "fuzz"}


def layer(module: str) -> str | None:
    """Return the layer of a module, or None for a module of another project."""
    if module == "arm_rl.core" or module.startswith("arm_rl.core."):
        return "arm_rl.core"
    top = module.split(".")[0]
    return top if top in LAYERS else None


def module_name(path: str) -> str:
    """Return the dotted name of the module at `path`, which is relative to the root."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(source: str) -> Iterator[str]:
    """Yield the modules that a source imports, also inside functions, and by name through `import_module`."""
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
    """Return the imports of the file at `path` that cross a layer or a library's home, a sentence each."""
    own = layer(module_name(path))
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


def misplaced_options(path: str, source: str) -> list[str]:
    """Return the functions whose Ray options are above another decorator: Ray unwraps a method and reads none of those."""
    return [
        f"{path}: {node.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("ray.method" in ast.unparse(decorator) for decorator in node.decorator_list[:-1])
    ]


def http_clients(path: str, source: str) -> list[str]:
    """Return the places where a source makes an HTTP client of its own, or sends a request without one."""
    if path in CLIENT_HOMES:
        return []
    tree = ast.parse(source)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imported = set(imports(source))
    libraries = {name for name in imported if name.startswith(tuple(f"{library}." for library in CLIENT_LIBRARIES))}
    libraries |= imported & set(CLIENT_LIBRARIES)
    return [f"{path}: {name}" for name in sorted(called | imported) if CLIENTS.fullmatch(name)] + [
        f"{path}: {name}" for name in sorted(libraries)
    ]


def package_of(path: str) -> str | None:
    """Return the package of a file, at most two names deep, or None for a module loose in its layer's folder."""
    folders = Path(path).parts[:-1]
    return ".".join(folders[:2]) if len(folders) > 1 else None


def package_graph(files: Mapping[str, str]) -> dict[str, set[str]]:
    """Return for each package the other packages that its files import.

    Args:
        files: text of each source file by its path relative to the root.
    """
    packages = {package for path in files if (package := package_of(path)) is not None}
    graph: dict[str, set[str]] = {package: set() for package in packages}
    for path, source in files.items():
        own = package_of(path)
        if own is None:
            continue
        found = {".".join(module.split(".")[:2]) for module in imports(source)}
        graph[own] |= (found & packages) - {own}
    return graph


def cycles(graph: Mapping[str, Set[str]]) -> list[str]:
    """Return the packages from which imports lead back to the package itself."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = [*graph[start]]
        while ahead:
            if (package := ahead.pop()) not in seen:
                seen.add(package)
                ahead += graph[package]
        return seen

    return sorted(package for package in graph if package in reached(package))


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """Text of each source file by its path relative to the root, the tests' own files not among them."""
    found = (path for top in TOPS for path in sorted((ROOT / top).rglob("*.py")))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def test_all_layers_were_read(files):
    assert {layer(module_name(path)) for path in files} == set(LAYERS)


def test_no_two_test_files_have_one_name():
    """pytest imports a test file by its name alone, and refuses the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_imports_run_one_way(files):
    assert [found for path, source in files.items() for found in violations(path, source)] == []


def test_one_module_makes_all_http_clients(files):
    """So that a proxy of the environment stands between none of our processes."""
    assert [found for path, source in files.items() for found in http_clients(path, source)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import httpx\nhttpx.get('http://127.0.0.1')",
        "import httpx2\nclient = httpx2.AsyncClient()",
        "from httpx import Client",
        "def f():\n    import requests",
        "from urllib.request import urlopen",
        "import urllib.request",
        "from openai import AsyncOpenAI",
    ],
)
def test_an_own_http_client_is_found(source):
    assert len(http_clients("jobs/chat.py", source)) == 1
    assert http_clients("arm_rl/core/http_clients.py", source) == []


def test_packages_import_each_other_without_a_cycle(files):
    assert cycles(package_graph(files)) == []


def test_options_of_calls_are_at_the_function_itself(files):
    assert [found for path, source in files.items() for found in misplaced_options(path, source)] == []


def test_no_file_is_too_long_to_read(files):
    assert {path for path, source in files.items() if len(source.splitlines()) > MAX_LINES} == set()


def test_few_modules_are_loose_in_the_library(files):
    loose = [path for path in files if Path(path).parent == Path("arm_rl") and Path(path).name != "__init__.py"]
    assert len(loose) <= MAX_LOOSE_MODULES, loose


def test_the_files_of_one_step_are_those_that_the_documentation_lists(files):
    """docs/architecture.md leads a reader through one step; a count that is off by a tenth is out of date."""
    listed = re.findall(
        r"^\| \d+ \| `([\w/.]+)` \| (\d+) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE
    )
    assert len(listed) > 20
    counted = {path: len(files[path].splitlines()) for path, _ in listed}
    assert {path: int(lines) for path, lines in listed} == pytest.approx(counted, rel=0.1)


def test_every_folder_of_tests_mirrors_a_package():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")} - {Path(".")}
    assert {folder.parts[0] for folder in folders} >= UNMIRRORED
    own = [folder for folder in folders if folder.parts[0] not in UNMIRRORED]
    assert [str(folder) for folder in own if not any((ROOT / top / folder).is_dir() for top in (".", "arm_rl"))] == []


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
    for path in sorted((ROOT / "jobs").rglob("*.py")):
        allowed = (*shared, "jobs.prepare.") if path.name == "prepare_data.py" else shared
        modules = [module for module in imports(path.read_text()) if layer(module) == "jobs"]
        assert [module for module in modules if not module.startswith(allowed)] == [], path


def test_a_misplaced_option_is_found():
    above = "@ray.method(num_returns=2)\n@recorded\ndef f(): pass"
    assert misplaced_options("a.py", above) == ["a.py: f"]
    assert misplaced_options("a.py", "@recorded\n@ray.method(num_returns=2)\nasync def f(): pass") == []


def test_a_cycle_of_packages_is_found():
    files = {
        "arm_rl/data/samples.py": "from arm_rl.run import folder",
        "arm_rl/run/folder.py": "def f():\n    import arm_rl.prepare.pairs.sieve",
        "arm_rl/prepare/pairs/sieve.py": "import arm_rl.prepare.audit, arm_rl.data.samples as s",
        "arm_rl/report/html.py": "from arm_rl.data.samples import read",
        "jobs/train.py": "from arm_rl.report import html",
    }
    assert package_graph(files)["arm_rl.prepare"] == {"arm_rl.data"}
    assert cycles(package_graph(files)) == ["arm_rl.data", "arm_rl.prepare", "arm_rl.run"]
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_long_files_are_there():
    assert [file for file in LONG_FILES if not (ROOT / "tests" / file).is_file()] == []
