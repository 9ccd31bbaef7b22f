"""Makes a run's report anew: `python -m arm_rl.report RUN_FOLDER`."""

import logging
import sys
from pathlib import Path

from arm_rl.report import write_report

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m arm_rl.report RUN_FOLDER")
    logging.info("written: %s", write_report(Path(sys.argv[1])))
