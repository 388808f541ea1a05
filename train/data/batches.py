"""The batch of each step, a function of (seed, step): no state of the order is saved in a checkpoint, and a resume loses nothing.

The order of an epoch is a permutation of all images, and a batch is a slice of it, so no image is twice in a batch. Images that do not
fill a last batch are left out of that epoch. Shape letters: B images of the whole batch, b images and m mined captions of this process,
n captions, L tokens, D width; of the positives N rows of the mined table, C captions of the pool, D doubtful pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.caption_pool import CaptionPool
from train.data.mined_order import Order
from train.data.negatives import Negatives
from train.data.order import CROP, REPLACEMENT, chosen_caption, generator
from train.loss.positives import BatchPositives

_MAX_REPLACEMENTS = 100


@dataclass(frozen=True)
class Batch:
    """This process's share of one step.

    Attributes:
        images_b, captions_b: int64, image and caption of each row (an image that does not decode is replaced).
        pixels_b: float32 of shape (b, 3, H, W), or empty (frozen_images_bD).
        token_ids_bL: int64, padded captions.
        mined_rows_m: int64, the row (0 <= row < b) of each mined caption's image.
        mined_captions_m: int64, indices into the pool (train/data/caption_pool.py).
        mined_token_ids_mL: int64.
        undecodable: messages about images that were replaced.
        frozen_images_bD, frozen_texts_nD: float32, cached embeddings of a frozen tower (train/model/frozen_tower.py), captions before
            mined captions; pixels or tokens are then empty.
        teacher_logits_m, teacher_logits_b: float32, the cross-encoder's logits of each mined caption and of each image's own caption, for
            distillation (train/mining/cross_encoder.py); NaN for an image without mined captions.
    """

    step: int
    images_b: torch.Tensor
    captions_b: torch.Tensor
    pixels_b: torch.Tensor
    token_ids_bL: torch.Tensor
    mined_rows_m: torch.Tensor
    mined_captions_m: torch.Tensor
    mined_token_ids_mL: torch.Tensor
    undecodable: list[str]
    frozen_images_bD: torch.Tensor | None = None
    frozen_texts_nD: torch.Tensor | None = None
    teacher_logits_m: torch.Tensor | None = None
    teacher_logits_b: torch.Tensor | None = None

    def pin_memory(self) -> "Batch":
        """The same with page-locked tensors, for asynchronous copies to a GPU (called by DataLoader)."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **pinned)


class PictureReader:
    """Reads the images of batches: random crops by (seed, image, epoch), and a replacement for an image that does not decode."""

    def __init__(
        self,
        dataset: RetrievalSet,
        pixels: Callable[[Image.Image], torch.Tensor],
        seed: int,
        min_area: float,
        frozen: FrozenEmbeddings = NOTHING_FROZEN,
    ) -> None:
        """pixels: an image to float32 of shape (3, H, W); min_area: smallest share of the image's area in a random crop."""
        self._dataset, self._as_pixels, self._seed, self._min_area, self._frozen = dataset, pixels, seed, min_area, frozen

    def at_place(self, whole_B: np.ndarray, place: int, step: int, epoch: int, undecodable: list[str]) -> tuple[int, torch.Tensor]:
        """(image, pixel values) for one place of the batch; an image that does not decode is replaced by one that is not in the batch."""
        image = int(whole_B[place])
        draws = generator(self._seed, REPLACEMENT, step, place)
        for _ in range(_MAX_REPLACEMENTS):
            try:
                return image, self.pixels(image, epoch)
            except ImageError as error:
                undecodable.append(str(error))
            image = int(draws.integers(self._dataset.num_images))
            while image in whole_B and len(whole_B) < self._dataset.num_images:
                image = int(draws.integers(self._dataset.num_images))
        raise ImageError(f"{_MAX_REPLACEMENTS} pictures in a row do not decode, the last: {undecodable[-1]}")

    def pixels(self, image: int, epoch: int) -> torch.Tensor:
        """Pixel values; empty where the image's embedding is cached: no file is opened then."""
        if self._frozen.images is not None:
            if not self._frozen.images.is_known(image):
                raise ImageError(f"{self._dataset.image_place(image)}: did not decode when the frozen image tower was run over the split")
            return torch.empty(0)
        picture = self._dataset.load_image(image)
        if self._min_area < 1:
            picture = random_crop(picture, self._min_area, generator(self._seed, CROP, image, epoch))
        return self._as_pixels(picture)


