"""The towers over one process's share of a batch: at once, or in cached micro-batches for a batch larger than memory.

The sigmoid loss needs every embedding of the batch, not every activation. Cached (GradCache: Gao et al. 2021, arXiv 2101.06983): each
micro-batch is embedded without a graph; the loss gives the gradient of every embedding; then each micro-batch is embedded again, with a
graph, and that gradient is sent back through it. Memory holds the activations of one micro-batch of one tower, at the cost of one
more forward pass. Shape letters: b images of this process, n texts (captions, then mined), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from eval.encoder.inputs import image_features, text_features
from train.data.batches import concatenated

if TYPE_CHECKING:
    from transformers import SiglipModel

    from train.config.model import Tower
    from train.data.batches import Batch
    from train.model.compiled import CompiledTowers
    from train.model.siglip import TunedModel

_TOWERS: dict[Tower, int] = {"image": 0, "text": 1}


@dataclass(frozen=True)
class _Side:
    """The inputs of one tower in a step.

    Attributes:
        rows: pixel values, the bytes that they are made of, or token ids, on the CPU.
        known: cached embeddings of a frozen tower; there are no rows then.
    """

    tower: Tower
    rows: torch.Tensor
    known: torch.Tensor | None


def _sides(batch: Batch) -> tuple[_Side, _Side]:
    """Images and texts of a batch; captions come before mined captions."""
    token_ids_nL = concatenated([batch.token_ids_cL, batch.mined_token_ids_mL])
    return _Side("image", batch.pixels_b, batch.frozen_images_bD), _Side("text", token_ids_nL, batch.frozen_texts_nD)


class Towers:
    """Embeds batches with both towers of a model under training.

    Attributes:
        micro_batch_size: rows of one forward pass of a tower; None: all at once.
    """

    def __init__(
        self,
        tuned: TunedModel,
        micro_batch_size: int | None,
        seeds: tuple[int, int],
        autocast: Callable[[], AbstractContextManager[Any]],
        compiled: CompiledTowers | None = None,
    ) -> None:
        """Args:
        seeds: the job's seed and this process's rank, which with the step seed dropout.
        autocast: precision of the towers.
        compiled: the towers, compiled; None: they run as they are.
        """
        self._siglip, self._autocast, (self._seed, self._rank) = tuned.siglip, autocast, seeds
        self._picture_bytes = tuned.inputs.picture_bytes
        self.micro_batch_size, self._compiled = micro_batch_size, compiled
        self._device = next(tuned.siglip.parameters()).device
        parts = {"image": tuned.siglip.vision_model, "text": tuned.siglip.text_model}
        self._trains = {tower: any(p.requires_grad for p in part.parameters()) for tower, part in parts.items()}
        self._frozen = [part for tower, part in parts.items() if not self._trains[tower]]

    def begin(self, step: int) -> None:
        """Begin a step. Dropout is seeded by (seed, step, rank), so no generator state is saved. A frozen tower has no dropout."""
        self._siglip.train()
        for part in self._frozen:
            part.eval()
        if self._compiled is not None:
            self._compiled.warm_up(self._forward)
        seed_dropout(self._seed, step, self._rank)

    def embed(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit vectors of the batch's images (b, D) and texts (n, D), for the loss; call `finish` after its backward pass."""
        image, text = (self._embed(side, batch.step) for side in _sides(batch))
        return image, text

    def _embed(self, side: _Side, step: int) -> torch.Tensor:
        if side.known is not None:
            return side.known.to(self._device, non_blocking=True)
        if self._fits(side):
            return self._forward(side.tower, side.rows)
        assert self.micro_batch_size is not None
        with torch.no_grad():
            parts = [self._forward(side.tower, side.rows[part]) for part in self._micro_batches(side, step, self.micro_batch_size)]
        return torch.cat(parts).requires_grad_(self._trains[side.tower])

    def finish(
        self, batch: Batch, images_bD: torch.Tensor, texts_nD: torch.Tensor, expect: Callable[[bool], None] = lambda is_last: None
    ) -> None:
        """The second pass of cached micro-batches: backpropagate the gradients of the embeddings to the weights.

        Args:
            expect: told before each backward pass whether it is the last through its tower, so that the gradients are whole after it.
        """
        for side, vectors_ND in zip(_sides(batch), (images_bD, texts_nD), strict=True):
            if self._fits(side) or vectors_ND.grad is None:
                continue  # autograd has reached the weights already, or the tower is frozen
            assert self.micro_batch_size is not None
            for part in self._micro_batches(side, batch.step, self.micro_batch_size):
                features_pD = self._forward(side.tower, side.rows[part])
                expect(part.stop >= len(side.rows))
                features_pD.backward(vectors_ND.grad[part])

    def _fits(self, side: _Side) -> bool:
        """Whether a side goes through its tower at once: mined captions make more texts than images."""
        return self.micro_batch_size is None or len(side.rows) <= self.micro_batch_size

    def _forward(self, tower: Tower, rows: torch.Tensor) -> torch.Tensor:
        """One forward pass in its own autocast, which caches cast weights: those cast without a graph would get no gradient."""
        count, model = len(rows), self._siglip if self._compiled is None else self._compiled
        rows = (rows if self._compiled is None else self._compiled.filled(tower, rows)).to(self._device, non_blocking=True)
        if tower == "image":
            rows = self._picture_bytes.values(rows)
        features = image_features if tower == "image" else text_features
        with self._autocast():
            vectors_ND = features(cast("SiglipModel", model), rows)
        return vectors_ND if len(vectors_ND) == count else vectors_ND[:count]

    def _micro_batches(self, side: _Side, step: int, size: int) -> Iterator[slice]:
        """The micro-batches of a side; before each, dropout is seeded by its number, so that both passes are equal."""
        for number, start in enumerate(range(0, len(side.rows), size), 1):
            seed_dropout(self._seed, step, self._rank, _TOWERS[side.tower], number)
            yield slice(start, start + size)


def seed_dropout(*keys: int) -> None:
    """Seed torch by its keys (seed, step, rank and which micro-batch), so no generator's state is saved."""
    drawn = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    torch.manual_seed(int(drawn[0] >> np.uint64(1)))


def cached_size(micro_batch_size: int | None, share: int, most_texts: int) -> int | None:
    """The micro-batch size of a process's share of the batch; None where its images and its texts fit into one.

    Args:
        most_texts: captions and mined captions of an image, at most.
    """
    return micro_batch_size if micro_batch_size is not None and micro_batch_size < share * most_texts else None
