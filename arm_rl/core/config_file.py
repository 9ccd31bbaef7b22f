"""The configuration on disk and on the command line: one YAML file and `key=value` overrides in, dataclasses out.

`load` refuses unknown keys, wrong types and numbers that cannot work together, with the key's path and what would be right. `save`
writes the resolved configuration, which loads again.
"""

import dataclasses
import difflib
import inspect
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError
from arm_rl.core.stage_config import SftConfig, TrainConfig

_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")  # OmegaConf's way to a variable

ConfigT = TypeVar("ConfigT")  # a configuration: a frozen dataclass whose sections are such dataclasses


def load(cls: type[ConfigT], path: str | os.PathLike, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a YAML file, applies `key=value` overrides and checks everything.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or numbers that cannot work together.
    """
    written = _read(path)
    for override in overrides:
        written = _apply_override(written, override)
    return build(cls, written, source=str(path))


def load_saved(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig | SftConfig:
    """Reads the configuration of a run, of whichever kind it is. Raises as `load`."""
    return load(TrainConfig, path, overrides) if "algorithm" in _read(path) else load(SftConfig, path, overrides)


def read_saved(cls: type, path: str | os.PathLike) -> dict[str, Any]:
    """The values of a configuration that was saved, unchecked: it may be of another version. Raises as `load`.

    Keys that were not there when it was saved have their defaults.
    """
    defaults = OmegaConf.create(typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cls))))
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(defaults, _read(path))))


def _read(path: str | os.PathLike) -> DictConfig:
    try:
        written = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(written, DictConfig):
        raise ConfigError(f"{path}: a mapping of keys is needed")
    return written


def _apply_override(written: DictConfig, override: str) -> DictConfig:
    key, equals, _ = override.partition("=")
    if not key or not equals:
        raise ConfigError(f"{override!r}: an override is written key=value")
    try:
        return typing.cast(DictConfig, OmegaConf.merge(written, OmegaConf.from_dotlist([override])))
    except Exception as error:  # YAML's errors, OmegaConf's, and its plain TypeErrors
        raise ConfigError(f"{key}: {override!r} cannot be used here: {_first_line(error)}") from error


def build(cls: type[ConfigT], values: DictConfig | dict[str, Any], source: str = "configuration") -> ConfigT:
    """Makes a configuration of plain values, with the checks of `load`."""
    merged: DictConfig = OmegaConf.structured(cls)
    for node in (merged, *(merged._get_node(name) for name in merged)):
        if isinstance(node, DictConfig):
            # frozen dataclasses make read-only nodes, which nothing could be merged into
            OmegaConf.set_readonly(node, False)
    plain = OmegaConf.to_container(values) if isinstance(values, DictConfig) else values
    # one by one, so that every error has its key
    for key, value in _iterate_leaves(cls, typing.cast(dict[str, Any], plain), source):
        if _ENVIRONMENT.search(str(value)):
            raise ConfigError(
                f"{key}: {value!r} cannot be used: environment variables decide nothing here, and the run folder, which keeps the resolved "
                f"configuration, would keep a secret; say {key}=... on the command line"
            )
        try:
            OmegaConf.update(merged, key, value)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{key}: {value!r} cannot be used: {_first_line(error)}") from error
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]}: a value is needed (in {source}, or as {missing[0]}=...)")
        return typing.cast(ConfigT, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or to the wrong type
        raise ConfigError(f"{error.full_key or source}: {_first_line(error)}") from error


def _iterate_leaves(cls: type, values: dict[str, Any], source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a configuration; raise a ConfigError for an unknown key."""
    known = {item.name: typing.cast(type, item.type) for item in dataclasses.fields(cls)}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in known:
            raise ConfigError(f"{key}: unknown key in {source}{_suggestion(cls, str(name), prefix)}")
        if not dataclasses.is_dataclass(known[name]):
            yield key, value
        elif isinstance(value, dict):
            yield from _iterate_leaves(known[name], value, source, f"{key}.")
        else:
            raise ConfigError(f"{key}: a section of keys is needed, not {value!r}")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def save(config: TrainConfig | SftConfig, path: str | os.PathLike) -> None:
    """Write the resolved configuration as YAML."""
    replace_text(Path(path), OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))


def describe(cls: type) -> str:
    """All keys with their defaults and comments, for `--help`."""
    return "\n".join(f"  {key:<40} {default:<24} {comment}" for key, default, comment in _keys(cls))


def _keys(cls: type, prefix: str = "") -> list[tuple[str, str, str]]:
    comments = _field_comments(cls)
    rows: list[tuple[str, str, str]] = []
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.type):
            rows += _keys(typing.cast(type, item.type), f"{prefix}{item.name}.")
        else:
            value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            default = "(needed)" if value == MISSING else str(value)
            rows.append((prefix + item.name, default, comments.get(item.name, "")))
    return rows


def _field_comments(cls: type) -> dict[str, str]:
    """Return each key's comment: the lines above the key, or the end of its line."""
    found = re.findall(r"^((?:    # .*\n)*)    (\w+): .*?(?:  # (.*))?$", inspect.getsource(cls), flags=re.MULTILINE)
    return {name: behind or " ".join(above.replace("# ", "").split()) for above, name, behind in found}


def _suggestion(cls: type, name: str, prefix: str) -> str:
    close = difflib.get_close_matches(name, [item.name for item in dataclasses.fields(cls)], n=1, cutoff=0.5)
    return f"; did you mean {prefix}{close[0]}?" if close else "; --help lists the keys"
