"""Expansions as further true captions of the train split (data.expand): positives wherever a true caption is one.

A further caption stands behind an image's own, so the ids of those stay. It is in the hashes, so it is never mined for its image, is +1 in
the loss, and is drawn in its turn (`train.data.order.chosen_caption`); val and test stay as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.manifest import Manifest, ManifestImage
from rerank.expansions.parse import Expansion, FurtherTexts, ImageCaptions, TextExpansion, parse_expansion


def parse_expansions(asked: Sequence[str]) -> list[TextExpansion]:
    """The ways of expanding that data.expand names, their files read.

    Raises:
        UserError: one is none, is no way to expand texts, or its files cannot be used; with every fault of all of them.
    """
    found, faults = [], []
    for text in asked:
        try:
            expansion: Expansion = parse_expansion(text)
            if isinstance(expansion, TextExpansion):
                found.append(expansion)
            else:
                faults.append(
                    f"{text}: expected a way to expand texts, found views of pictures; train.random_crop_min_area crops in training"
                )
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(f"data.expand: {fault}" for fault in faults))
    return found


def expanded(
    manifest: Manifest, split: str | None, dataset: RetrievalSet, expansions: Sequence[TextExpansion]
) -> tuple[RetrievalSet, list[str]]:
    """The split with its further captions, and a line for each expansion that says how many it brought.

    Args:
        dataset: the split as the manifest has it; what was said once is not said again by a later expansion.

    Raises:
        UserError: an expansion has nothing to say of the split, or a model cannot be used.
    """
    images = sorted((image for image in manifest.images if image.split == split), key=lambda image: image.id)
    lines = []
    known = [{normalise(caption) for caption in image.captions} for image in images]
    for expansion in expansions:
        try:
            further = expansion.of(dataset)
        except UserError as error:
            raise UserError(f"data.expand: {error}") from error
        num_captions, num_images = 0, 0
        for number, said in enumerate(_of_images(dataset, further)):
            fresh: dict[str, tuple[int, str]] = {}
            for place, text in said:
                if normalise(text) not in known[number]:
                    fresh.setdefault(normalise(text), (place, text))
            images[number] = _with_captions(images[number], list(fresh.values()))
            known[number] |= fresh.keys()
            num_captions += len(fresh)
            num_images += bool(fresh)
        lines.append(f"expand    {num_captions:,} further captions for {num_images:,} images by {expansion.source}")
    return RetrievalSet(images, manifest, source=manifest.source, split=split), lines


def _of_images(dataset: RetrievalSet, further: FurtherTexts) -> Iterator[list[tuple[int, str]]]:
    """Of each image what is said of it: (place among its own captions, text), caption after caption.

    What is said of a caption is said of every image that has it: else it could be mined as a negative of the others.
    """
    by_hash = {} if isinstance(further, ImageCaptions) else _by_hash(dataset, further)
    for image in range(dataset.num_images):
        if isinstance(further, ImageCaptions):
            yield [(0, text) for text in further.of(image)]
            continue
        start, end = int(dataset.caption_offsets[image]), int(dataset.caption_offsets[image + 1])
        yield [(caption - start, text) for caption in range(start, end) for text in by_hash[int(dataset.caption_hash_C[caption])]]


def _by_hash(dataset: RetrievalSet, further: FurtherTexts) -> dict[int, list[str]]:
    """What is said of any caption of a normalised text, by its hash: the same is true wherever that text is."""
    found: dict[int, list[str]] = {}
    for caption, key in enumerate(dataset.caption_hash_C.tolist()):
        found.setdefault(key, []).extend(further.of(caption))
    return {key: list(dict.fromkeys(texts)) for key, texts in found.items()}


def _with_captions(image: ManifestImage, further: list[tuple[int, str]]) -> ManifestImage:
    """The image with captions behind its own; in a further column each has the value of the caption it was made of."""
    return replace(
        image,
        captions=[*image.captions, *(text for _, text in further)],
        columns={name: [*values, *(values[place] for place, _ in further)] for name, values in image.columns.items()},
        texts={name: [*lists, *([] for _ in further)] for name, lists in image.texts.items()},
    )
