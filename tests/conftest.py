"""Settings of all tests, their order, and what they share: one Ray for each test worker, and the demo's small judge, built once."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from arm_rl.core.template import Template

# No deadlines: a busy machine is no failure. The same examples in every run, but in a long one (`make fuzz`).
hypothesis.settings.register_profile("arm_rl", deadline=None, derandomize=True)
hypothesis.settings.register_profile(
    "fuzz", deadline=None, max_examples=6_000, print_blob=True, suppress_health_check=list(hypothesis.HealthCheck)
)

ROOT = Path(__file__).parent.parent

# Files that take longest, before all others: at the end no test worker waits for one of them alone. Those with a cluster of
# their own are among the first, while the test worker has no Ray yet that would have to end.
LONG_FILES = (
    "integration/test_cluster.py",
    "integration/test_chaos.py",
    "integration/test_findings.py",
    "gpu_proof/test_cpu_proof.py",
    "actors/cluster/test_lost_node.py",
    "actors/cluster/test_reservation.py",
    "integration/test_stages.py",
    "integration/test_quickstart.py",
    "prepare/test_difficulty.py",
    "integration/test_serve.py",
    "actors/learner/test_learner.py",
    "integration/test_interrupt.py",
    "experiments/bench/test_learner_bench.py",
    "experiments/bench/test_driver_bench.py",
    "integration/test_full_disk.py",
    "export/test_export.py",
    "tools/python/test_executor.py",
    "actors/rollout/test_engine.py",
    "actors/learner/test_learner_memory.py",
    "actors/learner/test_qwen3.py",
    "actors/weights/test_lora.py",
    "actors/test_supervision.py",
    "actors/test_tool_executor.py",
    "benchmarks/test_engines.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz", action="store_true", help="many more examples of what a model may write, others in every run"
    )


def pytest_configure(config: pytest.Config) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]  # the tests' own clients ask servers on this machine
    if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each test worker: torch's threads would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    hypothesis.settings.load_profile("fuzz" if config.getoption("--fuzz") else "arm_rl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


def _turn(item: pytest.Item) -> int:
    """Return when the test's file begins, as a position in the order of files."""
    file = str(item.path.relative_to(ROOT / "tests"))
    return LONG_FILES.index(file) if file in LONG_FILES else len(LONG_FILES)


@pytest.fixture(scope="session")
def _connection() -> Iterator[ExitStack]:
    """The test worker's connection to Ray, while there is one."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def local_ray(_connection: ExitStack) -> None:
    """One Ray for all modules of a test worker, started by the first of them."""
    import ray

    from actors.cluster.connection import cluster

    if not ray.is_initialized():
        _connection.enter_context(cluster())


@pytest.fixture(scope="module")
def no_ray(_connection: ExitStack) -> None:
    """Nothing in the place of the test worker's Ray, for a module that starts a cluster of its own."""
    _connection.close()


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory) -> Path:
    """The demo's judge, untrained, as a Hugging Face folder."""
    from arm_rl.demo import model

    return model.build(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="session")
def template(judge_folder) -> "Template":
    """The judge's template, with the demo's tools."""
    from arm_rl.core.config import ModelConfig, TemplateConfig
    from arm_rl.core.template import Template
    from tools import load_tools

    schemas = {name: tool.schema for name, tool in load_tools(["configs/tools/digits.yaml"]).items()}
    return Template.load(
        ModelConfig(path=str(judge_folder)), TemplateConfig(system_prompt="configs/prompts/digits.txt"), schemas
    )


@pytest.fixture
def shipped_place(monkeypatch, documents_index, tmp_path) -> Path:
    """The working folder, with all that the shipped tool files want: an index of documents, and a key for the web search."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for path in ("data/documents", "runs/demo-tools/data/index"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to(documents_index)
    monkeypatch.setenv("SERPER_API_KEY", "a key")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def documents_index(tmp_path_factory) -> Path:
    """An index of one document of two pages."""
    from arm_rl.prepare.document_builder import build_index
    from tests.support.page_files import write_pdf

    folder = tmp_path_factory.mktemp("documents")
    build_index(
        [write_pdf(folder / "report.pdf", [["The first page."], ["The second page."]])], folder / "index", ocr="never"
    )
    return folder / "index"


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
