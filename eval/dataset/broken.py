"""Pictures that do not decode, found before an evaluation, and left out of it where that is asked (data.skip_broken, --skip-broken).

Every picture of the split is decoded once more for this: without it the captions of a broken one would stay in the gallery.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import hand_up
from eval.dataset.retrieval_set import load_split
from eval.encoder.encoder import ImageSource
from eval.encoder.loader import block_loader
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.manifest.manifest import Manifest
from eval.manifest.skipped import Skipped
from eval.progress import bar


class _Faults(Dataset):  # type: ignore[type-arg]
    """Why each picture of this process's share does not decode; empty where it does."""

    def __init__(self, read: Callable[[int], Any], images: range) -> None:
        self._read, self._images = read, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: int) -> str:
        try:
            self._read(self._images[item])
        except ImageError as error:
            return str(error)
        return ""


def find_broken(
    dataset: ImageSource, label: str, execution: Execution = ONE_PROCESS, read: Callable[[int], Any] | None = None
) -> dict[int, str]:
    """Why each image that does not decode does not, by index in order; the same on every process. Decodes every picture.

    Args:
        read: reads an image, or raises its ImageError; None: the data set's own `load_image`.
        label: names the images, for the progress bar.
        execution: its `on_progress` is called with each picture.
    """
    own = execution.processes.share_of(dataset.num_images)
    found: dict[int, str] = {}
    shows = os.environ.get("RANK", "0") == "0"
    shown = bar(len(own), f"decoding {label}", "picture", show=shows, leave=False)
    with shown as progress, execution.rounds(dataset.num_images) as advance:
        faults = block_loader(_Faults(read or dataset.load_image, own), num_workers=execution.num_workers)
        for image, fault in zip(own, faults, strict=True):
            if fault:
                found[image] = fault
            progress.update(1)
            advance(1)
    hand_up(execution.processes)
    told = np.frombuffer(json.dumps(list(found.items())).encode(), dtype=np.uint8)
    parts = [json.loads(part.tobytes()) for part in execution.processes.gather(told)]
    return dict(sorted((int(image), str(fault)) for part in parts for image, fault in part))


def without_broken(manifest: Manifest, splits: Sequence[str | None], execution: Execution = ONE_PROCESS) -> Manifest:
    """The manifest without the images of some of its splits that do not decode, which are among its `skipped`; call on every process.

    Raises:
        UserError: on every process: not one picture of a split decodes.
    """
    skipped, images = list[Skipped](), manifest.images
    for split in splits:
        dataset = load_split(manifest, split)
        broken = find_broken(dataset, split or manifest.source, execution)
        if len(broken) == dataset.num_images:
            where = f"{manifest.source} (split {split!r})"
            raise UserError(f"{where}: not one of its {len(broken)} pictures decodes, e.g. {broken[0]}. Give other pictures")
        skipped += [Skipped(dataset.image_place(image), dataset.image_ids[image], fault, split) for image, fault in broken.items()]
        gone = images.indices_of(split)[np.array(list(broken), dtype=np.int64)]
        images = images.take(np.setdiff1d(np.arange(len(images)), gone))
    return replace(manifest, images=images, skipped=[*manifest.skipped, *skipped])
