"""Which (image, caption) pairs are relevant: the rule of docs/captions.md by default, and the others a person can ask for, each recorded.

Shape letters: P pairs, C captions.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Literal
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np

from eval.captions import RULE, near_duplicate_groups
from eval.dataset.different_texts import Gallery, with_different_texts
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet, matching_pairs
from eval.errors import UserError

Protocol = Literal["all", "papers"]
_MOST_NAMED = 5


def with_ground_truth(
    dataset: RetrievalSet,
    *,
    protocol: Protocol = "all",
    near_duplicates: bool = False,
    qrels: Collection[tuple[str, str]] | None = None,
    gallery: Gallery = "every",
) -> RetrievalSet:
    """The data set with the chosen ground truth and gallery, described in its `truth`.

    Args:
        protocol: "all": the caption equals one of any image of the image's group (docs/captions.md); "papers": an image's own captions
            alone, as in published tables.
        near_duplicates: captions of one near-duplicate group count as one caption.
        qrels: additional positive (query id, item id) pairs of either direction, used in both (ECCV Caption, arXiv 2204.03359; CxC,
            arXiv 2004.15020).
        gallery: "different": repeats of a normalised text are left out (eval/dataset/different_texts.py).

    Raises:
        UserError: none of the qrels' ids are in the split, or protocol "papers" is combined with near_duplicates or qrels.
    """
    found = _with_relevant(dataset, protocol, near_duplicates, qrels)
    return with_different_texts(found) if gallery == "different" else found


def _with_relevant(
    dataset: RetrievalSet, protocol: Protocol, near_duplicates: bool, qrels: Collection[tuple[str, str]] | None
) -> RetrievalSet:
    """The data set with the chosen relevant items; arguments and errors as of `with_ground_truth`."""
    marks = {"digit_marks": "kept"} if dataset.keeps_marks else {}
    if protocol == "papers":
        if near_duplicates or qrels is not None:
            raise UserError(
                "protocol 'papers' counts an image's own captions alone; leave out near_duplicates and qrels, or take protocol 'all'"
            )
        captions_C = np.arange(dataset.num_captions)
        return dataset.with_positive_pairs(dataset.caption_image_C, captions_C, {"protocol": "papers"} | marks)
    group_C = near_duplicate_groups(dataset.captions, keeps_marks=dataset.keeps_marks)
    sizes = np.bincount(group_C)
    stated_P = dataset.positive_pairs()
    wider_P = matching_pairs(dataset.group_I, group_C, GroupHashes(dataset.group_I[dataset.caption_image_C], group_C))
    images_P, captions_P = wider_P if near_duplicates else stated_P
    record = {
        "rule": RULE,
        "num_groups": int((sizes > 1).sum()),
        "num_captions": int(sizes[sizes > 1].sum()),
        "num_pairs_beyond_the_stated": len(wider_P[0]) - len(stated_P[0]),
        "counted_as_right": near_duplicates,
    }
    truth: dict[str, Any] = {"protocol": "all", "near_duplicates": record} | marks
    if qrels is not None:
        extra_P, unknown = known_pairs(dataset, qrels)
        before = len(images_P)
        codes = [images * dataset.num_captions + captions for images, captions in ((images_P, captions_P), extra_P)]
        union_P = np.union1d(*codes)
        images_P, captions_P = union_P // dataset.num_captions, union_P % dataset.num_captions
        digest = hashlib.sha256("\n".join(sorted(f"{query} {item}" for query, item in qrels)).encode()).hexdigest()
        counts = {"num_pairs": len(qrels), "num_added": len(images_P) - before, "num_not_in_split": len(unknown)}
        first = {"first_not_in_split": [list(pair) for pair in unknown[:_MOST_NAMED]]} if unknown else {}
        truth["qrels"] = counts | first | {"sha256": digest}
    return dataset.with_positive_pairs(images_P, captions_P, truth)


def truth_in_words(truth: dict[str, Any]) -> str:
    """One sentence on which items are relevant, from a report's `data.truth`."""
    gallery = " Each normalised text is ranked, and asks, once (gallery different)." if truth.get("gallery") == "different" else ""
    if truth.get("protocol") == "papers":
        return f"Relevant: an image's own captions alone (protocol papers).{gallery}"
    words = "Relevant: captions that equal one of any image of the image's group"
    if truth.get("near_duplicates", {}).get("counted_as_right"):
        words += ", near-duplicates of them"
    if qrels := truth.get("qrels"):
        words += f", and {qrels['num_added']:,} additional pairs of a qrels file"
        if first := qrels.get("first_not_in_split"):
            named = ", ".join(f"{query} {item}" for query, item in first)
            words += f" ({qrels['num_not_in_split']:,} of its {qrels['num_pairs']:,} pairs are not of this split, e.g. {named})"
    marks = " Punctuation between digits counts." if truth.get("digit_marks") else ""
    return f"{words}.{marks}{gallery}"


def known_pairs(dataset: RetrievalSet, qrels: Collection[tuple[str, str]]) -> tuple[tuple[np.ndarray, np.ndarray], list[tuple[str, str]]]:
    """(images, captions) of the pairs whose ids are both in the split, in either order, and the others, sorted.

    An id with blanks is percent-encoded in a TREC file ("my%20photo.jpg"), and one that Unicode composes otherwise (NFC, NFD) is the same.

    Raises:
        UserError: there are pairs, but none of the split.
    """
    image_number, caption_number = _numbers(dataset.image_ids), _numbers(dataset.caption_ids)
    pairs, unknown = [], []
    for query, item in qrels:
        for image, caption in ((query, item), (item, query)):
            found = (_find(image_number, image), _find(caption_number, caption))
            if None not in found:
                pairs.append(found)
                break
        else:
            unknown.append((query, item))
    if qrels and not pairs:
        examples = ", ".join(f"{query!r} {item!r}" for query, item in sorted(qrels)[:_MOST_NAMED])
        raise UserError(
            f"none of the {len(qrels)} pairs of the qrels file are of split {dataset.split!r}, e.g. {examples}. Image ids look like "
            f"{dataset.image_ids[0]!r} here, caption ids like {dataset.caption_id(0)!r}"
        )
    known_P2 = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return (known_P2[:, 0], known_P2[:, 1]), sorted(unknown)


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """The number of each name, and of its composed form where that is no other's name."""
    exact = {name: number for number, name in enumerate(names)}
    return {normalize("NFC", name): number for name, number in exact.items() if not name.isascii()} | exact


def _find(numbers: dict[str, int], name: str) -> int | None:
    forms = (name, unquote(name), normalize("NFC", unquote(name)))
    return next((numbers[form] for form in forms if form in numbers), None)
