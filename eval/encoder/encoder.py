"""SigLIP towers to unit vectors, on a fixed grid of blocks.

A block has always the same number of rows, the last one padded, and belongs to one process: so any number of processes gives the same
bits, and so does any order (docs/numerics.md). Shape letters: N rows, B rows of a block, L tokens, D width of the embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import SiglipModel

from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import hand_up
from eval.encoder.inputs import PictureBytes, SiglipInputs, image_features, text_features
from eval.encoder.loader import block_loader
from eval.errors import NotFinite
from eval.execution import ONE_PROCESS, Execution
from eval.processes import brought, sent
from eval.sharded import is_sharded
from eval.signals import next_item

IMAGE_BLOCK = 32
TEXT_BLOCK = 128
_MOST_NAMED = 5
IMAGE_REMEDY = (
    "Every picture must decode in evaluation: mend it, take its rows out, or have such pictures left out and counted with --skip-broken "
    "(data.skip_broken=true in a job). train's --check-images names them all"
)


class ImageSource(Protocol):
    """Images to embed: an `eval.dataset.retrieval_set.RetrievalSet` or an `eval.choices.choice_set.ChoiceSet`, for example."""

    @property
    def num_images(self) -> int:
        """Number of images."""

    def load_image(self, image: int, /) -> Image.Image:
        """One image, RGB."""


Features = Callable[[SiglipModel, torch.Tensor], torch.Tensor]
"""A tower: `image_features` or `text_features`."""
Sink = Callable[[np.ndarray], Any]
"""Receives the embeddings of this process's blocks, one block after another; float32 of shape (rows, D)."""


def embed_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: ImageSource,
    *,
    execution: Execution = ONE_PROCESS,
    block: int = IMAGE_BLOCK,
    names: Sequence[str] = (),
    remedy: str | None = IMAGE_REMEDY,
) -> np.ndarray:
    """Unit embeddings of every image of a split, float32 of shape (images, D), the same on every process.

    Args:
        execution: its device is not used: the model runs where it is.
        names: of the images, for messages; without, they are called by their index.
        remedy: what a person can do about an image that cannot be decoded, for the error; None: no error, it gets a row of zeros.

    Raises:
        UserError: an image cannot be decoded (in evaluation nothing is left out).
        NotFinite: an embedding is not finite.
    """
    own: list[np.ndarray] = []
    stream_images(model, inputs, dataset, own.append, execution=execution, block=block, names=names, remedy=remedy)
    return np.concatenate(execution.processes.gather_blocks(own, num_blocks(dataset.num_images, block)))


def embed_captions(
    model: SiglipModel, inputs: SiglipInputs, captions: Sequence[str], *, execution: Execution = ONE_PROCESS, block: int = TEXT_BLOCK
) -> np.ndarray:
    """Unit embeddings of captions, float32 of shape (captions, D), the same on every process.

    Raises:
        NotFinite: an embedding is not finite.
    """
    own: list[np.ndarray] = []
    stream_captions(model, inputs, captions, own.append, execution=execution, block=block)
    return np.concatenate(execution.processes.gather_blocks(own, num_blocks(len(captions), block)))


def stream_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: ImageSource,
    sink: Sink,
    *,
    execution: Execution = ONE_PROCESS,
    block: int = IMAGE_BLOCK,
    names: Sequence[str] = (),
    remedy: str | None = IMAGE_REMEDY,
) -> None:
    """Embed this process's blocks of images and give each to the sink as it comes; arguments and errors as :func:`embed_images`."""
    device, pictures = next(model.parameters()).device, inputs.picture_bytes
    blocks = _PictureBlocks(dataset, pictures, block, execution, remedy)
    loaded = block_loader(blocks, num_workers=execution.num_workers, item_bytes=block * blocks.blank.nbytes)
    rows = (found if isinstance(found, str) else (pictures.values(sent(found[0], device)), found[1]) for found in loaded)
    _stream(model, image_features, rows, dataset.num_images, block, sink, names, execution)


def stream_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    captions: Sequence[str],
    sink: Sink,
    *,
    execution: Execution = ONE_PROCESS,
    block: int = TEXT_BLOCK,
) -> None:
    """Embed this process's blocks of captions and give each to the sink as it comes; arguments and errors as :func:`embed_captions`."""
    starts = [number * block for number in execution.processes.share_of(num_blocks(len(captions), block))]
    blocks = (_pad(inputs.token_ids(captions[start : start + block]), block) for start in starts)
    _stream(model, text_features, ((rows, None) for rows in blocks), len(captions), block, sink, captions, execution)


