"""Expansions as additional positive captions of the train split (data.expand).

Additional captions follow an image's own, so the ids of those do not change. They are positives like any other: never mined for their
image, +1 in the loss, and the epochs cycle through them too (`train.data.order.chosen_caption`). Val and test are unchanged.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.manifest import Manifest, ManifestImage
from rerank.expansions.additional_texts import AdditionalTexts, ImageCaptions
from rerank.expansions.base import Expansion, TextExpansion
from rerank.expansions.parse import parse_expansion


def parse_expansions(asked: Sequence[str]) -> list[TextExpansion]:
    """The expansions that data.expand names, their files read.

    Raises:
        UserError: one is unknown, expands images, or its files cannot be used; with every fault of all of them.
    """
    found, faults = [], []
    for text in asked:
        try:
            expansion: Expansion = parse_expansion(text)
            if isinstance(expansion, TextExpansion):
                found.append(expansion)
            else:
                faults.append(
                    f"{text}: expected an expansion of texts, found views of images; for crops in training set train.random_crop_min_area"
                )
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(f"data.expand: {fault}" for fault in faults))
    return found


def expanded(
    manifest: Manifest, split: str | None, dataset: RetrievalSet, expansions: Sequence[TextExpansion]
) -> tuple[RetrievalSet, list[str]]:
    """The split with its additional captions, and a line for each expansion with the number it added.

    Args:
        dataset: the split as in the manifest; a caption that an earlier expansion added is not added again.

    Raises:
        UserError: an expansion adds nothing to the split, or a model cannot be used.
    """
    images = sorted((image for image in manifest.images if image.split == split), key=lambda image: image.id)
    lines = []
    known = [{normalise(caption) for caption in image.captions} for image in images]
    for expansion in expansions:
        try:
            texts = expansion.of(dataset)
        except UserError as error:
            raise UserError(f"data.expand: {error}") from error
        num_captions, num_images = 0, 0
        for number, added in enumerate(_of_images(dataset, texts)):
            fresh: dict[str, tuple[int, str]] = {}
            for place, text in added:
                if normalise(text) not in known[number]:
                    fresh.setdefault(normalise(text), (place, text))
            images[number] = _with_captions(images[number], list(fresh.values()))
            known[number] |= fresh.keys()
            num_captions += len(fresh)
            num_images += bool(fresh)
        lines.append(f"expand    {num_captions:,} additional captions for {num_images:,} images by {expansion.source}")
    return RetrievalSet(images, manifest, source=manifest.source, split=split), lines


def _of_images(dataset: RetrievalSet, expansions: AdditionalTexts) -> Iterator[list[tuple[int, str]]]:
    """The additional captions of each image as (place among its own captions, text), caption after caption.

    The expansions of a caption go to every image that has this caption: else they could be mined as negatives of the others.
    """
    if isinstance(expansions, ImageCaptions):
        yield from ([(0, text) for text in expansions.of(image)] for image in range(dataset.num_images))
        return
    keys = dataset.caption_hash_C.tolist()
    by_text = defaultdict[int, dict[str, None]](dict)  # expansions of all captions of one normalised text, by its hash, in order
    for caption, key in enumerate(keys):
        by_text[key].update(dict.fromkeys(expansions.of(caption)))
    for start, end in pairwise(dataset.caption_offsets.tolist()):
        yield [(caption - start, text) for caption in range(start, end) for text in by_text[keys[caption]]]


def _with_captions(image: ManifestImage, added: list[tuple[int, str]]) -> ManifestImage:
    """The image with more captions after its own; in other columns each has the value of the caption it was made from."""
    return replace(
        image,
        captions=[*image.captions, *(text for _, text in added)],
        columns={name: [*values, *(values[place] for place, _ in added)] for name, values in image.columns.items()},
        texts={name: [*lists, *([] for _ in added)] for name, lists in image.texts.items()},
    )
