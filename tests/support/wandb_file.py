"""Reads the file of an offline run of Weights & Biases: a log of LevelDB's format, each record a protocol buffer.

7 bytes: the file's kind | blocks of 32 KiB with pieces of records: checksum (4 bytes), length (2), kind (1: whole, 2 to 4: its parts), data
"""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEAD, _WHOLE, _LAST = 32768, 7, 1, 4


def records(path: Path) -> Iterator[Record]:
    """All records, in order."""
    data, place, begun = path.read_bytes(), _HEAD, b""
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:  # no piece begins here
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + _HEAD])
        if place + _HEAD + length > len(data):
            return  # it is being written
        begun += data[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(begun)
            begun = b""


def wait_for_end(path: Path) -> None:
    """Its process writes the last records just after `finish` returns; a test's own time limit is the patience."""
    while not any(one.HasField("exit") for one in records(path)):
        time.sleep(0.05)


def config(path: Path) -> dict[str, Any]:
    """What the run's page shows as its configuration."""
    return {
        item.key: json.loads(item.value_json)
        for one in records(path)
        if one.HasField("run")
        for item in one.run.config.update
    }


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, call by call."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for one in records(path)
        if one.HasField("history")
    ]
