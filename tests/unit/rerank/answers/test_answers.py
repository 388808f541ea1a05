"""The first stage and the final lists, against sorting everything and against the reranking of an evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SiglipModel

from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError, WriteError
from eval.search.ranking import DIRECTIONS, Ranking
from rerank.answers.answers import Answers, fitting_budget, pairs_to_score, reranked_answers, within_budget
from rerank.answers.collection import Collection, read_collection
from rerank.answers.first_stage import FirstAnswers, find_first
from rerank.reorder.reorder import rerank
from rerank.reorder.skipping import rerank_within
from rerank.scorers.load import load_scorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import PairScores, ScoringCost
from tests.small_job import SmallWorld

NUM_PICTURES, TOP_K = 9, 5


@pytest.fixture(scope="module")
def photos(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, and captions.txt with more captions than pictures."""
    root = tmp_path_factory.mktemp("photos")
    for path in sorted((small_world.manifest.parent / "pictures").glob("val-*.png"))[:NUM_PICTURES]:
        (root / path.name).write_bytes(path.read_bytes())
    captions = [f"a {colour} {shape}" for colour in ("red", "green", "blue", "purple") for shape in ("circle", "square", "bar")]
    (root / "captions.txt").write_text("\n".join(captions))
    return root


def collection_of(folder: Path) -> Collection:
    return read_collection(str(folder), str(folder / "captions.txt"))


@pytest.fixture(scope="module")
def siglip(small_world: SmallWorld) -> tuple:
    return load_siglip(small_world.base)


@pytest.fixture(scope="module")
def found(photos: Path, siglip: tuple) -> FirstAnswers:
    return find_first(*siglip, collection_of(photos), DIRECTIONS, TOP_K)


def test_the_first_stage_is_the_top_k_of_everything_sorted(found: FirstAnswers, siglip: tuple) -> None:
    collection = found.collection
    images_ID, captions_CD = embed_images(*siglip, collection), embed_captions(*siglip, collection.captions)
    cosines_IC = images_ID.astype(np.float64) @ captions_CD.T.astype(np.float64)
    for direction, cosines_QN in (("image_to_text", cosines_IC), ("text_to_image", cosines_IC.T)):
        ranking = found.rankings[direction]
        order_QK = np.argsort(-cosines_QN, axis=1, kind="stable")[:, :TOP_K]
        np.testing.assert_array_equal(ranking.top_indices_QK, order_QK)
        np.testing.assert_allclose(ranking.top_scores_QK, np.take_along_axis(cosines_QN, order_QK, axis=1), atol=2e-6)
        assert len(ranking.positive_ranks_P) == 0, "nobody said what is right"


def test_logits_are_plain_transformers_own(found: FirstAnswers, siglip: tuple, small_world: SmallWorld) -> None:
    model, inputs = SiglipModel.from_pretrained(small_world.base, dtype=torch.float32).eval(), siglip[1]
    pixels = torch.stack([inputs.pixels(found.collection.load_image(image)) for image in range(NUM_PICTURES)])
    with torch.no_grad():
        logits_IC = model(input_ids=inputs.token_ids(found.collection.captions), pixel_values=pixels).logits_per_image.numpy()
    ranking = found.rankings["image_to_text"]
    ours = found.logits(ranking.top_scores_QK)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, np.take_along_axis(logits_IC, ranking.top_indices_QK, axis=1), atol=2e-4)


def test_there_are_at_most_as_many_answers_as_there_are(photos: Path, siglip: tuple) -> None:
    deep = find_first(*siglip, collection_of(photos), DIRECTIONS, 1000)
    assert [deep.rankings[one].top_indices_QK.shape for one in DIRECTIONS] == [(NUM_PICTURES, 12), (12, NUM_PICTURES)]
    assert (np.sort(deep.rankings["text_to_image"].top_indices_QK, axis=1) == np.arange(NUM_PICTURES)).all()
    assert list(find_first(*siglip, collection_of(photos), ["text_to_image"], 3).rankings) == ["text_to_image"]


