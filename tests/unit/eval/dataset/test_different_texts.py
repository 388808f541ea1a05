"""The gallery of different texts, by hand, against a double loop, and against ir-measures."""

from pathlib import Path
from typing import cast

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, Success

from eval.captions import normalise
from eval.dataset.different_texts import other_gallery, with_different_texts
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import truth_in_words, with_ground_truth
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import evaluate, values_of
from eval.report.trec import write_trec
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search

# Six pictures of two products; e shows both.
ROWS = [["a mug"], ["A mug."], ["a mug", "a blue mug"], ["a hat"], ["a hat", "a mug!"], ["a hat"]]


def dataset(rows: list[list[str]] = ROWS, **columns: list[str]) -> RetrievalSet:
    images = []
    for number, captions in enumerate(rows):
        own = {name: [f"{name}-{text}" for text in captions] for name in columns}
        images.append(ManifestImage("abcdefgh"[number], "test", Path("x.png"), None, 1, None, list(captions), "hand", own))
    return RetrievalSet(images, None, source="hand", split="test")


def stage(data: RetrievalSet, cosines_IC: np.ndarray, *, depth: int = 10) -> Stage:
    """A stage whose cosines are given: images are unit vectors, and captions hold their cosine with each."""
    images = np.eye(data.num_images, dtype=np.float32)
    sides = {"image_to_text": (images, cosines_IC.T), "text_to_image": (cosines_IC.T, images)}
    rankings = {d: search(d, *map(np.ascontiguousarray, sides[d]), data.positives(d), depth) for d in DIRECTIONS}
    return Stage("model", rankings, {"seconds": 1.0, "pairs_scored": 0})


def test_each_text_once_with_the_first_captions_id_and_every_image_of_it() -> None:
    every = with_ground_truth(dataset(kind=[]))
    found = with_different_texts(every)
    assert list(found.captions) == ["a mug", "a blue mug", "a hat"] and list(found.caption_ids) == ["a#0", "c#1", "d#0"]
    assert [found.caption_id(caption) for caption in range(3)] == list(found.caption_ids)
    assert [found.positives("text_to_image").of(text).tolist() for text in range(3)] == [[0, 1, 2, 4], [2], [3, 4, 5]]
    assert [found.positives("image_to_text").of(image).tolist() for image in range(6)] == [[0], [0], [0, 1], [2], [0, 2], [2]]
    assert found.columns == {"kind": ["kind-a mug", "kind-a blue mug", "kind-a hat"]}
    assert (found.num_captions, found.num_images, found.record()["num_captions"]) == (3, 6, 3)
    assert found.sha256() == every.sha256() and found.truth["gallery"] == "different" and "gallery" not in every.truth
    assert truth_in_words(found.truth).endswith("Each normalised text is ranked, and asks, once (gallery different).")
    assert with_ground_truth(dataset(), gallery="different").captions[:] == found.captions[:]


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.sampled_from(["a dog", "A dog!", "dog", "a cat", "the cat"]), min_size=1, max_size=3), min_size=1, max_size=6),
    st.sampled_from([{}, {"near_duplicates": True}, {"protocol": "papers"}]),
)
def test_a_text_is_relevant_to_an_image_exactly_where_one_of_its_captions_is(rows: list[list[str]], rule: dict[str, str]) -> None:
    every = with_ground_truth(dataset(rows), **rule)  # type: ignore[arg-type]
    found = with_different_texts(every)
    texts = [normalise(text) for text in found.captions]
    assert texts == list(dict.fromkeys(normalise(text) for text in every.captions))
    images_P, captions_P = every.positive_pairs()
    wanted = {(image, normalise(every.captions[caption])) for image, caption in zip(images_P.tolist(), captions_P.tolist(), strict=True)}
    own = found.positives("image_to_text")
    assert {(image, texts[text]) for image in range(found.num_images) for text in own.of(image)} == wanted
    assert len(own.indices_P) == len(wanted)


