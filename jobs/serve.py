"""Serves an exported judge by vLLM's OpenAI-compatible server: `python -m jobs.serve FOLDER`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from actors.model_server import ModelServer
from arm_rl.model_folder import check_files
from jobs.command_line import guarded


def main() -> int:
    """Serves until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m jobs.serve", description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported model, for example runs/demo/export")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--gpu", action="store_true", help="serve on a GPU")
    arguments = parser.parse_args()

    def serve() -> str:
        check_files(str(arguments.folder), a_folder=True)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "server.log"
            with ModelServer(arguments.folder, log, use_gpu=arguments.gpu, port=arguments.port) as server:
                sys.stdout.write(f"serving the model 'judge' at {server.base_url}; Ctrl-C ends it\n")
                while True:
                    time.sleep(1.0)

    return guarded(serve)


if __name__ == "__main__":
    sys.exit(main())
