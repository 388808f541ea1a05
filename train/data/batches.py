"""The batch of each step, a function of (seed, step): no state of the order is saved in a checkpoint, and a resume loses nothing.

The order of an epoch is a permutation of all images, and a batch is a slice of it, so no image is twice in a batch. Images that do not
fill a last batch are left out of that epoch. Shape letters: B images of the whole batch; b images, c captions, m mined captions and n
texts (captions, then mined ones) of this process; L tokens, D width; of the positives N rows of the mined table, C captions of the pool,
D doubtful pairs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet
from eval.encoder.inputs import PictureBytes, SiglipInputs
from eval.processes import Processes
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.caption_pool import CaptionPool
from train.data.crops import Crops
from train.data.mined_order import Order
from train.data.negatives import Negatives
from train.data.order import REPLACEMENT, chosen_captions, generator
from train.loss.positives import BatchPositives

if TYPE_CHECKING:
    from eval.dataset.pixel_cache import PixelStore

_MAX_REPLACEMENTS = 100


class Undecodable(NamedTuple):
    """An image of the train split that does not decode, and why."""

    image: int
    message: str


PART = 32
"""Places of the batch that a loader's worker fills at a time."""


@dataclass(frozen=True)
class Batch:
    """This process's share of one step.

    Attributes:
        images_b: int64, the image of each row (an image that does not decode is replaced).
        captions_c: int64, the captions of the rows, row by row; one of each, or up to train.captions_per_image.
        pixels_b: float32 of shape (b, 3, H, W), or uint8, the bytes that they are made of (eval/encoder/inputs.py); or empty
            (frozen_images_bD).
        token_ids_cL: int64, padded captions.
        mined_rows_m: int64, the row (0 <= row < b) of each mined caption's image.
        mined_captions_m: int64, indices into the pool (train/data/caption_pool.py).
        mined_token_ids_mL: int64.
        undecodable: the images that were replaced.
        frozen_images_bD, frozen_texts_nD: float32, cached embeddings of a frozen tower (train/model/frozen_tower.py), captions before
            mined captions; pixels or tokens are then empty.
        teacher_logits_m, teacher_logits_c: float32, the cross-encoder's logits of each mined caption and of the images' own captions, for
            distillation (train/mining/cross_encoder.py); NaN for an image without mined captions.
    """

    step: int
    images_b: torch.Tensor
    captions_c: torch.Tensor
    pixels_b: torch.Tensor
    token_ids_cL: torch.Tensor
    mined_rows_m: torch.Tensor
    mined_captions_m: torch.Tensor
    mined_token_ids_mL: torch.Tensor
    undecodable: list[Undecodable]
    frozen_images_bD: torch.Tensor | None = None
    frozen_texts_nD: torch.Tensor | None = None
    teacher_logits_m: torch.Tensor | None = None
    teacher_logits_c: torch.Tensor | None = None

    @classmethod
    def joined(cls, parts: "Sequence[Batch]") -> "Batch":
        """The batch whose rows are those of the parts, in order."""
        sizes = [len(part.images_b) for part in parts]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        names = [name for name, value in vars(parts[0]).items() if isinstance(value, torch.Tensor)]
        tensors: dict[str, Any] = {name: concatenated([getattr(part, name) for part in parts]) for name in names}
        tensors["mined_rows_m"] = torch.cat([part.mined_rows_m + start for part, start in zip(parts, starts, strict=True)])
        texts = [(part.frozen_texts_nD, len(part.captions_c)) for part in parts if part.frozen_texts_nD is not None]
        if texts:  # captions before mined captions
            tensors["frozen_texts_nD"] = torch.cat([text[:size] for text, size in texts] + [text[size:] for text, size in texts])
        return replace(parts[0], undecodable=[one for part in parts for one in part.undecodable], **tensors)


