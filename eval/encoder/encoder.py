"""SigLIP towers to unit vectors, on a fixed grid of blocks.

A block has always the same number of rows, the last one padded, and belongs to one process: so any number of processes gives the same
bits, and so does any order (docs/numerics.md). A GPU gets larger blocks than a CPU, of pictures that come in the CPU's. Shape letters:
N rows, B rows of a block, L tokens, D width of the embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Protocol

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
_DEVICE_BLOCKS = 8
"""Blocks of a CPU that are one of a GPU: 256 pictures, or 1,024 captions, fill it."""
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


Tower = Literal["image", "text"]


def block_of(model: torch.nn.Module, tower: Tower) -> int:
    """Rows of a block of a tower where a model lies: IMAGE_BLOCK or TEXT_BLOCK on a CPU."""
    cpu_block = IMAGE_BLOCK if tower == "image" else TEXT_BLOCK
    return cpu_block if device_of(model).type == "cpu" else cpu_block * _DEVICE_BLOCKS


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model lies."""
    return next(model.parameters()).device


def embed_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: ImageSource,
    *,
    execution: Execution = ONE_PROCESS,
    block: int | None = None,
    names: Sequence[str] = (),
    remedy: str | None = IMAGE_REMEDY,
) -> np.ndarray:
    """Unit embeddings of every image of a split, float32 of shape (images, D), the same on every process.

    Args:
        execution: its device is not used: the model runs where it is, in the execution's precision.
        block: rows of a block; None: as `block_of` says.
        names: of the images, for messages; without, they are called by their index.
        remedy: what a person can do about an image that cannot be decoded, for the error; None: no error, it gets a row of zeros.

    Raises:
        UserError: an image cannot be decoded (in evaluation nothing is left out).
        NotFinite: an embedding is not finite.
    """
    own: list[np.ndarray] = []
    block = block or block_of(model, "image")
    stream_images(model, inputs, dataset, own.append, execution=execution, block=block, names=names, remedy=remedy)
    return np.concatenate(execution.processes.gather_blocks(own, num_blocks(dataset.num_images, block)))


def embed_captions(
    model: SiglipModel, inputs: SiglipInputs, captions: Sequence[str], *, execution: Execution = ONE_PROCESS, block: int | None = None
) -> np.ndarray:
    """Unit embeddings of captions, float32 of shape (captions, D), the same on every process.

    Raises:
        NotFinite: an embedding is not finite.
    """
    own: list[np.ndarray] = []
    block = block or block_of(model, "text")
    stream_captions(model, inputs, captions, own.append, execution=execution, block=block)
    return np.concatenate(execution.processes.gather_blocks(own, num_blocks(len(captions), block)))


def stream_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: ImageSource,
    sink: Sink,
    *,
    execution: Execution = ONE_PROCESS,
    block: int | None = None,
    names: Sequence[str] = (),
    remedy: str | None = IMAGE_REMEDY,
) -> None:
    """Embed this process's blocks of images and give each to the sink as it comes; arguments and errors as :func:`embed_images`."""
    device = device_of(model)
    block = block or block_of(model, "image")
    pieces = _PicturePieces(dataset, inputs.picture_bytes, block, execution, remedy)
    loaded = block_loader(pieces, num_workers=execution.num_workers, item_bytes=pieces.size * pieces.blank.nbytes)
    rows = _joined(loaded, pieces, inputs.picture_bytes, device)
    _stream(model, image_features, rows, dataset.num_images, block, sink, names, execution)


def stream_captions(
    model: SiglipModel,
    inputs: SiglipInputs,
    captions: Sequence[str],
    sink: Sink,
    *,
    execution: Execution = ONE_PROCESS,
    block: int | None = None,
) -> None:
    """Embed this process's blocks of captions and give each to the sink as it comes; arguments and errors as :func:`embed_captions`."""
    block = block or block_of(model, "text")
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
    device, processes = device_of(model), execution.processes
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
    with torch.no_grad(), execution.autocast(device), execution.rounds(num_blocks(num_rows, block)) as advance:
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
    device, vision = device_of(model), model.config.vision_config
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


def _joined(
    pieces: Iterator["tuple[torch.Tensor, torch.Tensor] | str"], source: "_PicturePieces", pictures: PictureBytes, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None] | str]:
    """Pixel values of the blocks that pieces make up, where the model is, and which pictures of each are empty; or why there are none."""
    for count in source.pieces_of_blocks:
        parts = []
        for piece in islice(pieces, count):
            if isinstance(piece, str):
                yield piece
                return
            parts.append((sent(piece[0], device), piece[1]))
        values = pictures.values(torch.cat([bytes_b for bytes_b, _ in parts]) if count > 1 else parts[0][0])
        empty = torch.cat([empty_b for _, empty_b in parts])
        yield _pad(values, source.block), torch.cat([empty, empty.new_zeros(source.block - len(empty))])


class _PicturePieces(Dataset):  # type: ignore[type-arg]
    """The pictures of the blocks one process encodes, in pieces of at most IMAGE_BLOCK, and which of each are empty; decoding happens in
    the loader's workers, which send a piece at a time: a GPU's block would not fit into the shared memory of most containers.

    Attributes:
        block, size: rows of a block, and of a piece.
        pieces_of_blocks: how many pieces each block has; one that lies beyond the last picture is left out.
        blank: what is in the place of a picture that does not decode.
    """

    def __init__(self, dataset: ImageSource, pictures: PictureBytes, block: int, execution: Execution, remedy: str | None) -> None:
        """remedy: see :func:`stream_images`."""
        self._dataset, self._read, self._remedy = dataset, pictures.reader(dataset, execution.pixels), remedy
        self.block, self.size = block, block if block % IMAGE_BLOCK else IMAGE_BLOCK
        self.blank = torch.zeros_like(pictures.read(Image.new("RGB", (8, 8))))
        starts = [number * block for number in execution.processes.share_of(num_blocks(dataset.num_images, block))]
        of_blocks = [range(start, min(start + block, dataset.num_images), self.size) for start in starts]
        self.pieces_of_blocks, self._starts = [len(part) for part in of_blocks], [start for part in of_blocks for start in part]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor] | str:
        start = self._starts[item]
        images = range(start, min(start + self.size, self._dataset.num_images))
        pictures, faults, empty = [], [], torch.zeros(self.size, dtype=torch.bool)
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
        return _pad(torch.stack(pictures), self.size), empty
