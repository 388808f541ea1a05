"""From a YAML file and `key.path=value` overrides to a checked configuration; every fault is named at once."""

import difflib
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eval.errors import UserError
from eval.files import CONFIG_BYTES, read_text
from train.config.job import JobConfig
from train.config.run import PATH_KEYS, RunConfig
from train.config.yaml_text import YamlFault, parse_yaml

ConfigType = TypeVar("ConfigType", bound=RunConfig)


class ConfigError(UserError):
    """A configuration that cannot be run; the message names every key that is wrong."""


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> JobConfig:
    """The configuration of a job; see `load_run_config`."""
    return load_run_config(JobConfig, path, overrides)


def load_run_config(kind: type[ConfigType], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ConfigType:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML) and check everything.

    Args:
        kind: what the file describes.

    Raises:
        ConfigError: with every fault: unknown keys (and the nearest known one), wrong types, values that contradict one another; and
            which of them the command line gives.
    """
    record = read_yaml(Path(path))
    for override in overrides:
        _apply(record, override)
    return _checked(kind, record, path, overrides)


def _checked(kind: type[ConfigType], record: dict[str, Any], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ConfigType:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        faults = [(line, [text for text in overrides if _touches(text, location)]) for line, location in _lines(error, kind)]
        of_file = f"{path}: " if not all(given for _, given in faults) else ""
        lines = "\n".join(line + (f" (the command line gives {' '.join(given):.200})" if given else "") for line, given in faults)
        raise ConfigError(f"{of_file}{error.error_count()} fault(s) in the configuration\n{lines}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        record = parse_yaml(read_text(path, CONFIG_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the path of a YAML file, e.g. configs/demo.yaml") from error
    except YamlFault as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(record).__name__}")
    return record


def _apply(record: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not all(path.split(".")):
        raise ConfigError(f"{override!r:.200}: an override has the form key.path=value, e.g. train.max_steps=100")
    try:
        value = parse_yaml(text)
    except YamlFault as error:
        raise ConfigError(f"{override!r:.200}, given on the command line: {error}") from error
    *parents, last = path.split(".")
    for key in parents:
        if record.get(key) is None:
            record[key] = {}
        record = record[key]
        if not isinstance(record, dict):
            raise ConfigError(f"{override!r:.200}: {key} is a single value, it has no keys below it")
    record[last] = value


def _touches(override: str, location: Sequence[int | str]) -> bool:
    """Whether an override gives the value at a location, or one below or above it."""
    given = override.partition("=")[0].split(".")
    return all(str(part) == key for part, key in zip(location, given, strict=False))


def _lines(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, tuple[int | str, ...]]]:
    """Each fault in a line, and where it is."""
    lines = []
    for fault in error.errors():
        key = ".".join(f"{part:.100}" if isinstance(part, str) else str(part) for part in fault["loc"]) or "(the whole)"
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(fault["loc"][-1]), _known_keys(kind, fault["loc"][:-1]), n=1)
            line = f"  {key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
        elif fault["type"] == "missing":
            line = f"  {key}: missing"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            found = "" if fault["type"] == "value_error" else f"; found {fault['input']!r:.100}"
            line = f"  {key}: {message}{found}"
        lines.append((line, fault["loc"]))
    return lines


def _known_keys(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    section: Any = kind
    for part in location:
        if isinstance(part, int):  # a place in a list, whose items' kind the field has told already
            continue
        field = section.model_fields.get(part)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if section is None:
            return []
    return list(section.model_fields)


def read_run(folder: Path) -> JobConfig:
    """The configuration of a job's run, wherever its folder lies now; see `read_run_as`."""
    return read_run_as(JobConfig, folder)


def read_run_as(kind: type[ConfigType], folder: Path) -> ConfigType:
    """The configuration of a run of this kind, wherever its folder lies now and from whichever folder it is read, to export or measure it.

    Keys of the training that were removed since, and that a run of an earlier version may have, are left out.

    Raises:
        UserError: it cannot be read.
    """
    path = folder / "config.yaml"
    record = read_yaml(path)
    record.pop("constant_answer", None)
    if isinstance(record.get("mining"), dict):
        record["mining"].pop("ensemble", None)
    config = found_from_here(_checked(kind, record, path), folder)
    return config.model_copy(update={"runs_folder": str(folder.parent), "name": folder.name})


def found_from_here(config: ConfigType, folder: Path) -> ConfigType:
    """The configuration with every path that leads nowhere from the working directory, but does from where the run was started, absolute.

    A run was started where its own folder, runs_folder/name, ends; where that is moved or absolute, nothing changes.

    Args:
        config: as it was written into the run's folder.
        folder: of the run.
    """
    own, place = Path(config.runs_folder) / config.name, folder.resolve()
    if own.is_absolute() or place.parts[-len(own.parts) :] != own.parts:
        return config
    started_in = Path(*place.parts[: -len(own.parts)])
    record = config.model_dump()
    changed = _with_paths(record, started_in)
    return config if changed == record else type(config).model_validate(changed)


def _with_paths(value: Any, started_in: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _with_paths(inner, started_in, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_paths(inner, started_in, key) for inner in value)
    if not isinstance(value, str):
        return value
    if key == "expand":  # METHOD:FILE, or a file alone
        method, colon, path = value.rpartition(":")
        return value if method == "column" else method + colon + _found(path, started_in)
    return _found(value, started_in) if key in PATH_KEYS else value


def _found(path: str, started_in: Path) -> str:
    if not path or glob.glob(path) or not glob.glob(f"{glob.escape(str(started_in))}/{path}"):
        return path
    return str(started_in / path)