def _stream(
    model: SiglipModel,
    features: Features,
    blocks: Iterator[tuple[torch.Tensor, torch.Tensor | None] | str],
    num_rows: int,
    block: int,
    sink: Sink,
    names: Sequence[str],
    execution: Execution,
) -> None:
    """Run one tower over this process's blocks (or why there is none), each with what of it is empty; what fails on one process is raised
    on all."""
    device, processes = next(model.parameters()).device, execution.processes
    was_training = model.training
    model.eval()
    found: Any = ""
    bad: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]  # indices of rows that are not finite
    num_passes = 0
    under_way: list[tuple[int, Callable[[], torch.Tensor], torch.Tensor | None]] = []
    # A device computes a block while the host takes the one before; sharded, each forward pass waits for the other processes.
    num_ahead = 0 if device.type == "cpu" or is_sharded(model) else 1

    def finish(number: int, vectors: Callable[[], torch.Tensor], empty: torch.Tensor | None) -> None:
        count = min(block, num_rows - number * block)
        values = vectors() if empty is None else vectors().masked_fill(empty[:, None], 0.0)
        vectors_ND = values[:count].numpy()
        vectors_ND = vectors_ND if device.type == "cpu" else vectors_ND.copy()  # page-locked memory is not kept
        bad.append(number * block + np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1)))
        sink(vectors_ND)
        advance(count)

    # Not inference_mode: sharded weights that were gathered in it cannot be trained afterwards.
    with torch.no_grad(), execution.rounds(num_blocks(num_rows, block)) as advance:
        for number in processes.share_of(num_blocks(num_rows, block)):
            found = next_item(blocks)
            if found is None or isinstance(found, str):  # told to stop while it waited, or a fault
                break
            rows, empty = found
            under_way.append((number, brought(features(model, sent(rows, device))), empty))
            num_passes += 1
            if len(under_way) > num_ahead:
                finish(*under_way.pop(0))
        for one in under_way if isinstance(found, tuple) else ():
            finish(*one)
        if is_sharded(model):
            for _ in range(num_blocks(num_blocks(num_rows, block), processes.world_size) - num_passes):
                _run_idle(model, features)
                advance(0)
    model.train(was_training)
    if found is None:  # and nothing in the rounds took heed
        raise KeyboardInterrupt
    processes.raise_together(found if isinstance(found, str) else "")
    hand_up(processes)
    bad_N = np.concatenate(processes.gather(np.concatenate(bad)))
    if len(bad_N):
        first = [names[int(row)][:80] if names else int(row) for row in np.sort(bad_N)[:_MOST_NAMED]]
        noun = "image" if features is image_features else "caption"
        raise NotFinite(
            f"{len(bad_N)} {noun} embedding(s) of {num_rows} are not finite, e.g. of {first}: the weights or the precision are broken. "
            "Take another checkpoint, or fetch or train this one again"
        )


def _run_idle(model: SiglipModel, features: Features) -> None:
    """Run a sharded tower on a blank row: its forward pass is collective, and other processes have more blocks."""
    device, vision = next(model.parameters()).device, model.config.vision_config
    blank = torch.zeros(1, vision.num_channels, vision.image_size, vision.image_size)
    if features is text_features:
        blank = torch.zeros(1, 1, dtype=torch.int64)
    features(model, blank.to(device))


def num_blocks(num_rows: int, block: int) -> int:
    """Blocks that hold so many rows, the last one perhaps not full."""
    return -(-num_rows // block)


def _pad(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Fill the last block by repeating its first row: the towers process each row by itself, so the filling does not matter."""
    missing = block - len(rows)
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing else rows


class _PictureBlocks(Dataset):  # type: ignore[type-arg]
    """The blocks of pictures one process encodes, and which of each are empty; decoding happens in the loader's workers."""

    def __init__(self, dataset: ImageSource, pictures: PictureBytes, block: int, execution: Execution, remedy: str | None) -> None:
        """remedy: see :func:`stream_images`."""
        self._dataset, self._read, self._block, self._remedy = dataset, pictures.reader(dataset, execution.pixels), block, remedy
        self.blank = torch.zeros_like(pictures.read(Image.new("RGB", (8, 8))))
        self._numbers = list(execution.processes.share_of(num_blocks(dataset.num_images, block)))

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor] | str:
        start = self._numbers[item] * self._block
        images = range(start, min(start + self._block, self._dataset.num_images))
        pictures, faults, empty = [], [], torch.zeros(self._block, dtype=torch.bool)
        for place, image in enumerate(images):
            try:
                pictures.append(self._read(image))
            except ImageError as error:
                pictures.append(self.blank)
                empty[place] = True
                faults += [str(error)] if self._remedy is not None else []
        if faults:  # an error raised in a worker would arrive wrapped in a traceback
            more = f"; and {len(faults) - _MOST_NAMED} more near them" if len(faults) > _MOST_NAMED else ""
            return f"{'; '.join(faults[:_MOST_NAMED])}{more}. {self._remedy}"
        return _pad(torch.stack(pictures), self._block), empty
