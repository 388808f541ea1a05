"""Punctuation between digits: one caption or two, by the tokenizers that read them."""

from pathlib import Path

import numpy as np
import pytest

from eval.dataset.caption_rule import as_read_by, keeping_marks, merges_by_marks
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import truth_in_words, with_ground_truth
from eval.encoder.checkpoint import load_inputs
from eval.manifest.manifest import ManifestImage, read_manifest
from tests.siglip2 import write_siglip2

CASE = Path(__file__).parents[5] / "shared" / "cases" / "decimals" / "pairs.jsonl"


def dataset(*captions: str, split: str = "test") -> RetrievalSet:
    images = [ManifestImage(f"i{n}", split, Path(f"{n}.png"), None, 1, None, [text], "hand") for n, text in enumerate(captions)]
    return RetrievalSet(images, None, source="hand", split=split)


def relevant(data: RetrievalSet) -> list[list[int]]:
    return [data.positives("image_to_text").of(image).tolist() for image in range(data.num_images)]


@pytest.mark.parametrize(
    ("captions", "merged"),
    [
        (["1.5 l", "15 l"], True),
        (["1.5 l", "1,5 L"], True),
        (["1.5 l", "1.5 L!", "2.5 l"], False),
        (["15 l", "15 l."], False),
        (["\u00bd.5", "1\u20442 5"], False),
        (["A-12/3", "A-1 23"], False),
    ],
)
def test_whether_marks_make_a_difference(captions: list[str], merged: bool) -> None:
    assert merges_by_marks(captions) == merged


def test_positives_follow_the_rule() -> None:
    plain = dataset("a bottle of 1.5 l", "a bottle of 15 l", "A bottle of 1.5 l!")
    kept = keeping_marks(plain)
    assert relevant(plain) == [[0, 1, 2]] * 3 and relevant(kept) == [[0, 2], [1], [0, 2]]
    assert kept.is_positive(np.array([0, 1]), kept.caption_hash_C[[1, 1]]).tolist() == [False, True]
    assert kept.sha256() == plain.sha256() and kept.truth["digit_marks"] == "kept" and "digit_marks" not in plain.truth
    for protocol in ("all", "papers"):
        assert with_ground_truth(kept, protocol=protocol).truth["digit_marks"] == "kept"  # type: ignore[arg-type]
    assert truth_in_words(with_ground_truth(kept).truth).endswith("Punctuation between digits counts.")
    assert relevant(with_ground_truth(kept)) == relevant(with_ground_truth(kept, near_duplicates=True)) == relevant(kept)


def test_a_mark_counts_only_where_every_tokenizer_keeps_it_and_it_makes_a_difference(
    tiny_siglip: Path, tmp_path: Path, sentences: list[str]
) -> None:
    one, two = load_inputs(str(tiny_siglip)), load_inputs(str(write_siglip2(tmp_path / "siglip2", sentences)))
    stripped = load_inputs(str(tmp_path / "siglip2"), strip_punctuation=True)
    data, other = dataset("1.5 l", "a dog"), dataset("15 l", split="val")
    for inputs in ([one], [one, two], [stripped]):
        assert as_read_by(inputs, [data, other])[0] is data
    kept = as_read_by([two], [data, other])  # they differ across the splits: both follow one rule, for leakage compares them
    assert [each.keeps_marks for each in kept] == [True, True] and not np.isin(kept[0].caption_hash_C, kept[1].caption_hash_C).any()
    assert as_read_by([two], [data])[0] is data and as_read_by([two], [data], ["15 l"])[0].keeps_marks


@pytest.mark.skipif(not CASE.exists(), reason="the shared cases are not there")
def test_the_shared_case() -> None:
    data = RetrievalSet(read_manifest(CASE).images, None, source="case", split=None)
    assert relevant(data) == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [5]]
    assert relevant(keeping_marks(data)) == [[0], [1], [2], [3], [4], [5]]
