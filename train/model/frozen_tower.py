"""Cached embeddings of a frozen tower: made once over the train split and stored in a file of the run.

The file's name is a hash of the tower's weights, the data and the input settings; it ends in the SHA-256 of its rows and is committed by a
rename, so a stale or damaged one is never read. The rows are those of eval/encoder/encoder.py: float32, without dropout, on its fixed grid
of blocks, so any number of processes makes the same bits, and a resumed run reads those it began with. Machines without a shared disk
each write their own file. Another run of the same tower and data finds the file in the machine's cache (eval/embed/cache.py).
Shape letters: N rows, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eval.atomic import replace_files, sweep
from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import num_noted
from eval.embed.cache import HashOf, bring_file, cache_file, image_key, is_plain, most_bytes, store_file, text_key
from eval.encoder.checkpoint import hash_weights
from eval.encoder.encoder import block_of, embed_captions, embed_images
from eval.errors import WriteError
from eval.execution import ONE_PROCESS, Execution
from eval.progress import say
from train.data.cached_embeddings import FrozenRows

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from eval.processes import Processes
    from train.config.job import JobConfig
    from train.config.model import Tower
    from train.data.caption_pool import CaptionPool
    from train.model.siglip import TunedModel

_DIGEST_BYTES = 32
_WINDOW_BLOCKS = 64
"""Blocks of each process that are embedded before their rows are written; bounds memory."""


def cached_towers(config: JobConfig) -> list[Tower]:
    """The towers that are frozen and whose inputs are the same in every epoch."""
    return [tower for tower in config.model.freeze if config.model.cache_frozen and not _changes(config, tower)]


def _changes(config: JobConfig, tower: Tower) -> bool:
    return tower == "image" and config.train.random_crop_min_area < 1


def frozen_lines(config: JobConfig) -> list[str]:
    """Lines to print about each frozen tower before the first step."""
    cached = cached_towers(config)
    lines = []
    for tower in config.model.freeze:
        if tower in cached:
            how = f"run once over the train split, its embeddings cached in {config.run_folder / 'frozen'}"
        elif _changes(config, tower):
            area = config.train.random_crop_min_area
            how = f"run at every step, as train.random_crop_min_area {area:g} changes images in every epoch; with 1 it runs once"
        else:
            how = "run at every step, as model.cache_frozen is false"
        lines.append(f"frozen    {tower} tower: {how}")
    return lines


class FrozenStore:
    """The files of a run's frozen towers.

    Attributes:
        folder: runs/NAME/frozen.
    """

    def __init__(self, folder: Path, tuned: TunedModel, pool: CaptionPool, processes: Processes) -> None:
        """pool: the images and captions of the split, and the additional captions."""
        self.folder, self._tuned, self._pool, self._processes = folder, tuned, pool, processes
        self._dataset, self._data = pool.dataset, [pool.data_sha256, pool.additional.sha256]
        # One process of each machine reads and writes for all of its machine; without a launcher each does, the same bytes.
        self._is_writer = os.environ.get("LOCAL_RANK", "0") == "0"

    def path(self, tower: Tower, hash_of: HashOf = hash_weights) -> Path:
        """The file of a tower's embeddings."""
        inputs, siglip = self._tuned.inputs, self._tuned.siglip
        block = block_of(siglip, tower)
        if tower == "image":
            weights, read = hash_of(siglip.vision_model), [inputs.image_processor.to_dict(), block]
        else:  # the tokenizer is identified by its token ids of some captions
            weights, read = hash_of(siglip.text_model), [inputs.token_ids(self._dataset.captions[:256]).tolist(), block]
        text = json.dumps([weights, self._data, inputs.contract, read], sort_keys=True, default=str)
        return self.folder / f"{tower}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.f32"

    def rows(self, tower: Tower, execution: Execution = ONE_PROCESS) -> FrozenRows:
        """The embeddings of a tower, made first where a machine has no whole file of them. Call on every process.

        Args:
            execution: its processes are those of the store.

        Raises:
            UserError: an embedding is not finite.
            WriteError: the file cannot be written.
        """
        hash_of, key = cache(hash_weights), None  # the weights stay meanwhile
        path = self.path(tower, hash_of)
        with self._processes.jointly():
            has_whole = not self._is_writer or self._has_whole(tower, path)
            if not has_whole and (key := self._cache_key(tower, execution, hash_of)) is not None and bring_file(key, path):
                has_whole = self._has_whole(tower, path)
                if not has_whole:
                    say(f"warning: {cache_file(key)} is damaged; the embeddings are made again", file=sys.stderr)
        noted = num_noted()
        if not self._processes.is_on_all(has_whole):
            with self._processes.jointly():
                self._make(tower, None if has_whole else path, replace(execution, processes=self._processes))
        present = path.is_file()
        self._processes.raise_together("" if present else f"{path}: not there on process {self._processes.rank} after it was written")
        rows = FrozenRows(np.memmap(path, dtype=np.float32, mode="r", shape=self._shape(tower)))
        is_quiet = self._processes.is_on_all(num_noted() == noted)  # else it is to be said again
        if key is not None and not has_whole and is_quiet and key == self._cache_key(tower, execution, hash_of) and not rows.unknown():
            store_file(key, path)
        return rows

    def is_cached(self, execution: Execution) -> bool:
        """Whether the machine's cache of embeddings is in use, has room for both towers, and is for towers such as these. Call on every
        process.

        Raises:
            UserError: the cache's bound is no number.
        """
        with self._processes.jointly():
            towers: tuple[Tower, Tower] = ("image", "text")
            num_bytes = 4 * sum(rows * width for rows, width in map(self._shape, towers))
            is_here = num_bytes <= most_bytes() and all(is_plain(self._tuned.siglip, tower) for tower in towers)
        return self._processes.is_on_all(is_here)

    def _cache_key(self, tower: Tower, execution: Execution, hash_of: HashOf) -> str | None:
        """The name of a tower's file in the machine's cache; None: it is not cached."""
        if not most_bytes():
            return None
        siglip, inputs = self._tuned.siglip, self._tuned.inputs
        if tower == "image":
            key = image_key(siglip, inputs, self._dataset, execution, hash_of)
        else:
            key = text_key(siglip, inputs, map(self._pool.text, range(len(self._pool))), execution, hash_of)
        return None if key is None else hashlib.sha256(f"frozen {key}".encode()).hexdigest()

    def _has_whole(self, tower: Tower, path: Path) -> bool:
        """Whether the file is there and whole, and no image that did not decode then does now."""
        return is_whole(path, self._shape(tower)) and not self._decodes_now(tower, path)

    def _decodes_now(self, tower: Tower, path: Path) -> bool:
        """Whether an image that did not decode when the file was made does now (a disk was missing then): the file is then made again."""
        if tower != "image":
            return False
        rows = FrozenRows(np.memmap(path, dtype=np.float32, mode="r", shape=self._shape(tower)))
        for image in rows.unknown():
            with suppress(ImageError):
                self._dataset.load_image(image)
                return True
        return False

    def _shape(self, tower: Tower) -> tuple[int, int]:
        """Rows and width of a tower's embeddings."""
        config = self._tuned.siglip.config
        if tower == "image":
            return self._dataset.num_images, int(config.vision_config.hidden_size)
        return len(self._pool), int(self._tuned.siglip.text_model.head.out_features)

    def _make(self, tower: Tower, path: Path | None, execution: Execution) -> None:
        """Embed on all processes, window by window, and write the file here if it is missing here."""
        windows = self._embed(tower, execution)
        fault: OSError | None = None
        if path is not None:
            try:
                self._write(path, tower, windows)
            except OSError as error:
                fault = error
        for _ in windows:  # what is not written here: the other processes need this process's part
            pass
        if fault is not None:
            raise WriteError(f"{path}: could not be written ({fault})") from fault

    def _write(self, path: Path, tower: Tower, windows: Iterator[np.ndarray]) -> None:
        """Write rows and their hash to a temporary file, and rename it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(f"{tower}-*.f32"):
            if stale != path:  # of other weights or data
                stale.unlink(missing_ok=True)
        sweep(self.folder)  # also of files of other weights or data; another process may be writing the same now
        replace_files({path: partial(_write_rows, windows)})

    def _embed(self, tower: Tower, execution: Execution) -> Iterator[np.ndarray]:
        """Embeddings in order, a window of whole blocks at a time; the same on every process."""
        num_rows = self._shape(tower)[0]
        model, inputs = self._tuned.siglip, self._tuned.inputs
        block = block_of(model, tower)
        step = block * _WINDOW_BLOCKS * self._processes.world_size
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            if tower == "image":
                window = ImageSubset(self._dataset, range(start, stop))
                yield embed_images(model, inputs, window, remedy=None, execution=execution)
            else:
                captions = [self._pool.text(caption) for caption in range(start, stop)]
                yield embed_captions(model, inputs, captions, execution=execution)


def _write_rows(windows: Iterator[np.ndarray], path: Path) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for vectors_ND in windows:
            digest.update(vectors_ND.data)
            file.write(vectors_ND.data)
        file.write(digest.digest())


@dataclass(frozen=True)
class ImageSubset:
    """Some images of a split, by index, as an `eval.encoder.encoder.ImageSource`."""

    dataset: RetrievalSet
    images: Sequence[int] | np.ndarray

    @property
    def num_images(self) -> int:
        """How many they are."""
        return len(self.images)

    def load_image(self, image: int, /) -> Image.Image:
        """One picture, RGB."""
        return self.dataset.load_image(int(self.images[image]))

    def picture_key(self, image: int, /) -> bytes | None:
        """What a cache knows it by."""
        return self.dataset.picture_key(int(self.images[image]))


def is_whole(path: Path, shape_ND: tuple[int, int]) -> bool:
    """Whether a file of embeddings is there, of this size, and ends in the SHA-256 of its rows."""
    size = 4 * shape_ND[0] * shape_ND[1]
    if not path.is_file() or path.stat().st_size != size + _DIGEST_BYTES:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left := size - file.tell():
            digest.update(file.read(min(left, 1 << 24)))
        return file.read() == digest.digest()
