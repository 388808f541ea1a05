"""What messages call the settings that a manifest is read by: keys of a configuration, or a command's options where it says so."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

KEYS = {
    "source": "data.source",
    "image_root": "data.image_root",
    "skip_missing": "data.skip_missing=true",
    "choices_root": "the folder of the choice set",
    "columns": "data.columns",
    "column": "data.columns.{ours}={theirs}",
    "splits": "data.train_split, data.val_split and data.test_split",
    "no_split": "null",
    "without_splits": "Set {splits} to null to take all rows",
    "num_workers": "data.num_workers",
}
"""Setting -> how a configuration names it."""
OPTIONS = {
    "source": "--data",
    "image_root": "--image-root",
    "skip_missing": "--skip-missing",
    "choices_root": "--image-root",
    "columns": "--column",
    "column": "--column {ours}={theirs}",
    "splits": "--split",
    "no_split": "leave it out",
    "without_splits": "Leave --split out to take all rows",
    "num_workers": "--num-workers",
}
"""Setting -> the option of a command."""
_IN_FORCE: ContextVar[Mapping[str, str]] = ContextVar("names", default=KEYS)


@contextmanager
def calling(names: Mapping[str, str]) -> Iterator[None]:
    """Let messages in here name settings so."""
    token = _IN_FORCE.set(names)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def called(setting: str) -> str:
    """What the person calls a setting."""
    return _IN_FORCE.get()[setting]


def column_called(ours: str, theirs: str) -> str:
    """What the person writes to give a column its name in the manifest."""
    return called("column").format(ours=ours, theirs=theirs)
