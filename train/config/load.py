"""From a YAML file, or a data set, and `key.path=value` overrides to a checked configuration; every fault is named at once."""

import glob
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eval.errors import UserError
from eval.files import CONFIG_BYTES, at_home, read_text
from eval.manifest.formats.file_names import is_there
from eval.manifest.formats.hub import HubId
from train.config.job import JobConfig
from train.config.mining import PRESETS, with_preset
from train.config.nearest_key import nearest_key
from train.config.run import PATH_KEYS, RunConfig, SplitConfig
from train.config.sizes import UNKNOWN, DataSizes, fill_sizes
from train.config.yaml_text import YamlFault, parse_yaml

SMALL = Path(__file__).parents[2] / "configs" / "small.yaml"
"""What a data set is tuned with where it is given in the place of a configuration."""
_YAML_SUFFIXES = ("", ".yaml", ".yml")
_IN_PLACE_OF = {
    "train.epochs": "train.max_steps",
    "train.max_steps": "train.epochs",
    "mining.mine_every_epochs": "mining.mine_every_steps",
    "mining.mine_every_steps": "mining.mine_every_epochs",
}
"""Of each pair one is given: that of the command line takes the place of the file's other."""

ConfigType = TypeVar("ConfigType", bound=RunConfig)


class ConfigError(UserError):
    """A configuration that cannot be run; the message names every key that is wrong."""


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> JobConfig:
    """The configuration of a job; see `load_run_config`."""
    return load_run_config(JobConfig, path, overrides)


def load_run_config(kind: type[ConfigType], path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> ConfigType:
    """Read a YAML file, apply `key.path=value` overrides (values are YAML) and check everything.

    Where sizes follow from the data, it `is_open`: they are those of a very large data set until `resolved`.

    Args:
        kind: what the file describes.
        path: of the file; or a data set, which is tuned as configs/small.yaml says, under its own name.

    Raises:
        ConfigError: with every fault: unknown keys (and the nearest known one), wrong types, values that contradict one another; and
            which of them the command line gives.
    """
    record = read_record(path, overrides)
    return _checked(kind, record, path, overrides)


def read_record(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values that a file, or configs/small.yaml for a data set, and overrides give; nothing is checked.

    Raises:
        ConfigError: the file cannot be read, or an override cannot be applied.
    """
    if is_data(str(path)):
        record = read_yaml(SMALL)
        record["data"]["source"], record["name"] = str(path), run_name(str(path))
    else:
        record = read_yaml(Path(path))
    for key in {override.partition("=")[0] for override in overrides} & _IN_PLACE_OF.keys():
        section, _, replaced = _IN_PLACE_OF[key].partition(".")
        if isinstance(record.get(section), dict):
            record[section].pop(replaced, None)
    for override in overrides:
        apply_override(record, override)
    return record


def is_data(source: str) -> bool:
    """Whether what is given in the place of a configuration is a data set: a file that is no YAML, a folder, a glob, or a hub id."""
    path = Path(source)
    if path.is_dir():
        return True
    if path.suffix.lower() in _YAML_SUFFIXES:
        return not path.exists() and HubId.parse(source) is not None
    return path.exists() or bool(glob.glob(source)) or HubId.parse(source) is not None


def run_name(source: str) -> str:
    """What a run on a data set is called: as its file or folder, with - for what a name cannot hold.

    >>> run_name("~/My shoes (2).csv")
    'My-shoes-2'
    """
    path = Path(source)
    if not path.exists() and (hub_id := HubId.parse(source)):
        path = Path(hub_id.name)
    stem = path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-._")[:100] or "data"


def _checked(
    kind: type[ConfigType],
    record: dict[str, Any],
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    sizes: DataSizes = UNKNOWN,
    made_split: SplitConfig | None = None,
) -> ConfigType:
    if "mining" in record:
        record = record | {"mining": with_preset(record["mining"])}
    complete, filled = fill_sizes(record, sizes)
    if made_split is not None:
        complete["data"]["split"] = made_split.model_dump(mode="json")
    try:
        config = kind.model_validate(at_home(complete))
    except ValidationError as error:
        faults = [(line, [text for text in overrides if _touches(text, location)]) for line, location in fault_lines(error, kind)]
        of_file = f"{path}: " if not all(given for _, given in faults) else ""
        lines = "\n".join(line + (f" (the command line gives {' '.join(given):.200})" if given else "") for line, given in faults)
        raise ConfigError(f"{of_file}{error.error_count()} fault(s) in the configuration\n{lines}") from None
    is_open = bool(filled) and sizes == UNKNOWN
    return config.filled(filled, partial(_checked, kind, record, path, overrides) if is_open else None)


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


def apply_override(record: dict[str, Any], override: str) -> None:
    """Put the value of a `key.path=value` into keys and values.

    Raises:
        ConfigError: it has not this form, or leads below a value.
    """
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
        if key == "mining" and isinstance(record[key], str):  # a preset, of which some values are replaced
            record[key] = {"preset": record[key]}
        record = record[key]
        if not isinstance(record, dict):
            raise ConfigError(f"{override!r:.200}: {key} is a single value, it has no keys below it")
        if key == "mining" and last == "preset":  # given later than the keys of the file, so it comes before them
            for replaced in PRESETS.get(str(value), ()):
                record.pop(replaced, None)
    record[last] = value


def _touches(override: str, location: Sequence[int | str]) -> bool:
    """Whether an override gives the value at a location, or one below or above it."""
    given = override.partition("=")[0].split(".")
    return all(str(part) == key for part, key in zip(location, given, strict=False))


def fault_lines(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, tuple[int | str, ...]]]:
    """Each fault in a line, and where it is."""
    lines = []
    for fault in error.errors():
        key = ".".join(f"{part:.100}" if isinstance(part, str) else str(part) for part in fault["loc"]) or "(the whole)"
        if fault["type"] == "extra_forbidden":
            near = nearest_key(kind, fault["loc"])
            line = f"  {key}: unknown key" + (f"; did you mean {near}?" if near else "")
        elif fault["type"] == "missing":
            line = f"  {key}: missing"
        else:
            message = fault["msg"].removeprefix("Value error, ")
            found = "" if fault["type"] == "value_error" else f"; found {fault['input']!r:.100}"
            line = f"  {key}: {message}{found}"
        lines.append((line, fault["loc"]))
    return lines


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
    if not path or is_there(path) or not is_there(f"{glob.escape(str(started_in))}/{path}"):
        return path
    return str(started_in / path)
