"""The pictures of a scoring, each decoded and resized once for all its captions, by workers where there are some."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from eval.dataset.images import ImageError
from eval.encoder.loader import block_loader
from rerank.scorers.scorer import StagedScorer
from rerank.scoring.cached_scoring import ScoringData

_WIDE = (50, 30)  # of the aspect ratio that gives the most pixels where an image keeps it (ViLT, BridgeTower)


def prepared_pictures(scorer: StagedScorer, dataset: ScoringData, images: Sequence[int], num_workers: int) -> Generator[Any, None, None]:
    """What the scorer reads of each image, in order; an ImageError in place of one that does not decode."""
    blank = scorer.prepare(Image.new("RGB", _WIDE)) if num_workers else None
    item_bytes = blank.nbytes if isinstance(blank, torch.Tensor) else 0  # anything else goes through a pipe
    yield from block_loader(_Prepared(scorer, dataset, images), num_workers=num_workers, item_bytes=item_bytes)


class _Prepared(Dataset):  # type: ignore[type-arg]
    def __init__(self, scorer: StagedScorer, dataset: ScoringData, images: Sequence[int]) -> None:
        self._scorer, self._dataset, self._images = scorer, dataset, images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, item: int) -> Any:
        try:
            return self._scorer.prepare(self._dataset.load_image(int(self._images[item])))
        except ImageError as error:  # raised in a worker it would arrive wrapped in a traceback
            return error
