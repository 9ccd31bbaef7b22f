"""Text files that users write."""

import codecs

import pytest

from arm_rl.core.text_file import EncodingError, read_lines, read_text


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_marks_and_line_breaks(tmp_path, mark):
    (tmp_path / "x").write_bytes(mark + "é\r\nb\rc\n\ufeffd".encode())
    assert read_text(tmp_path / "x") == "é\nb\nc\n\ufeffd"
    assert [*read_lines(tmp_path / "x")] == ["é\n", "b\rc\n", "\ufeffd"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\nb \xe9 c", r"x: line 2: not UTF-8 text \(byte 0xe9 at column 3\): save the file as UTF-8"),
        ("a".encode("utf-16-le"), None),
        ("a".encode("utf-16"), r"x: line 1: not UTF-8 text \(the file is UTF-16\)"),
        (codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), r"x: line 1: .*UTF-16"),
    ],
)
def test_another_encoding_is_named_with_its_line(tmp_path, data, message):
    (tmp_path / "x").write_bytes(data)
    if message is None:
        assert read_text(tmp_path / "x") == "a\0"
        return
    with pytest.raises(EncodingError, match=message):
        read_text(tmp_path / "x")


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "x")
