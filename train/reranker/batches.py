"""The pairs of each step as a function of (seed, step) and the tables mined before the first: true ones, hard ones, easy ones.

Shape letters: B images of the whole batch, b of this process, p pictures (its images and, behind them, hard images), N pairs, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import pad

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import GroupHashes
from train.data.batches import Parts, PictureReader, ShareBuilder, Undecodable, concatenated
from train.data.order import BatchOrder, chosen_caption, generator

if TYPE_CHECKING:
    from eval.processes import Processes
    from train.config.reranker import NegativesConfig
    from train.data.caption_pool import CaptionPool
    from train.data.hard_image_order import HardImages
    from train.data.negatives import Negatives
    from train.reranker.model import MatchInputs

# Streams of random numbers besides those of train/data/order.py.
_HARD_CAPTION, _HARD_IMAGE, _EASY = range(100, 103)
_WHOLE = Parts()


class PairKind(IntEnum):
    """Where a pair comes from."""

    TRUE = 0
    HARD_CAPTION = 1
    HARD_IMAGE = 2
    EASY = 3


@dataclass(frozen=True)
class MatchBatch:
    """This process's share of one step.

    Attributes:
        images_p: int64, what each picture is; the first b are the images of the step.
        pixels_p: float32 of shape (p, 3, H, W), or uint8, the bytes that they are made of (eval/encoder/inputs.py).
        owners_N: int64, the image of the step (0 <= owner < b) that each pair belongs to, ascending.
        pictures_N: int64, the picture of each pair.
        captions_N: int64, its caption, an index into the split.
        kinds_N: int64, a PairKind.
        token_ids_NL, mask_NL: int64.
        shortfall: negatives that are missing: fewer were mined, and nothing filled their place.
        undecodable: pictures that were replaced or, hard images, left out.
    """

    step: int
    images_p: torch.Tensor
    pixels_p: torch.Tensor
    owners_N: torch.Tensor
    pictures_N: torch.Tensor
    captions_N: torch.Tensor
    kinds_N: torch.Tensor
    token_ids_NL: torch.Tensor
    mask_NL: torch.Tensor
    shortfall: int
    undecodable: list[Undecodable]

    @property
    def labels_N(self) -> torch.Tensor:
        """int64: 1 for a true pair."""
        return (self.kinds_N == PairKind.TRUE).long()

    def parts(self, num_images: int | None) -> Iterator[MatchBatch]:
        """The pairs of so many images at a time, each part with the pictures it needs; None: all at once."""
        num_owners = int(self.owners_N[-1]) + 1
        size = num_images or num_owners
        for start in range(0, num_owners, size):
            chosen_N = (self.owners_N >= start) & (self.owners_N < start + size)
            used, places_N = self.pictures_N[chosen_N].unique(return_inverse=True)
            mask_NL = self.mask_NL[chosen_N]
            longest = int(mask_NL.sum(dim=1).max())
            pairs: dict[str, Any] = {name: getattr(self, name)[chosen_N] for name in ("owners_N", "captions_N", "kinds_N")}
            yield replace(
                self,
                images_p=self.images_p[used],
                pixels_p=self.pixels_p[used],
                pictures_N=places_N,
                token_ids_NL=self.token_ids_NL[chosen_N][:, :longest],
                mask_NL=mask_NL[:, :longest],
                **pairs,
            )

    @classmethod
    def joined(cls, parts: Sequence[MatchBatch], pad_token_id: int) -> MatchBatch:
        """The batch whose pairs are those of the parts, in order; its pictures are the images of the step and, behind them, hard images,
        each once and none that is an image of the step."""
        owned = [int(part.owners_N[-1]) + 1 for part in parts]  # images of the step
        starts = np.cumsum([0, *owned[:-1]]).tolist()
        images = [image for part, count in zip(parts, owned, strict=True) for image in part.images_p[:count].tolist()]
        pixels = [part.pixels_p[:count] for part, count in zip(parts, owned, strict=True)]
        pictures = []
        for part, start, count in zip(parts, starts, owned, strict=True):
            places = list(range(start, start + count))
            for hard, values in zip(part.images_p[count:].tolist(), part.pixels_p[count:], strict=True):
                if hard not in images:
                    images.append(hard)
                    pixels.append(values[None])
                places.append(images.index(hard))
            pictures.append(torch.tensor(places)[part.pictures_N])
        longest = max(part.mask_NL.shape[1] for part in parts)
        return MatchBatch(
            parts[0].step,
            torch.tensor(images),
            concatenated(pixels),
            torch.cat([part.owners_N + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat(pictures),
            torch.cat([part.captions_N for part in parts]),
            torch.cat([part.kinds_N for part in parts]),
            torch.cat([pad(part.token_ids_NL, (0, longest - part.token_ids_NL.shape[1]), value=pad_token_id) for part in parts]),
            torch.cat([pad(part.mask_NL, (0, longest - part.mask_NL.shape[1])) for part in parts]),
            sum(part.shortfall for part in parts),
            [one for part in parts for one in part.undecodable],
        )


@dataclass(frozen=True)
class HardTables:
    """What was mined; None where nothing of the kind is asked for."""

    captions: Negatives | None
    images: HardImages | None


@dataclass
class _Collected:
    """What of a batch is found so far."""

    images: list[int]
    pixels: list[torch.Tensor]
    pairs: list[tuple[int, int, int, int]]
    """(owner, picture, caption, kind)."""
    undecodable: list[Undecodable]
    shortfall: int = 0


class MatchBatches(ShareBuilder):
    """Builds batches of pairs."""

    def __init__(
        self,
        pool: CaptionPool,
        inputs: MatchInputs,
        order: BatchOrder,
        processes: Processes,
        config: NegativesConfig,
        tables: HardTables,
        *,
        parts: Parts = _WHOLE,
    ) -> None:
        self._pool, self._dataset, self._inputs = pool, pool.dataset, inputs
        self._config = config
        self._hard_captions, self._hard_images = tables.captions, tables.images
        self._doubtful: GroupHashes | None = None
        self._spoken: tuple[int, np.ndarray] | None = None  # of the step that was asked for last
        if tables.captions is not None and tables.captions.doubtful_2D is not None:
            images_D, captions_D = tables.captions.doubtful_2D
            self._doubtful = GroupHashes(images_D, pool.hash_C[captions_D])
        pictures = PictureReader(pool.dataset, inputs.picture_bytes, order.seed, parts)
        super().__init__(order, processes, pictures)

    @property
    def part_bytes(self) -> int:
        """What the pictures of a part take with as many hard images as they can have, bytes."""
        return super().part_bytes * (1 + self._config.images_per_caption)

    def join(self, parts: Sequence[MatchBatch], *, as_values: bool = False) -> MatchBatch:
        """The share whose parts these are; with `as_values` its pictures are pixel values."""
        batch = MatchBatch.joined(parts, self._inputs.pad_token_id)
        return replace(batch, pixels_p=self._pictures.picture_bytes.values(batch.pixels_p)) if as_values else batch

    def _build(self, step: int, places: range) -> MatchBatch:
        epoch, whole_B = self._order.epoch(step), self._images_at(step)
        found = _Collected([], [], [], [])
        for place in places:
            image, values = self._pictures.at_place(whole_B, place, step, epoch, found.undecodable)
            found.images.append(image)
            found.pixels.append(values)
        for owner, image in enumerate(list(found.images)):
            self._pair_up(owner, image, step, epoch, places[owner], found)
        return self._tensors(step, found)

    def _pair_up(self, owner: int, image: int, step: int, epoch: int, place: int, found: _Collected) -> None:
        """The pairs of one image."""
        config = self._config
        caption = chosen_caption(self._dataset, image, epoch, self._order.seed)
        found.pairs.append((owner, owner, caption, PairKind.TRUE))
        before = len(found.pairs)
        used: list[int] = []
        if step > config.easy_until_step:
            if self._hard_captions is not None:
                mined = self._hard_captions.of(image)
                used = self._drawn(mined, config.captions_per_image, _HARD_CAPTION, image, epoch)
                found.pairs += [(owner, owner, other, PairKind.HARD_CAPTION) for other in used]
            if self._hard_images is not None:
                images = self._hard_images.of(caption)
                for other in self._drawn(images, config.images_per_caption, _HARD_IMAGE, caption, epoch):
                    self._add_hard_image(owner, other, caption, epoch, found)
        missing = config.num_wanted - (len(found.pairs) - before)
        if missing and (config.fill_with_easy or step <= config.easy_until_step):
            easy = self._easy(image, place, step, used, missing)
            found.pairs += [(owner, owner, other, PairKind.EASY) for other in easy]
            missing -= len(easy)
        found.shortfall += missing

    def _drawn(self, mined_N: np.ndarray, count: int, stream: int, key: int, epoch: int) -> list[int]:
        """Up to `count` of what was mined, drawn anew in each epoch."""
        order_N = generator(self._order.seed, stream, key, epoch).permutation(len(mined_N))
        return [int(mined) for mined in mined_N[order_N[:count]]]

    def _add_hard_image(self, owner: int, image: int, caption: int, epoch: int, found: _Collected) -> None:
        if image not in found.images:
            try:
                found.pixels.append(self._pictures.pixels(image, epoch))
            except ImageError as error:
                found.undecodable.append(Undecodable(image, f"{error} (a hard image: left out)"))
                return
            found.images.append(image)
        found.pairs.append((owner, found.images.index(image), caption, PairKind.HARD_IMAGE))

    def _easy(self, image: int, place: int, step: int, used: list[int], count: int) -> list[int]:
        """Captions of other images of the whole batch that are not true of this one, in an order drawn for it; no text twice.

        What the cross-encoder was asked about and called a match is as unwelcome here as among the hard ones.
        """
        spoken_B = self._spoken_at(step)
        others = spoken_B[generator(self._order.seed, _EASY, step, place).permutation(len(spoken_B))]
        false = others[~self._dataset.is_positive(np.array(image), self._pool.hash_C[others])]
        if self._config.near_duplicates:
            false = false[~self._pool.is_near_duplicate(np.array(image), false)]
        if self._doubtful is not None:
            false = false[~self._doubtful.contains(np.full(len(false), image), self._pool.hash_C[false])]
        seen = {int(self._pool.hash_C[caption]) for caption in used}
        chosen: list[int] = []
        for caption in false.tolist():
            key = int(self._pool.hash_C[caption])
            if key not in seen and len(chosen) < count:
                seen.add(key)
                chosen.append(caption)
        return chosen

    def _spoken_at(self, step: int) -> np.ndarray:
        """The caption of each image of a step's whole batch; its parts share it, and a step without easy negatives does not ask."""
        if self._spoken is None or self._spoken[0] != step:
            epoch, whole_B = self._order.epoch(step), self._images_at(step)
            self._spoken = step, np.array([chosen_caption(self._dataset, int(image), epoch, self._order.seed) for image in whole_B])
        return self._spoken[1]

    def _tensors(self, step: int, found: _Collected) -> MatchBatch:
        owners, pictures, captions, kinds = (torch.tensor(column) for column in zip(*found.pairs, strict=True))
        ids = self._inputs.token_ids([self._dataset.captions[caption] for caption in captions.tolist()])
        longest = max(len(row) for row in ids)
        return MatchBatch(
            step,
            torch.tensor(found.images),
            torch.stack(found.pixels),
            owners,
            pictures,
            captions,
            kinds,
            torch.tensor([[*row, *[self._inputs.pad_token_id] * (longest - len(row))] for row in ids]),
            torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
            found.shortfall,
            found.undecodable,
        )
