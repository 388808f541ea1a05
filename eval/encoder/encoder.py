"""SigLIP towers to unit vectors, on a fixed grid of blocks.

A block has always the same number of rows, the last one padded, and belongs to one process: so any number of processes gives the same
bits, and so does any order (docs/numerics.md). Shape letters: N rows, B rows of a block, L tokens, D width of the embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from transformers import SiglipModel

from eval.dataset.images import ImageError
from eval.encoder.inputs import SiglipInputs
from eval.encoder.loader import pictures_loader
from eval.errors import UserError
from eval.processes import Processes
from eval.sharded import is_sharded

IMAGE_BLOCK = 32
TEXT_BLOCK = 128
_MOST_NAMED = 5
_PICTURE_REMEDY = "Every picture must decode in evaluation: mend it, or take its rows out. train's --check-images names them all"


class Pictures(Protocol):
    """Pictures to embed; `eval.dataset.retrieval_set.RetrievalSet` and `eval.choices.choice_set.ChoiceSet` hold such."""

    @property
    def num_images(self) -> int:
        """Number of pictures."""

    def load_image(self, image: int, /) -> Image.Image:
        """One picture, RGB."""


def image_features(model: SiglipModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit image embeddings, float32 of shape (N, D), from pixel values of shape (N, 3, H, W). Differentiable."""
    return normalize(_at_least_float32(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def text_features(model: SiglipModel, token_ids_NL: torch.Tensor) -> torch.Tensor:
    """Unit text embeddings, float32 of shape (N, D), from padded token ids. Differentiable. No mask: see eval/encoder/inputs.py."""
    return normalize(_at_least_float32(model.text_model(input_ids=token_ids_NL).pooler_output), dim=-1)


def _at_least_float32(features: torch.Tensor) -> torch.Tensor:
    """Features widened from half precision: a bf16 product near 10 has steps of 0.06 (docs/numerics.md). float64 stays."""
    return features if features.dtype == torch.float64 else features.float()


Sink = Callable[[np.ndarray], Any]
"""What takes the unit vectors of this process's blocks, one block after another in the order of its share; float32 of shape (rows, D)."""


def embed_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: Pictures,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    block: int = IMAGE_BLOCK,
    allow_undecodable: bool = False,
    names: Sequence[str] = (),
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """Unit embeddings of every image of a split, float32 of shape (images, D), the same on every process.

    Args:
        allow_undecodable: a picture that cannot be decoded gets a row of zeros (for mining) instead of an error.
        names: of the pictures, for messages; without, they are called by their index.

    Raises:
        UserError: a picture cannot be decoded (in evaluation nothing is left out), or an embedding is not finite.
    """
    own: list[np.ndarray] = []
    stream_images(
        model,
        inputs,
        dataset,
        own.append,
        processes=processes,
        num_workers=num_workers,
        block=block,
        allow_undecodable=allow_undecodable,
        names=names,
        on_progress=on_progress,
    )
    return np.concatenate(processes.gather_blocks(own, num_blocks(dataset.num_images, block)))


def embed_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    captions: Sequence[str],
    *,
    processes: Processes = Processes(),
    block: int = TEXT_BLOCK,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
    """Unit embeddings of captions, float32 of shape (captions, D), the same on every process.

    Raises:
        UserError: an embedding is not finite.
    """
    own: list[np.ndarray] = []
    stream_captions(model, inputs, captions, own.append, processes=processes, block=block, on_progress=on_progress)
    return np.concatenate(processes.gather_blocks(own, num_blocks(len(captions), block)))


def stream_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: Pictures,
    sink: Sink,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    block: int = IMAGE_BLOCK,
    allow_undecodable: bool = False,
    names: Sequence[str] = (),
    remedy: str = _PICTURE_REMEDY,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Embed this process's blocks of images and give each to the sink as it comes; arguments and errors as :func:`embed_images`.

    `remedy` is what a person can do about a picture that cannot be decoded.
    """
    pictures = _PixelBlocks(dataset, inputs, block, processes, allow_undecodable)
    loader = pictures_loader(pictures, num_workers=num_workers)
    _stream(model, iter(loader), dataset.num_images, block, processes, image_features, sink, on_progress, "image", names, remedy)


def stream_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    captions: Sequence[str],
    sink: Sink,
    *,
    processes: Processes = Processes(),
    block: int = TEXT_BLOCK,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> None:
    """Embed this process's blocks of captions and give each to the sink as it comes; arguments and errors as :func:`embed_captions`."""
    starts = [number * block for number in processes.share_of(num_blocks(len(captions), block))]
    blocks = (_pad(inputs.token_ids(captions[start : start + block]), block) for start in starts)
    _stream(model, blocks, len(captions), block, processes, text_features, sink, on_progress, "caption", captions)


def _stream(
    model: SiglipModel,
    blocks: Iterator[torch.Tensor | str],
    num_rows: int,
    block: int,
    processes: Processes,
    features: Callable[[SiglipModel, torch.Tensor], torch.Tensor],
    sink: Sink,
    on_progress: Callable[[int], Any],
    noun: str,
    names: Sequence[str],
    remedy: str = "",
) -> None:
    """Run one tower over this process's blocks; what fails on one process is raised on all."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    failure = ""
    bad: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]  # indices of rows that are not finite
    num_passes = 0
    with torch.no_grad():  # not inference_mode: sharded weights that were gathered in it cannot be trained afterwards
        for number, rows in zip(processes.share_of(num_blocks(num_rows, block)), blocks, strict=True):
            if isinstance(rows, str):  # the message of a picture that cannot be decoded
                failure = rows
                break
            count = min(block, num_rows - number * block)
            empty = rows.reshape(len(rows), -1).isnan().all(dim=1) if rows.is_floating_point() else torch.zeros(len(rows), dtype=torch.bool)
            vectors = features(
                model, rows.nan_to_num_(0.0).to(device, non_blocking=True) if bool(empty.any()) else rows.to(device, non_blocking=True)
            )
            num_passes += 1
            found = vectors.cpu().masked_fill(empty[:, None], 0.0)[:count].numpy()
            bad.append(number * block + np.flatnonzero(~np.isfinite(found).all(axis=1)))
            sink(found)
            on_progress(count)
        if is_sharded(model):
            _take_part(model, features, num_blocks(num_blocks(num_rows, block), processes.world_size) - num_passes)
    model.train(was_training)
    processes.raise_together(failure and f"{failure}. {remedy}")
    bad_N = np.concatenate(processes.gather(np.concatenate(bad)))
    if len(bad_N):
        first = [names[int(row)][:80] if names else int(row) for row in np.sort(bad_N)[:_MOST_NAMED]]
        raise UserError(
            f"{len(bad_N)} {noun} embedding(s) of {num_rows} are not finite, e.g. of {first}: the weights or the precision are broken. "
            "Take another checkpoint, or fetch or train this one again"
        )


def _take_part(model: SiglipModel, features: Callable[[SiglipModel, torch.Tensor], torch.Tensor], num_passes: int) -> None:
    """Run a tower of a sharded model over a blank row so many times, as often as the process with the most blocks runs it in all."""
    device, vision = next(model.parameters()).device, model.config.vision_config
    blank = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
    if features is text_features:
        blank = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(num_passes):
        features(model, blank.to(device))


def num_blocks(num_rows: int, block: int) -> int:
    """Blocks that hold so many rows, the last one perhaps not full."""
    return -(-num_rows // block)


def _pad(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Fill the last block by repeating its first row: the towers see every row for itself, so what it is filled with does not matter."""
    missing = block - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


class _PixelBlocks(Dataset):  # type: ignore[type-arg]
    """The blocks of pixel values one process encodes; decoding happens in the loader's workers."""

    def __init__(self, dataset: Pictures, inputs: SiglipInputs, block: int, processes: Processes, allow_undecodable: bool) -> None:
        self._dataset, self._inputs, self._block, self._allow = dataset, inputs, block, allow_undecodable
        self._numbers = list(processes.share_of(num_blocks(dataset.num_images, block)))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, item: int) -> torch.Tensor | str:
        start = self._numbers[item] * self._block
        images = range(start, min(start + self._block, self._dataset.num_images))
        pixels, faults = [], []
        for image in images:
            try:
                pixels.append(self._pixels(image))
            except ImageError as error:
                faults.append(str(error))
        if faults:  # raised in a worker they would arrive wrapped in a traceback; as a value they keep their words
            more = f"; and {len(faults) - _MOST_NAMED} more near them" if len(faults) > _MOST_NAMED else ""
            return "; ".join(faults[:_MOST_NAMED]) + more
        return _pad(torch.stack(pixels), self._block)

    def _pixels(self, image: int) -> torch.Tensor:
        try:
            return self._inputs.pixels(self._dataset.load_image(image))
        except ImageError:
            if not self._allow:
                raise
            return torch.full((3, self._inputs.image_size, self._inputs.image_size), torch.nan)
