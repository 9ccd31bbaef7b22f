"""What holds for all tests: no deadlines, and tests marked `gpu` are left out where there is no GPU."""

import shutil

import hypothesis
import pytest

hypothesis.settings.register_profile("arm_rl", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("arm_rl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("nvidia-smi") is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