class BatchBuilder(Dataset):  # type: ignore[type-arg]
    """Builds this process's share of the batch of any step (the index). Runs in the loader's workers."""

    def __init__(
        self,
        pool: CaptionPool,
        inputs: SiglipInputs,
        order: Order,
        processes: Processes,
        *,
        random_crop_min_area: float = 1.0,
        negatives: Negatives | None = None,
        frozen: FrozenEmbeddings = NOTHING_FROZEN,
    ) -> None:
        """pool: the split, and what the captions of `negatives` are indices into."""
        self._pool, self._dataset = pool, pool.dataset
        self._inputs, self._order, self._processes = inputs, order, processes
        self._negatives, self._frozen = negatives, frozen
        self._pictures = PictureReader(pool.dataset, inputs.pixels, order.seed, random_crop_min_area, frozen)

    def __getitem__(self, step: int) -> Batch | ImageError:
        """The batch of a step, or the error: an error raised in a worker would arrive wrapped in a traceback."""
        try:
            return self._build(step)
        except ImageError as error:
            return error

    def _build(self, step: int) -> Batch:
        epoch, whole_B, table = self._order.epoch(step), self._order.images(step), self._negatives
        share = len(whole_B) // self._processes.world_size
        first = self._processes.rank * share
        undecodable: list[str] = []
        read = [self._pictures.at_place(whole_B, place, step, epoch, undecodable) for place in range(first, first + share)]
        images_b = np.array([image for image, _ in read])
        captions_b = np.array([chosen_caption(self._dataset, image, epoch, self._order.seed) for image, _ in read])
        mined = [np.empty(0, np.int64) if table is None else np.arange(*table.offsets[image : image + 2]) for image, _ in read]
        rows_m = np.concatenate(mined)  # of the table
        captions_m = rows_m if table is None else table.captions_N[rows_m]
        token_ids, texts_nD = self._texts(np.concatenate([captions_b, captions_m]))
        return Batch(
            step,
            torch.from_numpy(images_b),
            torch.from_numpy(captions_b),
            torch.stack([values for _, values in read]),
            token_ids[:share],
            torch.from_numpy(np.repeat(np.arange(share), [len(rows) for rows in mined])),
            torch.from_numpy(captions_m),
            token_ids[share:],
            undecodable,
            None if self._frozen.images is None else self._frozen.images.of(images_b),
            texts_nD,
            None if table is None or table.teacher_logits_N is None else torch.from_numpy(table.teacher_logits_N[rows_m]),
            None if table is None or table.own_teacher_logits_C is None else torch.from_numpy(table.own_teacher_logits_C[captions_b]),
        )

    def _texts(self, captions_n: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(token ids, None) of captions; (empty, embeddings) where those are cached."""
        if self._frozen.captions is not None:
            return torch.empty(0, self._inputs.num_tokens, dtype=torch.int64), self._frozen.captions.of(captions_n)
        return self._inputs.token_ids([self._pool.text(caption) for caption in captions_n.tolist()]), None


def random_crop(picture: Image.Image, min_area: float, draws: np.random.Generator) -> Image.Image:
    """Crop a random rectangle of the image's aspect ratio, min_area to 1 of its area."""
    side = float(np.sqrt(draws.uniform(min_area, 1.0)))
    width, height = max(1, round(picture.width * side)), max(1, round(picture.height * side))
    left, top = int(draws.integers(picture.width - width + 1)), int(draws.integers(picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


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
