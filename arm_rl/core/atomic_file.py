"""Files that appear under their name only when they are complete: written next to it, then renamed.

A reader, a crash or a full disk sees the old file or the new one, never half of either.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which takes the name `path` when the block ends without an error.

    The block writes a file there, or a folder where `path` does not exist yet. An error removes what it has written and
    leaves `path` as it was. The temporary name is unique, so several processes may write `path` at once: the last to
    finish wins. A process that is killed leaves its temporary file behind.

    Args:
        path: The final path. Missing parent folders are created.

    Yields:
        The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to a file that is replaced as `replace_file` does."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
