"""Sizes that follow from the data where a configuration leaves them out: batch, steps, what is due at shares of the run, top_k.

They are filled into the keys and values of a configuration before these are checked, so that a checked configuration has them all.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

LEAST_BATCH, MOST_BATCH = 16, 256
BATCH_SHARE = 10
"""A batch is at most one in so many of the images: a loss that saw them all at once would have little left to draw."""
MOST_EPOCHS, IMAGES_SEEN = 10, 512_000
"""2,000 steps of 256 images, but no image more than ten times."""
EVERY, MINE_EVERY = 0.1, 0.2
"""Of the run: an evaluation and a checkpoint every tenth; mining every fifth, and none in the first."""
DEFAULT_TOP_K = {"rerank": 32, "evaluation": 16}
"""By section; `evaluation` has it in a reranker's tuning alone, which is known by its key `miner`."""


@dataclass(frozen=True)
class DataSizes:
    """What sizes follow from.

    Attributes:
        num_images: of the train split.
        gallery: the fewest images or captions of a split that is reranked.
    """

    num_images: int
    gallery: int


UNKNOWN = DataSizes(10**7, 10**7)
"""In place of data not read yet; so large that nothing is refused for its size."""


SHARE = "a share of train.max_steps"


@dataclass(frozen=True)
class FromData:
    """Marks a key that may be left out, or null.

    Attributes:
        default: what it is then, in words.
        takes_share: whether it may be a share of max_steps, below 1, in place of a number of steps.
    """

    default: str
    takes_share: bool = False

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The number, null, or a share."""
        number = handler(schema)
        share = [{"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "description": SHARE}] if self.takes_share else []
        return {"anyOf": [number, *share, {"type": "null"}], "default": None}


def batch_size_for(num_images: int) -> int:
    """Images of a batch: a power of 2, at most a tenth of the images and 256; never under 16 where there are 16.

    >>> [batch_size_for(count) for count in (80, 800, 6000)]
    [16, 64, 256]
    """
    size = MOST_BATCH
    while size > LEAST_BATCH and size * BATCH_SHARE > num_images:
        size //= 2
    return min(size, max(num_images, 2))


def epochs_for(num_images: int) -> int:
    """Passes over the images: as many as make 512,000 images, at least 1 and at most 10."""
    return min(MOST_EPOCHS, max(1, round(IMAGES_SEEN / num_images)))


def fill_sizes(given: Mapping[str, Any], sizes: DataSizes) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the keys and values with all sizes, those filled in, "train.max_steps", which were not there or were a share or epochs).

    What is wrong is left as it is, for the check.
    """
    record, filled = copy.deepcopy(dict(given)), dict[str, Any]()
    train = record.get("train")
    if not isinstance(train, dict):
        return record, {}
    if train.get("batch_size") is None:
        filled["train.batch_size"] = train["batch_size"] = batch_size_for(sizes.num_images)
    _fill_max_steps(train, sizes, filled)
    shares: dict[str, float | None] = {"train.eval_every_steps": EVERY, "train.checkpoint_every_steps": EVERY, "train.warmup_steps": None}
    mining = record.get("mining")
    if isinstance(mining, dict):
        if mining.get("mine_every_epochs") is None:
            shares["mining.start_step"] = MINE_EVERY if mining.get("mine_every_steps") is None else None
            shares["mining.mine_every_steps"] = MINE_EVERY
        else:
            shares["mining.start_step"] = None
    for key, share in shares.items():
        _fill_share(record, key, share, train["max_steps"], filled)
    if "miner" in record:
        record.setdefault("evaluation", {})
    for name, most in DEFAULT_TOP_K.items():
        section = record.get(name)
        if isinstance(section, dict) and section.get("top_k") is None and (name == "rerank" or "miner" in record):
            filled[f"{name}.top_k"] = section["top_k"] = max(2, min(most, sizes.gallery))
    return record, filled


def _fill_max_steps(train: dict[str, Any], sizes: DataSizes, filled: dict[str, Any]) -> None:
    epochs, batch_size = train.get("epochs"), train["batch_size"]
    if train.get("max_steps") is not None:
        return
    num_epochs: float = epochs_for(sizes.num_images)
    if epochs is None or (_is_number(epochs) and epochs > 0):
        train.pop("epochs", None)
        num_epochs = epochs or num_epochs
    batches = max(1, int(sizes.num_images // batch_size)) if _is_number(batch_size) and batch_size >= 1 else 1
    filled["train.max_steps"] = train["max_steps"] = max(1, round(num_epochs * batches))


def _fill_share(record: dict[str, Any], key: str, default: float | None, max_steps: Any, filled: dict[str, Any]) -> None:
    """Put the number of steps in the place of a share, or of what is not there."""
    name, last = key.split(".")
    section = record[name]
    share = default if section.get(last) is None else section[last]
    if not _is_number(share) or not 0 < share < 1 or not _is_number(max_steps):
        return
    filled[key] = section[last] = max(1, round(share * max_steps))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

