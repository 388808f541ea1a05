"""The relative paths in a run's configuration, read from another folder than the run was started in."""

import glob
from pathlib import Path
from typing import Any, TypeVar

from train.config.run import RunConfig

ConfigType = TypeVar("ConfigType", bound=RunConfig)
_PATH_KEYS = ("base", "source", "image_root", "truth")


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
    return _found(value, started_in) if key in _PATH_KEYS else value


def _found(path: str, started_in: Path) -> str:
    if not path or glob.glob(path) or not glob.glob(f"{glob.escape(str(started_in))}/{path}"):
        return path
    return str(started_in / path)
