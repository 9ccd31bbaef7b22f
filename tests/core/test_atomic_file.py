"""Files that are replaced at once: an error keeps the old file, and writers at the same time do not mix."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arm_rl.core.atomic_file import replace_file, replace_text


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "numbers.json"
    with replace_file(path) as temporary:
        temporary.write_text("[1, 2")
        assert temporary.parent == path.parent  # a rename replaces a file within one file system only
        assert not path.exists()
    assert path.read_text() == "[1, 2"
    assert list(path.parent.iterdir()) == [path]


def write_half(path: Path, error: BaseException) -> None:
    with replace_file(path) as temporary:
        temporary.write_text("ne")
        raise error


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path, error):
    path = tmp_path / "numbers.json"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_before_anything_is_written_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replace_file(tmp_path / "numbers.json"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    replace_text(path, "größer\n")
    with pytest.raises(UnicodeEncodeError):
        replace_text(path, "half of a pair: \ud800")
    assert path.read_bytes() == "größer\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "numbers.json"):
        pass


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "model"
    with replace_file(path) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text("{}")
        assert not path.exists()
    assert (path / "config.json").read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_removes_an_incomplete_folder(tmp_path):
    def write(path: Path) -> None:
        with replace_file(path) as temporary:
            temporary.mkdir()
            write_half(temporary / "config.json", ZeroDivisionError())

    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_at_once_the_last_to_finish_wins(tmp_path):
    path = tmp_path / "numbers.json"
    with replace_file(path) as first, first.open("w") as file:
        file.write("first, ")
        with replace_file(path) as second, second.open("w") as other:
            other.write("second, complete")
        assert path.read_text() == "second, complete"
        file.write("complete")
    assert path.read_text() == "first, complete"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_a_mix_of_what_several_write(tmp_path):
    path, over = tmp_path / "letters.txt", threading.Event()
    replace_text(path, "-" * 50_000)

    def write(letter: str) -> None:
        for _ in range(50):
            replace_text(path, letter * 50_000)

    def read() -> list[str]:
        seen = []
        while not over.is_set():
            seen.append(path.read_text())
        return seen

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read)
        list(pool.map(write, "abcd"))
        over.set()
        seen = reading.result()
    assert {(len(text), len(set(text))) for text in seen} == {(50_000, 1)}
    assert list(tmp_path.iterdir()) == [path]
