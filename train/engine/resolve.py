"""A run's configuration with every size that follows from the data, which are then read first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from eval.dataset.different_texts import Gallery
from eval.errors import UserError

if TYPE_CHECKING:
    from eval.processes import Processes
    from train.config.run import RunConfig
    from train.data.splits import Splits

ConfigType = TypeVar("ConfigType", bound="RunConfig")


def resolve(
    config: ConfigType,
    processes: Processes,
    load: Callable[[ConfigType], Splits],
    check: Callable[[ConfigType, Splits], None],
) -> tuple[ConfigType, Splits | None]:
    """(the configuration with all sizes, the splits where they had to be read for it). Call on every process.

    Args:
        load: reads the data.
        check: refuses sizes that the splits do not suffice for; `load` does so itself where they are known.

    Raises:
        UserError: data or configuration cannot be used, or the batch does not divide among the processes.
    """
    splits = None
    if config.is_open:
        splits = processes.together(lambda: load(config))
        config = processes.together(lambda: resolved(config, splits))
        processes.together(lambda: check(config, splits))
    processes.together(lambda: check_share(config, processes))
    return config, splits


def resolved(config: ConfigType, splits: Splits) -> ConfigType:
    """An open configuration with the sizes that follow from these splits.

    Raises:
        UserError: what is asked for does not go with them.
    """
    gallery: Gallery = getattr(getattr(config, "evaluation", None), "gallery", "every")
    found: ConfigType = config.resolved(splits.sizes(gallery), splits.made if config.data.split is None else None)
    return found


def check_share(config: RunConfig, processes: Processes) -> None:
    """Refuse a batch that does not divide among the processes.

    Raises:
        UserError: it does not.
    """
    size, found = config.train.batch_size, processes.world_size
    if size % found:
        raise UserError(f"train.batch_size {size} does not divide among {found} processes; take a multiple of {found}")