def copied(photos: Path, folder: Path, broken: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    for path in photos.iterdir():
        if path.name not in missing:
            (folder / path.name).write_bytes(b"no picture" if path.name in broken else path.read_bytes())
    return folder


BROKEN = ("val-000.png", "val-004.png")


def test_pictures_that_do_not_decode_are_left_out_as_if_they_were_not_there(photos: Path, siglip: tuple, tmp_path: Path) -> None:
    damaged = collection_of(copied(photos, tmp_path / "damaged", broken=BROKEN))
    left = find_first(*siglip, damaged, DIRECTIONS, TOP_K, skip_broken=True)
    clean = find_first(*siglip, collection_of(copied(photos, tmp_path / "clean", missing=BROKEN)), DIRECTIONS, TOP_K)
    assert left.broken == list(BROKEN) and clean.broken == []
    assert list(left.collection.image_ids) == list(clean.collection.image_ids)
    for direction in DIRECTIONS:
        np.testing.assert_array_equal(left.rankings[direction].top_indices_QK, clean.rankings[direction].top_indices_QK)
        np.testing.assert_array_equal(left.rankings[direction].top_scores_QK, clean.rankings[direction].top_scores_QK)
    assert "val-000.png: cannot be decoded" in damaged.skipped(0).reason


def test_otherwise_they_are_refused_by_name_with_the_remedy(photos: Path, siglip: tuple, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val-000\.png: cannot be decoded.*val-004\.png.*give --skip-broken"):
        find_first(*siglip, collection_of(copied(photos, tmp_path / "damaged", broken=BROKEN)), DIRECTIONS, TOP_K)
    everything = tuple(path.name for path in photos.glob("*.png"))
    with pytest.raises(UserError, match="not one of its 9 pictures decodes"):
        find_first(*siglip, collection_of(copied(photos, tmp_path / "all", broken=everything)), DIRECTIONS, 2, skip_broken=True)


def test_where_there_is_no_room_for_embeddings_the_place_is_named(photos: Path, siglip: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")  # a folder in which no file can be made
    with pytest.raises(WriteError, match="could not write the embeddings to /proc/self.*TMPDIR"):
        find_first(*siglip, collection_of(photos), DIRECTIONS, TOP_K)


@pytest.fixture(scope="module")
def reranked(found: FirstAnswers, tiny_blip: Path) -> tuple[list[Answers], PairScores]:
    return reranked_answers(found, load_scorer(str(tiny_blip), device="cpu"))


def test_the_final_order_is_that_of_an_evaluations_reranking(found: FirstAnswers, reranked: tuple, tiny_blip: Path) -> None:
    answers, scores = reranked
    for one in answers:
        first = found.rankings[one.direction]
        again = rerank(first, scores, TOP_K)
        np.testing.assert_array_equal(one.indices_QK, again.top_indices_QK)
        np.testing.assert_array_equal(one.rerank_scores_QK, again.top_scores_QK)
        places = one.first_ranks_QK - 1
        np.testing.assert_array_equal(np.take_along_axis(first.top_indices_QK, places, axis=1), one.indices_QK)
        np.testing.assert_array_equal(np.take_along_axis(first.top_scores_QK, places, axis=1), one.cosines_QK)
    captions = found.collection.captions
    alone = load_scorer(str(tiny_blip)).score(found.collection.load_image(3), [captions[int(c)] for c in answers[0].indices_QK[3]])
    np.testing.assert_allclose(answers[0].rerank_scores_QK[3], alone, atol=1e-5)
    assert (np.diff(alone) < 1e-5).all() and answers[0].num_changed > 0


def test_what_trails_by_the_margin_is_not_scored_and_keeps_its_place(found: FirstAnswers, reranked: tuple, tiny_blip: Path) -> None:
    cosines_QK = found.rankings["image_to_text"].top_scores_QK
    margin = float(np.median(cosines_QK[:, 0] - cosines_QK[:, 2]))
    answers, scores = reranked_answers(found, load_scorer(str(tiny_blip), device="cpu"), skip_margin=margin)
    assert 0 < scores.cost.pairs_scored < reranked[1].cost.pairs_scored
    for one, full in zip(answers, reranked[0], strict=True):
        first = found.rankings[one.direction]
        np.testing.assert_array_equal(one.indices_QK, rerank_within(first, reranked[1], TOP_K, margin).top_indices_QK)
        is_scored_QK = np.isfinite(one.rerank_scores_QK)
        num_scored_Q = is_scored_QK.sum(axis=1)
        assert len(set(num_scored_Q.tolist())) > 1 and 1 not in num_scored_Q
        for query, num in enumerate(num_scored_Q.tolist()):
            np.testing.assert_array_equal(one.first_ranks_QK[query, num:], np.arange(num + 1, TOP_K + 1))
            known = dict(zip(full.indices_QK[query].tolist(), full.rerank_scores_QK[query].tolist(), strict=True))
            scored = one.indices_QK[query, :num].tolist()
            np.testing.assert_allclose(one.rerank_scores_QK[query, :num], [known[item] for item in scored], atol=1e-5)


def test_a_time_budget_cuts_the_lists(found: FirstAnswers, tiny_blip: Path) -> None:
    scorer = load_scorer(str(tiny_blip), device="cpu")
    everything = fitting_budget(found, scorer, 1e6)
    assert everything.top_k == TOP_K
    cut = within_budget(found, replace(everything, top_k=2))
    for direction in DIRECTIONS:
        np.testing.assert_array_equal(cut.rankings[direction].top_indices_QK, found.rankings[direction].top_indices_QK[:, :2])
    with pytest.raises(UserError, match="too few to rerank in"):
        fitting_budget(found, scorer, 1e-9)


def test_a_pair_of_both_directions_is_scored_once(found: FirstAnswers, reranked: tuple) -> None:
    asked = {(int(i), int(c)) for i, row in enumerate(found.rankings["image_to_text"].top_indices_QK) for c in row}
    asked |= {(int(i), int(c)) for c, row in enumerate(found.rankings["text_to_image"].top_indices_QK) for i in row}
    lists = pairs_to_score(list(found.rankings.values()))
    assert set(zip(lists.image_of_pair_N.tolist(), lists.caption_indices_N.tolist(), strict=True)) == asked
    assert reranked[1].cost.pairs_scored == len(asked) < NUM_PICTURES * TOP_K + 12 * TOP_K


def test_without_a_reranker_the_list_is_the_first_stages(found: FirstAnswers) -> None:
    one = Answers.of(found.rankings["image_to_text"], None)
    assert one.rerank_scores_QK is None and one.num_changed == 0 and (one.num_queries, one.depth) == (NUM_PICTURES, TOP_K)
    np.testing.assert_array_equal(one.indices_QK, found.rankings["image_to_text"].top_indices_QK)
    np.testing.assert_array_equal(one.first_ranks_QK[4], np.arange(1, TOP_K + 1))


@given(st.lists(st.lists(st.integers(-2, 2), min_size=4, max_size=4), min_size=1, max_size=6), st.integers(0, 7))
def test_equal_scores_keep_their_order_and_what_moved_most_comes_first(scores: list[list[int]], count: int) -> None:
    num_queries = len(scores)
    first = Ranking(
        "image_to_text",
        np.tile(np.array([3, 1, 0, 2]), (num_queries, 1)),
        np.tile(np.array([0.9, 0.5, 0.4, 0.1], dtype=np.float32), (num_queries, 1)),
        *(np.zeros(size, dtype=np.int64) for size in (num_queries + 1, 0, 0)),
    )
    lists = CandidateLists.of_pairs(np.repeat(np.arange(num_queries), 4), np.tile(np.arange(4), num_queries))
    known = PairScores(lists, np.array(scores, dtype=np.float32).reshape(-1), ScoringCost(0, 0, 0.0))
    answers = Answers.of(first, known)
    ranks = []
    for query, row in enumerate(scores):
        order = sorted(range(4), key=lambda place, row=row: (-row[[3, 1, 0, 2][place]], place))
        ranks.append([place + 1 for place in order])
        assert answers.indices_QK[query].tolist() == [[3, 1, 0, 2][place] for place in order]
    assert answers.first_ranks_QK.tolist() == ranks
    assert answers.num_changed == sum(row[0] != 1 for row in ranks)
    moved = [sum(abs(rank - place) for place, rank in enumerate(row, 1)) for row in ranks]
    wanted = sorted(range(num_queries), key=lambda query: (-ranks[query][0], -moved[query], query))
    assert answers.most_moved(count).tolist() == wanted[:count]