def concatenated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other; on a machine that trains on a GPU page-locked, for copies there that do not wait."""
    if not torch.cuda.is_initialized():
        return torch.cat(list(parts))
    whole = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype, pin_memory=True)
    return torch.cat(list(parts), out=whole)


class ShareBuilder(Dataset, ABC):  # type: ignore[type-arg]
    """Builds this process's share of the batch of any step, in parts of at most PART places, so that what a loader's worker sends does not
    grow with the batch.

    A place of the batch is filled by (seed, step, place), so the parts do not change what a batch holds.
    """

    def __init__(self, order: Order, processes: Processes, pictures: "PictureReader") -> None:
        self._order, self._processes, self._pictures = order, processes, pictures
        self._images: tuple[int, np.ndarray] | None = None  # of the step that was asked for last

    def num_parts(self, step: int) -> int:
        """Parts of a step's share."""
        return len(self._parts(step))

    @property
    def part_bytes(self) -> int:
        """What the pictures of a part take, bytes."""
        return PART * self._pictures.num_bytes

    def _images_at(self, step: int) -> np.ndarray:
        """The images of a step's whole batch; composing it anew for each part takes its time."""
        if self._images is None or self._images[0] != step:
            self._images = step, self._order.images(step)
        return self._images[1]

    def _parts(self, step: int) -> list[range]:
        """The places of each part."""
        share = len(self._images_at(step)) // self._processes.world_size
        first = self._processes.rank * share
        return [range(start, min(start + PART, first + share)) for start in range(first, first + share, PART)]

    def __getitem__(self, key: tuple[int, int] | int) -> Any:
        """A part, by step and number, or the whole share of a step; or its ImageError: raised in a worker it would arrive wrapped in a
        traceback. The pictures of a part are bytes (eval/encoder/inputs.py)."""
        if isinstance(key, int):
            parts = [self[key, part] for part in range(self.num_parts(key))]
            return next((part for part in parts if isinstance(part, ImageError)), None) or self.join(parts, as_values=True)
        try:
            return self._build(key[0], self._parts(key[0])[key[1]])
        except ImageError as error:
            return error

    @abstractmethod
    def _build(self, step: int, places: range) -> Any:
        """What some places of a step's batch hold."""

    @abstractmethod
    def join(self, parts: Sequence[Any], *, as_values: bool = False) -> Any:
        """The share whose parts these are; with `as_values` its pictures are pixel values."""


@dataclass(frozen=True)
class Parts:
    """What of an image is in a step: how many of its captions at most, and the smallest share of its area that a random crop has; whether
    it is decoded at scale where it is a JPEG; and the caches of resized pictures, if any, in which it is looked for."""

    captions_per_image: int = 1
    random_crop_min_area: float = 1.0
    jpeg_at_scale: bool = False
    pixels: "PixelStore | None" = None


class PictureReader:
    """Reads the images of batches: random crops by (seed, image, epoch), and a replacement for an image that does not decode."""

    def __init__(
        self,
        dataset: RetrievalSet,
        pixels: PictureBytes,
        seed: int,
        parts: Parts,
        frozen: FrozenEmbeddings = NOTHING_FROZEN,
    ) -> None:
        self._dataset, self.picture_bytes, self._seed, self._frozen = dataset, pixels, seed, frozen
        is_cropped = parts.random_crop_min_area < 1 and frozen.images is None
        self._crops = Crops(dataset, pixels, seed, parts.random_crop_min_area, parts.pixels) if is_cropped else None
        store = parts.pixels if self._crops is None and frozen.images is None else None
        self._read = pixels.reader(dataset, store, at_scale=parts.jpeg_at_scale)

    @property
    def num_bytes(self) -> int:
        """What a picture takes."""
        return 0 if self._frozen.images is not None else self.picture_bytes.read(Image.new("RGB", (8, 8))).nbytes

    def at_place(self, whole_B: np.ndarray, place: int, step: int, epoch: int, undecodable: list[Undecodable]) -> tuple[int, torch.Tensor]:
        """(image, its `pixels`) for one place of the batch; an image that does not decode is replaced by one that is not in the batch."""
        image = int(whole_B[place])
        draws = generator(self._seed, REPLACEMENT, step, place)
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return image, self.pixels(image, epoch)
            except ImageError as error:
                undecodable.append(Undecodable(image, str(error)))
            image = int(draws.integers(self._dataset.num_images))
            while image in whole_B and len(whole_B) < self._dataset.num_images:
                image = int(draws.integers(self._dataset.num_images))
        raise ImageError(f"{_MAX_REPLACEMENTS} pictures in a row do not decode, the last: {undecodable[-1].message}")

    def pixels(self, image: int, epoch: int) -> torch.Tensor:
        """An image's bytes (eval/encoder/inputs.py); empty where its embedding is cached: no file is opened then."""
        if self._frozen.images is not None:
            if not self._frozen.images.is_known(image):
                raise ImageError(f"{self._dataset.image_place(image)}: did not decode when the frozen image tower was run over the split")
            return torch.empty(0)
        return self._read(image) if self._crops is None else self._crops.read(image, epoch)


