"""The ground truth, by hand and against a double loop over every image and caption."""

from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import near_duplicate_key, normalise
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import known_pairs, truth_in_words, with_ground_truth
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage

CAPTIONS = ["a dog", "The dog.", "dog", "a cat", "cat is there", "a red dog", "dog red"]


def image(name: str, captions: list[str], group: str | None = None) -> ManifestImage:
    return ManifestImage(name, "test", Path(f"{name}.png"), None, 1, group, captions, f"{name}:1")


def dataset(rows: list[tuple[list[str], str | None]]) -> RetrievalSet:
    images = [image(f"i{number:02d}", captions, group) for number, (captions, group) in enumerate(rows)]
    return RetrievalSet(images, None, source="hand", split="test")


def pairs(judged: RetrievalSet) -> set[tuple[str, str]]:
    """Every relevant (image id, caption id), found from both directions, which must agree."""
    by_image, by_caption = judged.positives("image_to_text"), judged.positives("text_to_image")
    one = {(judged.image_ids[i], judged.caption_id(c)) for i in range(judged.num_images) for c in by_image.of(i)}
    other = {(judged.image_ids[i], judged.caption_id(c)) for c in range(judged.num_captions) for i in by_caption.of(c)}
    assert one == other and len(by_image.indices_P) == len(by_caption.indices_P) == len(one)
    return one


rows = st.lists(
    st.tuples(st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=3), st.sampled_from([None, "g", "h"])), min_size=1, max_size=8
)


@settings(deadline=None)
@given(rows, st.booleans())
def test_equal_to_a_double_loop(rows: list[tuple[list[str], str | None]], near: bool) -> None:
    data = dataset(rows)
    same = near_duplicate_key if near else normalise
    expected = set()
    for i, (own, group) in enumerate(rows):
        told = {same(text) for j, (texts, other) in enumerate(rows) for text in texts if j == i or (group is not None and other == group)}
        assert own
        expected |= {(f"i{i:02d}", data.caption_id(c)) for c in range(data.num_captions) if same(data.captions[c]) in told}
    judged = with_ground_truth(data, near_duplicates=near)
    assert pairs(judged) == expected
    beyond = judged.truth["near_duplicates"]["num_pairs_beyond_the_stated"]
    assert beyond == len(pairs(with_ground_truth(data, near_duplicates=True))) - len(pairs(data))


def test_papers_count_an_images_own_captions_alone() -> None:
    data = dataset([(["a dog", "a cat"], "g"), (["a dog"], "g")])
    assert pairs(with_ground_truth(data, protocol="papers")) == {("i00", "i00#0"), ("i00", "i00#1"), ("i01", "i01#0")}
    assert len(pairs(data)) == 6
    with pytest.raises(UserError, match="leave out"):
        with_ground_truth(data, protocol="papers", near_duplicates=True)


def test_training_still_uses_the_positives_of_the_data() -> None:
    data = dataset([(["a dog"], None), (["the dog"], None)])
    judged = with_ground_truth(data, near_duplicates=True)
    assert len(pairs(judged)) == 4 and judged.truth["near_duplicates"]["num_groups"] == 1
    assert judged.is_positive(np.array([0]), data.caption_hash_C[1:]).tolist() == [False]


def test_qrels_of_either_direction_add_pairs(tmp_path: Path) -> None:
    images = [image("my photo.jpg", ["a dog"]), image("b", ["a cat"]), image("c", ["a hen"])]
    data = RetrievalSet(images, None, source="hand", split="test")
    file = tmp_path / "more.qrels"
    file.write_text(f"{quote('my photo.jpg')} 0 b#0 1\nc#0 0 b 1\nb 0 c#0 2\nc 0 my%20photo.jpg#0 0\nelsewhere 0 b#0 1\n")
    judged = with_ground_truth(data, qrels=read_qrels(file))
    assert pairs(judged) - pairs(data) == {("my photo.jpg", "b#0"), ("b", "c#0")}
    counts = judged.truth["qrels"]
    assert (counts["num_pairs"], counts["num_added"], counts["num_not_in_split"]) == (4, 2, 1)


@pytest.mark.parametrize("relevance", ["--1", "²", "٣", "1" * 5000, "1.0", "-"])
def test_a_relevance_that_is_no_whole_number_is_named_with_its_line(tmp_path: Path, relevance: str) -> None:
    (tmp_path / "more.qrels").write_text(f"a 0 b#0 1\nc 0 b#0 {relevance}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"more\.qrels:2: expected `QUERY_ID 0 ITEM_ID RELEVANCE`.*whole number"):
        read_qrels(tmp_path / "more.qrels")


def test_known_pairs_take_either_order() -> None:
    data = dataset([(["a dog"], None), (["a cat"], None)])
    for qrels in ({("i00", "i01#0")}, {("i01#0", "i00")}):
        (images, captions), unknown = known_pairs(data, qrels)
        assert (images.tolist(), captions.tolist(), unknown) == ([0], [1], [])


def test_pairs_of_unknown_ids_are_counted_and_named_in_words() -> None:
    data = dataset([(["a dog"], None), (["a cat"], None)])
    truth = with_ground_truth(data, qrels={("i00", "i01#0")} | {(f"x{n}", "i00#0") for n in range(7)}).truth
    assert "7 of its 8 pairs are not of this split, e.g. x0 i00#0, x1 i00#0, x2 i00#0, x3 i00#0, x4 i00#0)" in truth_in_words(truth)
    assert "first_not_in_split" not in with_ground_truth(data, qrels={("i00", "i01#0")}).truth["qrels"]


def test_qrels_of_another_set_are_refused_with_examples() -> None:
    data = dataset([(["a dog"], None)])
    with pytest.raises(
        UserError, match=r"none of the 7 pairs.*'x0' 'y0'.*'x4' 'y4'. Image ids look like 'i00' here, caption ids like 'i00#0'"
    ):
        with_ground_truth(data, qrels={(f"x{n}", f"y{n}") for n in range(7)})


def test_the_ground_truth_in_words() -> None:
    data = dataset([(["a dog"], None), (["the dog"], None)])
    assert "own captions alone" in truth_in_words(with_ground_truth(data, protocol="papers").truth)
    words = truth_in_words(with_ground_truth(data, near_duplicates=True, qrels={("i00", "i01#0")}).truth)
    assert "near-duplicates" in words and "0 additional pairs" in words
    assert truth_in_words(data.truth) == "Relevant: captions that equal one of any image of the image's group."
