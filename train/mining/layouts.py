"""Mined negatives as rows for other trainers: an anchor, what is true of it, and what was mined for it.

    sentence-transformers  anchor, positive, negative; with n negatives in a row anchor, positive, negative_1, ..., negative_n: a row for
                           each pair, as its losses read them (sentence-transformers, "Dataset Overview")
    flagembedding          query, pos, neg: a row for each anchor, with lists (FlagEmbedding, examples/finetune, "Data format")
    ms-swift               messages, images, positive_messages, negative_messages: a row for each pair, pictures as <image> and in
                           images, positive_images, negative_images (ms-swift, "Embedding Training", InfoNCE)

A picture is its path. The anchor is an image and its negatives are captions; where images were mined (mining.form: images), the other way
round. Shape letter: N mined pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from eval.errors import UserError
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives

Layout = Literal["sentence-transformers", "flagembedding", "ms-swift"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_MOST_NAMED = 5


@dataclass(frozen=True)
class MinedAnchor:
    """What was mined for one image or one caption.

    Attributes:
        anchor: index of the image, or of the caption in the pool.
        positives: its own captions of different texts; of a caption, its image.
        negatives: mined captions, or images, the highest ranked first.
    """

    anchor: int
    positives: list[int]
    negatives: list[int]


def mined_anchors(negatives: Negatives, pool: CaptionPool, *, images_mined: bool) -> Iterator[MinedAnchor]:
    """Every anchor that something was mined for, in index order; what a cross-encoder relabelled is left out.

    Args:
        images_mined: images were mined for captions.

    Raises:
        UserError: a mined pair is true by the data as they are now.
    """
    dataset, is_negative_N = pool.dataset, negatives.is_negative_N
    image_N, caption_N, rank_N = negatives.image_N[is_negative_N], negatives.captions_N[is_negative_N], negatives.ranks_N[is_negative_N]
    true_N = np.flatnonzero(dataset.is_positive(image_N, pool.hash_C[caption_N]))
    if len(true_N):
        pairs = [(dataset.image_ids[image_N[row]], pool.caption_id(int(caption_N[row]))) for row in true_N[:_MOST_NAMED]]
        raise UserError(
            f"table {negatives.name}: {len(true_N)} mined pair(s) are true by the data as they are now, e.g. {pairs}: the data have "
            "changed. Mine again"
        )
    anchor_N, mined_N = (caption_N, image_N) if images_mined else (image_N, caption_N)
    order_N = np.lexsort((rank_N, anchor_N))
    anchors, starts = np.unique(anchor_N[order_N], return_index=True)
    for anchor, rows in zip(anchors.tolist(), np.split(mined_N[order_N], starts)[1:], strict=True):
        positives = [int(dataset.caption_image_C[anchor])] if images_mined else _different(pool, anchor)
        yield MinedAnchor(anchor, positives, rows.tolist())


def _different(pool: CaptionPool, image: int) -> list[int]:
    """The captions of an image, each normalised text once."""
    offsets = pool.dataset.caption_offsets
    first = {int(pool.hash_C[caption]): caption for caption in reversed(range(int(offsets[image]), int(offsets[image + 1])))}
    return sorted(first.values())


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes the rows of a layout.

    Attributes:
        layout: see the module.
        picture: path of an image by its index.
        text: text of a caption by its index.
        images_mined: images were mined for captions.
        num_negatives: sentence-transformers: negatives in a row, exactly; None: 1. The others: at most; None: all.
    """

    layout: Layout
    picture: Callable[[int], str]
    text: Callable[[int], str]
    images_mined: bool
    num_negatives: int | None = None

    def rows(self, mined: MinedAnchor) -> Iterator[dict[str, Any]]:
        """The rows of one anchor; none where it has fewer negatives than a row of sentence-transformers takes."""
        item, other = (self.text, self.picture) if self.images_mined else (self.picture, self.text)
        anchor, positives = item(mined.anchor), [other(positive) for positive in mined.positives]
        if self.layout == "sentence-transformers":
            yield from self._tuples(anchor, positives, [other(negative) for negative in mined.negatives])
            return
        negatives = [other(negative) for negative in mined.negatives[: self.num_negatives]]
        if self.layout == "flagembedding":
            yield {"query": anchor, "pos": positives, "neg": negatives}
            return
        for positive in positives:
            yield self._messages(anchor, positive, negatives)

    def _tuples(self, anchor: str, positives: Sequence[str], negatives: Sequence[str]) -> Iterator[dict[str, Any]]:
        number = self.num_negatives or 1
        for positive in positives:
            pair = {"anchor": anchor, "positive": positive}
            if number == 1:
                yield from (pair | {"negative": negative} for negative in negatives)
            elif len(negatives) >= number:
                yield pair | {f"negative_{place}": negative for place, negative in enumerate(negatives[:number], 1)}

    def _messages(self, anchor: str, positive: str, negatives: Sequence[str]) -> dict[str, Any]:
        def said(content: str) -> list[dict[str, str]]:
            return [{"role": "user", "content": content}]

        if self.images_mined:
            return {
                "messages": said(anchor),
                "positive_messages": [said("<image>")],
                "positive_images": [[positive]],
                "negative_messages": [said("<image>") for _ in negatives],
                "negative_images": [[negative] for negative in negatives],
            }
        return {
            "messages": said("<image>"),
            "images": [anchor],
            "positive_messages": [said(positive)],
            "negative_messages": [said(negative) for negative in negatives],
        }