def test_figures_are_those_of_ir_measures(tmp_path: Path) -> None:
    """The repeats of the mug fill the first places of a picture of a hat: rank 5 of every caption, 2 of the different ones."""
    every = with_ground_truth(dataset())
    mug, blue, hat = 0.9, 0.3, 0.5
    of_text = {"a mug": mug, "a blue mug": blue, "a hat": hat}
    every_IC = np.tile([of_text[normalise(text)] for text in every.captions], (6, 1)).astype(np.float32)
    every_IC += np.arange(6, dtype=np.float32)[:, None] / 100  # images apart from one another, as text to image asks
    found = with_different_texts(every)
    before, after = stage(every, every_IC), stage(found, every_IC[:, found.kept_captions])
    assert before.rankings["image_to_text"].best_ranks().tolist() == [1, 1, 1, 5, 1, 5]
    assert after.rankings["image_to_text"].best_ranks().tolist() == [1, 1, 1, 2, 1, 2]
    figures = evaluate(found, [after])
    write_trec(tmp_path, [after], found)
    for direction in DIRECTIONS:
        run = list(ir_measures.read_trec_run(str(tmp_path / f"model.{direction}.run")))
        qrels = list(ir_measures.read_trec_qrels(str(tmp_path / f"{direction}.qrels")))
        theirs = ir_measures.calc_aggregate([Success @ 1, Success @ 5, RR, AP], qrels, run)
        ours = figures.stages["model"][direction]
        assert [ours["R@1"], ours["R@5"], ours["MRR"]] == pytest.approx([theirs[Success @ 1], theirs[Success @ 5], theirs[RR]])
    # By hand: a mug finds its 4 pictures e, c, b, a at ranks 2, 4, 5, 6; the first of it is f's hat.
    assert after.rankings["text_to_image"].best_ranks().tolist() == [2, 4, 1]
    assert figures.stages["model"]["image_to_text"]["R@1"] == pytest.approx(4 / 6)
    assert figures.stages["model"]["text_to_image"]["median_rank"] == 2


def test_intervals_hold_where_few_images_ask() -> None:
    """One text asks, for the image it is first found under; a resample without that image says nothing, and no figure is NaN."""
    data = with_different_texts(dataset([["a mug"]] * 8))
    figures = evaluate(data, [stage(data, np.ones((8, 1), dtype=np.float32)), *_other(data)], [("other", "model")])
    for name in ("model", "other"):
        for metric, (low, high) in figures.stages[name]["text_to_image"]["ci95"].items():
            assert low == high == figures.stages[name]["text_to_image"][metric]
    assert all(np.isfinite(row["ci95"]).all() for row in figures.comparisons)


def _other(data: RetrievalSet) -> list[Stage]:
    found = stage(data, np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    return [Stage("other", found.rankings, found.cost)]


def test_slices_know_all_captions_of_an_image() -> None:
    """The image that leads no text has its captions still: one word or two, not none."""
    data = with_different_texts(with_ground_truth(dataset(kind=[])))
    figures = evaluate(data, [stage(data, np.ones((6, 3), dtype=np.float32))])
    rows = [(row["by"], row["direction"], row["bin"], row["num_queries"]) for row in figures.slices]
    assert ("captions of the image", "image_to_text", "1", 4) in rows and ("captions of the image", "image_to_text", "2", 2) in rows
    assert ("captions of the image", "text_to_image", "1", 2) in rows and ("captions of the image", "text_to_image", "2", 1) in rows
    assert ("near-duplicate captions", "text_to_image", "3", 1) in rows  # a mug is there four times
    assert ("kind", "image_to_text", "(several)", 2) in rows and ("kind", "text_to_image", "kind-a blue mug", 1) in rows


def test_the_other_gallery_is_there_where_more_than_a_tenth_repeats() -> None:
    assert other_gallery(dataset([[f"text {number}"] for number in range(8)])) is None
    tenth = [[f"text {4 * image + place}" for place in range(5 if image else 4)] for image in range(2)]
    assert other_gallery(dataset([tenth[0], [*tenth[1], "text 0"]])) is None  # one of ten is no more than a tenth
    every = dataset()
    different = cast(RetrievalSet, other_gallery(every))
    assert different.every is every and other_gallery(different) is every
    assert values_of(different, stage(different, np.ones((6, 3), dtype=np.float32)))["image_to_text"]["R@1"] > 0
