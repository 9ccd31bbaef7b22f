"""TRL's own virtual environment: made once, beside the project's. TRL is no dependency of the project, and only its benchmarks use it.

It sees the project's packages (torch, transformers, ...), so that both sides compute with the same libraries, and adds what TRL needs.
"""

import hashlib
import logging
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from arm_rl.core.errors import UserError

logger = logging.getLogger(__name__)

# With --no-deps: what else TRL needs is the project's already.
REQUIREMENTS = (
    "trl==1.16.*",
    "accelerate==1.15.*",
    "datasets==5.*",
    "pandas==3.*",
    "multiprocess==0.70.*",
    "dill==0.4.*",
    "xxhash==4.*",
)
CHECK = "from trl import GRPOConfig, GRPOTrainer"
_BORROW = "project.pth"  # adds the project's packages, and what their own .pth files do


class EnvironmentFailed(UserError):
    """TRL's environment could not be made; the message says why."""


def make(folder: Path) -> Path:
    """Makes the environment in `folder`, or finds that it is there; gives its interpreter.

    Raises:
        EnvironmentFailed: with the end of what the failed command said.
    """
    python = folder / "bin" / "python"
    packages = sysconfig.get_path("purelib")
    stamp, wanted = folder / "installed", _digest(packages)
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    logger.info("setting up TRL's own environment in %s (%s): about a minute, once", folder, REQUIREMENTS[0])
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    own = _run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(own) / _BORROW).write_text(f"import site; site.addsitedir({packages!r})\n")
    _run(str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--no-deps", *REQUIREMENTS)
    _run(str(python), "-c", CHECK)
    stamp.write_text(wanted)
    return python


def _digest(packages: str) -> str:
    """Changes when another installation is needed."""
    content = "\n".join([sys.version, packages, *REQUIREMENTS])
    return hashlib.sha256(content.encode()).hexdigest() + "\n"


def _run(*command: str) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if answer.returncode != 0:
        said = "".join(f"    {line}\n" for line in (answer.stdout + answer.stderr).splitlines()[-12:])
        raise EnvironmentFailed(f"TRL's environment could not be made: {' '.join(command[:4])} ... failed:\n{said}")
    return answer.stdout