class BatchBuilder(ShareBuilder):
    """Builds batches of images and captions."""

    def __init__(
        self,
        pool: CaptionPool,
        inputs: SiglipInputs,
        order: Order,
        processes: Processes,
        *,
        parts: Parts = Parts(),
        negatives: Negatives | None = None,
        frozen: FrozenEmbeddings = NOTHING_FROZEN,
    ) -> None:
        """pool: the split, and what the captions of `negatives` are indices into."""
        self._pool, self._dataset = pool, pool.dataset
        self._inputs, self._negatives, self._frozen = inputs, negatives, frozen
        self._captions_per_image = parts.captions_per_image
        pictures = PictureReader(pool.dataset, inputs.picture_bytes, order.seed, parts, frozen)
        super().__init__(order, processes, pictures)

    def join(self, parts: Sequence[Batch], *, as_values: bool = False) -> Batch:
        """The share whose parts these are; with `as_values` its pictures are pixel values."""
        batch = Batch.joined(parts)
        return replace(batch, pixels_b=self._pictures.picture_bytes.values(batch.pixels_b)) if as_values else batch

    def _build(self, step: int, places: range) -> Batch:
        epoch, whole_B, table = self._order.epoch(step), self._images_at(step), self._negatives
        undecodable: list[Undecodable] = []
        read = [self._pictures.at_place(whole_B, place, step, epoch, undecodable) for place in places]
        images_b = np.array([image for image, _ in read])
        seed, most = self._order.seed, self._captions_per_image
        chosen = [chosen_captions(self._dataset, image, epoch, seed, most) for image, _ in read]
        captions_c = np.array([caption for captions in chosen for caption in captions])
        mined = [np.empty(0, np.int64) if table is None else np.arange(*table.offsets[image : image + 2]) for image, _ in read]
        rows_m = np.concatenate(mined)  # of the table
        captions_m = rows_m if table is None else table.captions_N[rows_m]
        token_ids, texts_nD = self._texts(np.concatenate([captions_c, captions_m]))
        return Batch(
            step,
            torch.from_numpy(images_b),
            torch.from_numpy(captions_c),
            torch.stack([values for _, values in read]),
            token_ids[: len(captions_c)],
            torch.from_numpy(np.repeat(np.arange(len(places)), [len(rows) for rows in mined])),
            torch.from_numpy(captions_m),
            token_ids[len(captions_c) :],
            undecodable,
            None if self._frozen.images is None else self._frozen.images.of(images_b),
            texts_nD,
            None if table is None or table.teacher_logits_N is None else torch.from_numpy(table.teacher_logits_N[rows_m]),
            None if table is None or table.own_teacher_logits_C is None else torch.from_numpy(table.own_teacher_logits_C[captions_c]),
        )

    def _texts(self, captions_n: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(token ids, None) of captions; (empty, embeddings) where those are cached."""
        if self._frozen.captions is not None:
            return torch.empty(0, self._inputs.num_tokens, dtype=torch.int64), self._frozen.captions.of(captions_n)
        return self._inputs.token_ids([self._pool.text(caption) for caption in captions_n.tolist()]), None


class TruePairs:
    """Looks up positive pairs by the hash of the caption's normalised text.

    A relabelled pair is positive wherever that image and that text meet: in its mined column, in another's, or in the batch.
    """

    def __init__(self, pool: CaptionPool, negatives: Negatives | None = None, *, near_duplicates: bool = False) -> None:
        """near_duplicates: leave near-duplicates of an image's positives out of the loss."""
        self._dataset, self._hash_C = pool.dataset, pool.hash_C
        self._near = pool.near_duplicate_positives if near_duplicates else None
        self._relabelled: GroupHashes | None = None
        self._doubtful: GroupHashes | None = None
        if negatives is not None and negatives.doubtful_2D is not None:
            images_D, captions_D = negatives.doubtful_2D
            self._doubtful = GroupHashes(images_D, self._hash_C[captions_D])
        if negatives is not None and negatives.relabelled_N is not None:
            chosen_N = negatives.relabelled_N
            hashes_N = self._hash_C[negatives.captions_N[chosen_N]]
            self._relabelled = GroupHashes(negatives.image_N[chosen_N], hashes_N)

    def of_batch(self, images_b: np.ndarray, texts: list[np.ndarray]) -> BatchPositives:
        """The positive pairs between this process's images and the texts of each process, given as pool indices."""
        truths = [(self._dataset.group_I[images_b], self._dataset.true_hashes)]
        if self._relabelled is not None:
            truths.append((images_b, self._relabelled))
        hashes = [self._hash_C[captions] for captions in texts]
        left_out = [] if self._doubtful is None else [(images_b, hashes, self._doubtful)]
        if self._near is not None:
            keys_C, true = self._near
            left_out.append((self._dataset.group_I[images_b], [keys_C[captions] for captions in texts], true))
        return BatchPositives(hashes, truths, left_out)

    def contains(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Whether each pair of an image and a caption of the pool is positive, bool; arguments broadcast."""
        hashes = self._hash_C[captions]
        known = self._dataset.is_positive(images, hashes)
        return known if self._relabelled is None else known | self._relabelled.contains(images, hashes)
