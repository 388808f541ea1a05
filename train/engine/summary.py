"""New."""

from collections.abc import Callable, Sequence
from typing import Protocol

from tqdm import tqdm

from eval.dataset.leakage import Leakage
from eval.dataset.retrieval_set import RetrievalSet
from eval.processes import Processes


class HasData(Protocol):
    """A job of any kind, as far as its data goes."""

    train_set: RetrievalSet
    val_set: RetrievalSet | None
    test_set: RetrievalSet | None
    unused_splits: dict[str, int]


def speaker(processes: Processes) -> Callable[[str], None]:
    """What prints a line on the main process, beside the progress bar."""

    def say(text: str) -> None:
        if processes.is_main:
            tqdm.write(text)

    return say


def data_line(job: HasData) -> str:
    """What there is to train on, to evaluate on, and what no split of the run uses."""
    return (
        f"data      {job.train_set.num_images:,} images with {job.train_set.num_captions:,} captions to train on"
        + "".join(f"; {split.split}: {split.num_images:,} / {split.num_captions:,}" for split in (job.val_set, job.test_set) if split)
        + "".join(f"; not used: split {name!r}, {number:,} image(s)" for name, number in sorted(job.unused_splits.items()))
    )


def leakage_lines(leakages: Sequence[Leakage]) -> list[str]:
    """What the splits share, said before the first step."""
    return [f"leakage   {leak}" for leak in leakages if leak.num_shared_images or leak.num_shared_captions or leak.num_shared_groups_images]
