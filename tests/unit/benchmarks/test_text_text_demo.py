"""benchmarks/text_text_demo.py: the stand-in, the text models and the page of the committed rows."""

import numpy as np
import pytest
import torch

from benchmarks.demo_table import ROOT
from benchmarks.kept_report import read_kept
from benchmarks.text_cross_encoder import CaptionPairs, cross_logits, nearest_in_words, new_cross_encoder, share_told_apart
from benchmarks.text_models import cosines_of, logits_of, mean_states
from benchmarks.text_text_demo import page, text_scores, truth_of, why_refused
from eval.dataset.retrieval_set import RetrievalSet
from eval.search.ranking import DIRECTIONS, Ranking
from eval.search.stage import Stage

KEPT = ROOT / "results" / "text-text"
TEXTS = ["a red star", "a crimson star", "a blue box", "an azure box", "a red box"]
SCENES = np.array([0, 0, 1, 1, 2])


def test_nearest_in_words_are_of_other_scenes_and_share_most() -> None:
    assert nearest_in_words(TEXTS, SCENES, 2)[[0, 2]].tolist() == [[4, 2], [4, 0]]  # "a red star": a, red; then a of "a blue box"
    assert all(SCENES[near] != SCENES[n] for n, row in enumerate(nearest_in_words(TEXTS, SCENES, 2)) for near in row)


def test_pairs_are_labelled_by_scene_and_near_misses_come_when_asked_for() -> None:
    pairs = CaptionPairs(TEXTS, SCENES, nearest_in_words(TEXTS, SCENES, 1))
    first, second, labels_N = pairs.draw(400, 1.0, np.random.default_rng(0))
    scene = dict(zip(TEXTS, SCENES.tolist(), strict=True))
    assert labels_N.tolist() == [float(scene[one] == scene[two]) for one, two in zip(first, second, strict=True)]
    assert 0.4 < labels_N.mean() < 0.6
    misses = {(one, two) for one, two, label in zip(first, second, labels_N, strict=True) if not label}
    assert ("a red star", "a red box") in misses and ("a red star", "an azure box") not in misses
    assert not {(one, two) for one, two, label in zip(first, second, labels_N, strict=True) if label and one == two and one != "a red box"}


def test_told_apart_counts_ties_as_halves() -> None:
    pairs = CaptionPairs(TEXTS, SCENES, nearest_in_words(TEXTS, SCENES, 1))
    scene = dict(zip(TEXTS, SCENES.tolist(), strict=True))

    def by_truth(first: list[str], second: list[str]) -> np.ndarray:
        return np.array([scene[one] == scene[two] for one, two in zip(first, second, strict=True)], dtype=np.float32)

    assert share_told_apart(by_truth, pairs) == {"near": 1.0, "random": 1.0}
    assert share_told_apart(lambda first, second: np.zeros(len(first), np.float32), pairs) == {"near": 0.5, "random": 0.5}
    assert share_told_apart(lambda first, second: -by_truth(first, second), pairs) == {"near": 0.0, "random": 0.0}


def test_a_picture_stands_as_the_first_caption_retrieved_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures, three captions; picture 0 is represented by caption 2, picture 1 as caption 0."""
    monkeypatch.setattr("benchmarks.text_text_demo.TOP_K", 2)
    zeros = np.zeros((3, 2), np.float32)
    tops = {"image_to_text": np.array([[2, 1], [0, 2]]), "text_to_image": np.array([[0, 1]] * 3)}
    right = {"image_to_text": (np.array([0, 1]), np.array([3, 3])), "text_to_image": (np.array([0, 0, 1]), np.array([1, 1, 2]))}
    rankings = {way: Ranking(way, tops[way], zeros[: len(tops[way])], np.arange(len(tops[way]) + 1), *right[way]) for way in DIRECTIONS}

    class Three(RetrievalSet):
        def __init__(self) -> None:
            self.captions = ["zero", "one", "two"]  # type: ignore[assignment]

    asked: list[tuple[str, str]] = []

    def score(first: list[str], second: list[str]) -> np.ndarray:
        asked.extend(zip(first, second, strict=True))
        return np.arange(len(first), dtype=np.float32)

    found = text_scores(Stage("base", rankings), Three(), score)
    assert asked == [("two", "zero"), ("two", "one"), ("two", "two"), ("zero", "zero"), ("zero", "one"), ("zero", "two")]
    assert found.lookup(np.array([0, 1]), np.array([2, 1])).tolist() == [2.0, 4.0] and found.cost.pairs_scored == 6


def test_the_truth_knows_captions_of_one_group() -> None:
    class Five(RetrievalSet):
        def __init__(self) -> None:
            self.captions, self.group_I, self.caption_image_C = TEXTS, np.array([7, 7, 9]), np.array([0, 1, 2, 2, 2])  # type: ignore[assignment]

    assert truth_of(Five())(["a red star", "a red star", "a blue box"], ["a crimson star", "a red box", "a red box"]).tolist() == [
        1.0,
        0.0,
        1.0,
    ]


def test_cosines_are_the_dense_ones() -> None:
    vectors = {text: row / np.linalg.norm(row) for text, row in zip("abc", np.random.default_rng(0).normal(size=(3, 4)), strict=True)}
    score = cosines_of(lambda texts: np.stack([vectors[text] for text in texts]))
    expected = [vectors["a"] @ vectors["b"], vectors["c"] @ vectors["c"], vectors["b"] @ vectors["a"]]
    np.testing.assert_allclose(score(["a", "c", "b"], ["b", "c", "a"]), expected, atol=1e-6)


@torch.no_grad()
def test_a_pair_scores_alone_as_among_others_and_a_mean_leaves_padding_out() -> None:
    model, tokenizer = new_cross_encoder(0)
    model.eval()
    first, second = ["a red star", "a large blue box left of a star", "a red star"], ["a box", "a star", "a box"]
    alone = [float(cross_logits(model, tokenizer, [one], [two])) for one, two in zip(first, second, strict=True)]
    np.testing.assert_allclose(logits_of(model, tokenizer)(first, second), alone, atol=1e-5)
    vectors_TD = mean_states(model.bert, tokenizer, first[:2])
    own_D = model.bert(**tokenizer(first[0], return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(vectors_TD[0], own_D / np.linalg.norm(own_D), atol=1e-5)


def test_the_product_refuses_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = new_cross_encoder(0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "never sees a picture" in why_refused([str(tmp_path)])[0]
    with pytest.raises(ValueError, match="takes it for"):
        why_refused([str(ROOT / "demo" / "models" / "blip-itm")])


def test_the_committed_page_is_that_of_its_rows() -> None:
    record, queries = read_kept(KEPT)
    assert page(record, queries) == KEPT.with_suffix(".md").read_text(encoding="utf-8")
    for stage in record["stages"]:
        for direction in ("image_to_text", "text_to_image"):
            ranks = [row["rank"] for row in queries.to_pylist() if (row["stage"], row["direction"]) == (stage, direction)]
            assert record["stages"][stage][direction]["R@1"] == pytest.approx(ranks.count(1) / len(ranks), abs=1e-12)
