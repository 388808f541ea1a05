"""Reranked twins of several stages: named, re-ordered, and paid for once."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from eval.errors import UserError
from eval.execution import Execution
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.stages import check_top_k, reranked, reranked_stages, score_stages
from rerank.scoring.candidates import candidate_lists
from rerank.scoring.pair_scores import PairScores, ScoringCost
from tests.unit.rerank.stage_of_random_rankings import random_stage

CAPTIONS = [f"caption {c}" for c in range(6)]


class ColourScorer:
    """A formula of the picture and the text, counting the pairs and pictures it is given."""

    name, fingerprint = "colour", "colour-1"

    def __init__(self) -> None:
        self.num_pairs = 0

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        self.num_pairs += len(captions)
        return np.array([(image.getpixel((0, 0))[0] * 31 + int(caption[-1]) * 57) % 101 for caption in captions], dtype=np.float32)


def stage(name: str, seed: int, num_images: int) -> Stage:
    return random_stage(name, seed, num_images, len(CAPTIONS))


@pytest.fixture
def dataset(memory_set):
    made = memory_set(4, CAPTIONS)
    made.num_images, made.num_captions, made.split = 4, len(CAPTIONS), "test"
    return made


def test_twins_are_reranked_and_each_pair_is_scored_once(dataset) -> None:
    stages, scorer = [stage("base", 1, 4), stage("tuned", 2, 4)], ColourScorer()
    twins = reranked_stages(dataset, stages, scorer, 2, show_progress=False)
    assert [twin.name for twin in twins] == ["base+colour", "tuned+colour"]
    lists = [candidate_lists(made.rankings.values(), 2) for made in stages]
    union = lists[0].union(lists[1])
    assert scorer.num_pairs == union.num_pairs < lists[0].num_pairs + lists[1].num_pairs
    for twin, first, own in zip(twins, stages, lists, strict=True):
        assert twin.cost["pairs_needed"] == twin.cost["pairs_scored"] == own.num_pairs
        assert twin.cost["pairs_shared"] == lists[0].num_pairs + lists[1].num_pairs - union.num_pairs > 0
        assert twin.cost["images_encoded"] == own.num_images
        assert twin.cost["seconds"] == pytest.approx(1000.0 + twin.cost["rerank_seconds"])
        for direction in DIRECTIONS:
            before, after = first.rankings[direction], twin.rankings[direction]
            for query in range(before.num_queries):
                head = before.top_indices_QK[query, :2].tolist()
                pairs = [(query, item) if direction == "image_to_text" else (item, query) for item in head]
                scores = [float(ColourScorer().score(dataset.load_image(image), [CAPTIONS[caption]])[0]) for image, caption in pairs]
                expected = head if scores[0] >= scores[1] else head[::-1]
                assert after.top_indices_QK[query].tolist() == expected + before.top_indices_QK[query, 2:].tolist()


def test_each_image_is_encoded_once_for_all_stages(dataset) -> None:
    stages, heard = [stage(name, seed, 4) for name, seed in (("base", 1), ("tuned", 2), ("wise", 3))], []
    scores = score_stages(dataset, stages, ColourScorer(), 2, show_progress=False, execution=Execution(on_progress=heard.append))
    union = candidate_lists([ranking for made in stages for ranking in made.rankings.values()], 2)
    assert dataset.loaded == union.image_indices_I.tolist()
    assert np.array_equal(scores.lists.keys_N, union.keys_N)
    assert (scores.cost.pairs_scored, scores.cost.images_encoded) == (union.num_pairs, union.num_images)
    assert heard == np.diff(union.offsets).tolist()


def test_a_twin_is_charged_its_share_of_the_scoring() -> None:
    """Half the pairs, half the seconds, whoever else needed them too; the few microseconds of re-ordering come on top."""
    base, tuned = stage("base", 1, 4), stage("tuned", 2, 4)
    union = candidate_lists([*base.rankings.values(), *tuned.rankings.values()], 2)
    scores = PairScores(union, np.zeros(union.num_pairs, dtype=np.float32), ScoringCost(union.num_pairs, union.num_images, 1e6))
    for twin in reranked([base, tuned], scores, "x", 2):
        assert twin.cost["rerank_seconds"] == pytest.approx(1e6 * twin.cost["pairs_needed"] / union.num_pairs, rel=1e-4)


def test_what_is_raised_between_images_ends_the_scoring(dataset) -> None:
    class Asked(Exception):
        pass

    def leave(pairs: int) -> None:
        raise Asked

    with pytest.raises(Asked):
        reranked_stages(dataset, [stage("base", 1, 4)], ColourScorer(), 2, show_progress=False, execution=Execution(on_progress=leave))
    assert dataset.loaded == [0]


def test_sweep_comes_from_the_one_scoring(dataset) -> None:
    """At every K what a reranking with this K alone gives; at 1 the first stage, at top_k the twin itself."""
    first, scorer = stage("base", 1, 4), ColourScorer()
    (twin,) = reranked_stages(dataset, [first], scorer, 4, show_progress=False)
    assert (twin.first_stage, twin.top_k, list(twin.sweep)) == ("base", 4, [1, 2, 3, 4])
    assert scorer.num_pairs == candidate_lists(first.rankings.values(), 4).num_pairs
    for k, ranks in twin.sweep.items():
        (alone,) = reranked_stages(dataset, [first], ColourScorer(), k, show_progress=False)
        for direction in DIRECTIONS:
            assert ranks[direction].tolist() == alone.rankings[direction].best_ranks().tolist()
            assert k != 1 or ranks[direction].tolist() == first.rankings[direction].best_ranks().tolist()
            assert k != 4 or ranks[direction].tolist() == twin.rankings[direction].best_ranks().tolist()


@pytest.mark.parametrize(("num_images", "top_k", "named"), [(4, 5, "4 images"), (9, 7, "6 captions")])
def test_more_candidates_than_there_are_is_refused(dataset, num_images: int, top_k: int, named: str) -> None:
    dataset.num_images = num_images
    for ask in (lambda: check_top_k(dataset, top_k), lambda: reranked_stages(dataset, [stage("base", 1, 4)], ColourScorer(), top_k)):
        with pytest.raises(UserError, match=named):
            ask()
    check_top_k(dataset, 4)  # as many as there are is allowed
