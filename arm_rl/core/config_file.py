"""The configuration on disk and on the command line: one YAML file and `key=value` overrides in, dataclasses out.

`load` refuses unknown keys, wrong types and numbers that cannot work together, with the key's path and what would be right. A key
that holds a text keeps the text that was written: YAML would read `2026_11_29`, `007`, `on` and `12:30` as other values. `save` writes
the resolved configuration, which loads again.
"""

import dataclasses
import difflib
import inspect
import io
import json
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config import ConfigError
from arm_rl.core.environment import variables_read_by
from arm_rl.core.errors import UserError
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.text_file import read_text

_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:")  # the plain way to a variable; nested ways reach the resolver
_NO_VARIABLES = "environment variables decide nothing here, and the run folder, which keeps the resolved configuration, would keep a secret"

ConfigT = TypeVar("ConfigT")  # a configuration: a frozen dataclass whose sections are such dataclasses


class _TextLoader(yaml.SafeLoader):
    """Reads YAML with scalars as they were written; null and merge keys alone have their meaning."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(cls: type[ConfigT], path: str | os.PathLike, overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a YAML file, applies `key=value` overrides and checks everything.

    Raises:
        ConfigError: an unknown key, a wrong type, a missing value or numbers that cannot work together.
    """
    written = _read(cls, path)
    for override in overrides:
        written = _apply_override(cls, written, override)
    return build(cls, written, source=str(path))


def load_saved(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainConfig | SftConfig:
    """Reads the configuration of a run, of whichever kind it is. Raises as `load`."""
    is_grpo = "algorithm" in _read(TrainConfig, path)
    return load(TrainConfig, path, overrides) if is_grpo else load(SftConfig, path, overrides)


def read_saved(cls: type, path: str | os.PathLike) -> dict[str, Any]:
    """The values of a configuration that was saved, unchecked: it may be of another version. Raises as `load`.

    Keys that were not there when it was saved have their defaults.
    """
    defaults = OmegaConf.create(typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cls))))
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(defaults, _read(cls, path))))


def list_override(key: str, *values: str | os.PathLike) -> str:
    """Return the override of a key that holds a list of texts, whatever characters the texts have."""
    return f"{key}={json.dumps([str(value) for value in values])}"


def _read(cls: type, path: str | os.PathLike) -> DictConfig:
    """Return the values of a file, those of text keys as they were written. Raises as `load`."""
    try:
        text = read_text(path)
        checked = OmegaConf.load(io.StringIO(text))  # which refuses a key that is written twice
        written = yaml.load(text, _TextLoader)
    except OSError as error:
        if error.strerror is None:  # OmegaConf's own, for a file that holds a number
            raise ConfigError(f"{path}: a mapping of keys is needed") from error
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UserError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(checked, DictConfig):
        raise ConfigError(f"{path}: a mapping of keys is needed")
    return OmegaConf.create(_resolve_types(cls, written)) if isinstance(written, dict) else checked


def _apply_override(cls: type, written: DictConfig, override: str) -> DictConfig:
    key, equals, text = override.partition("=")
    if not key or not equals:
        raise ConfigError(f"{override!r}: an override is written key=value")
    try:
        kind = _type_of(cls, key)
        change = OmegaConf.create({})
        OmegaConf.update(change, key, _resolve_types(kind, _parse_override(kind, text)))
        return typing.cast(DictConfig, OmegaConf.merge(written, change))
    except Exception as error:  # YAML's errors, OmegaConf's, and its plain TypeErrors
        raise ConfigError(f"{key}: {override!r} cannot be used here: {_first_line(error)}") from error


def _parse_override(kind: Any, text: str) -> Any:
    """Return the value of an override: for a text key the text itself, from which only outer quotes are removed."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if quoted or not _holds_text(kind) or typing.get_origin(kind) in (tuple, dict):
        return yaml.load(text, _TextLoader)
    is_null = not text.strip() or (kind is not str and text.strip().lower() in ("~", "null"))
    return None if is_null else text


def _type_of(cls: type, key: str) -> Any:
    """Return the declared type of a key; `object` for an unknown key."""
    kind: Any = cls
    for name in key.split("."):
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        kind = next((field.type for field in fields if field.name == name), object)
    return kind


def _holds_text(kind: Any) -> bool:
    """Return whether a type is a text, a choice of texts, or has one among its arguments."""
    return kind is str or isinstance(kind, str) or any(map(_holds_text, typing.get_args(kind)))


def _resolve_types(kind: Any, value: Any) -> Any:
    """Return a value whose scalars are texts with those that are not meant as texts read as YAML reads them."""
    if isinstance(value, dict):
        if dataclasses.is_dataclass(kind):
            known = {field.name: field.type for field in dataclasses.fields(kind)}
            return {name: _resolve_types(known.get(name, object), one) for name, one in value.items()}
        values = typing.get_args(kind)[1] if typing.get_origin(kind) is dict else object
        return {name: _resolve_types(values, one) for name, one in value.items()}
    if isinstance(value, list):
        return [_resolve_types(kind, one) for one in value]
    if not isinstance(value, str) or _holds_text(kind):
        return value
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    except Exception:  # a quoted text that is no YAML: the type's own check refuses it
        return value


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
            raise ConfigError(f"{key}: {value!r} cannot be used: {_NO_VARIABLES}; say {key}=... on the command line")
        try:
            OmegaConf.update(merged, key, value)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{key}: {value!r} cannot be used: {_first_line(error)}") from error
    try:
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]}: a value is needed (in {source}, or as {missing[0]}=...)")
        with variables_read_by(_refuse_variable):
            return typing.cast(ConfigT, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:  # an interpolation that leads nowhere, or to the wrong type
        raise ConfigError(f"{error.full_key or source}: {_first_line(error)}") from error


def _refuse_variable(name: str, *_: object) -> object:
    raise ConfigError(f"the environment variable {name} cannot be used: {_NO_VARIABLES}")


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
