"""What a study is asked for: the keys of STUDY.yaml, which are the options of the command; unknown keys refused."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from eval.files import at_home
from train.config.load import ConfigError, fault_lines, is_data, read_yaml
from train.study.systems import PRESETS, parse_systems

_MARKERS = {"config", "systems"}


def _texts(changes: Any) -> Any:
    """`key.path=value` texts of a mapping; a list as it is, and nothing for null."""
    if isinstance(changes, dict):
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]
    return [] if changes is None else changes


Changes = Annotated[list[str], BeforeValidator(_texts)]
"""Overrides of a configuration: a mapping, or a list of `key.path=value`."""


class StudyConfig(BaseModel):
    """One study."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    config: str
    """The configuration, or data set, that the systems have in common; where it is not there, from the folder of the study file."""
    overrides: Changes = []
    """What all systems change of it."""
    systems: dict[str, Changes] = {name: list(changes) for name, changes in PRESETS.items()}
    """What each system changes besides; the first is what the others are compared with."""
    seeds: Annotated[int, Field(ge=1)] = 8
    """Training runs of each system."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """Seeds count from it."""
    screen_seeds: Annotated[int, Field(ge=0)] = 0
    """Screen the systems before, with so many other seeds; 0: do not."""
    screen_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Steps of a screening run, a share of all."""
    survivors: Annotated[int, Field(ge=1)] = 2
    """Systems that go on after screening, besides the first."""
    equal_compute: bool = True
    """Compare a system that costs more with the first one at the same compute too."""


def read_study(asked: argparse.Namespace) -> StudyConfig:
    """What a command line asks for: its options come before the keys of the study file, if it names one, and those before the defaults.

    Raises:
        UserError: with every fault of the file, or of --system.
    """
    study = StudyConfig(config=asked.config)
    if not is_data(asked.config):
        record = read_yaml(Path(asked.config))
        if record.keys() & _MARKERS:
            study = _of_file(Path(asked.config), record)
    given = {key: value for key in StudyConfig.model_fields if key != "config" and (value := getattr(asked, key)) is not None}
    given |= {"overrides": [*study.overrides, *asked.overrides]}
    if asked.systems is not None:
        given["systems"] = parse_systems(asked.systems)
    return study.model_copy(update=given)


def _of_file(path: Path, record: dict[str, Any]) -> StudyConfig:
    try:
        study = StudyConfig.model_validate(at_home(record))
    except ValidationError as error:
        lines = "\n".join(line for line, _ in fault_lines(error, StudyConfig))
        raise ConfigError(f"{path}: {error.error_count()} fault(s) in the study\n{lines}") from None
    return study.model_copy(update={"config": _found(study.config, (Path(), path.parent))})


def _found(config: str, folders: Sequence[Path]) -> str:
    return next((str(folder / config) for folder in folders if (folder / config).exists()), config)
