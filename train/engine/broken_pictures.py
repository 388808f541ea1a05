"""Pictures that training replaces because they do not decode: each is told once, and listed where data.skip_broken asks for it."""

import json
from collections.abc import Sequence

import numpy as np

from eval.manifest.skipped import FILE as SKIPPED
from eval.manifest.skipped import Skipped, write_skipped
from eval.progress import say
from train.data.batches import Undecodable
from train.engine.run import Run


class BrokenPictures:
    """Those of a run, with the images of other splits that were left out."""

    def __init__(self, job: Run) -> None:
        self._job = job
        self._told: set[int] = set()
        self._listed: list[Skipped] = []

    def begin(self, *, is_new: bool) -> None:
        """Write skipped.jsonl, on the main process; a run that goes on keeps what training has added to it.

        Raises:
            OSError: it cannot be written.
        """
        if not self._job.processes.is_main:
            return
        goes_on = not is_new and self._job.config.data.skip_broken
        earlier = [] if not goes_on else [one for one in self._read() if one.is_broken and one.split == self._job.config.data.train_split]
        splits = self._job.splits
        self._listed = list(dict.fromkeys([*splits.skipped_rows, *splits.skipped])) + earlier
        write_skipped(self._job.folder / SKIPPED, self._listed)

    def tell(self, step: int, undecodable: Sequence[Undecodable]) -> None:
        """Name, and list, the pictures of a step that were not named yet; call on every process.

        Args:
            undecodable: of this process's share.
        """
        job = self._job
        found = job.processes.gather(np.frombuffer(json.dumps(undecodable).encode(), dtype=np.uint8))
        new: dict[int, str] = {}
        for image, message in (tuple(one) for part in found for one in json.loads(part.tobytes())):
            if image not in self._told:
                new.setdefault(image, message)
        self._told.update(new)
        if not job.processes.is_main or not new:
            return
        asked = job.config.data.skip_broken
        for message in new.values():
            what = "skipped (data.skip_broken)" if asked else "warning: another image of the split takes its place,"
            say(f"{what} in step {step} and wherever it comes: {message}")
        if asked:
            known = {one.image for one in self._listed if one.split == job.config.data.train_split}
            self._listed += [one for one in self._as_skipped(new) if one.image not in known]
            write_skipped(job.folder / SKIPPED, self._listed)

    def _as_skipped(self, found: dict[int, str]) -> list[Skipped]:
        dataset, split = self._job.train_set, self._job.config.data.train_split
        return [Skipped(dataset.image_place(image), dataset.image_ids[image], message, split) for image, message in found.items()]

    def _read(self) -> list[Skipped]:
        """What an earlier start listed; nothing where that cannot be read: it is written again as it is found."""
        try:
            lines = (self._job.folder / SKIPPED).read_text(encoding="utf-8").split("\n")
            return [Skipped(**json.loads(line)) for line in lines if line]
        except (OSError, ValueError, TypeError):
            return []
