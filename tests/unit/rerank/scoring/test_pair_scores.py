"""Pair scores: looked up, divided over processes, completed from a cache, and their cost."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.manifest import read_manifest
from eval.processes import Processes
from rerank.scorers.load import load_scorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import PairScores, ScoringCost, complete_scores, score_candidates
from rerank.scoring.score_cache import ScoreCache

NO_FAILURE = np.zeros(0, dtype=np.uint8)
NO_WARNING = NO_FAILURE
CAPTIONS = ["a dog", "the red cat", "a blue circle above a green square", "a cat sits on the dog", "the circle"]


class PixelScorer:
    """Scores a pair by a formula of one pixel and the caption's text, and counts what it is asked."""

    name = "pixel"
    fingerprint = "pixel-1"

    def __init__(self) -> None:
        self.num_scored = 0

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        self.num_scored += len(captions)
        return np.array([self.formula(image, caption) for caption in captions], dtype=np.float32)

    @staticmethod
    def formula(image: Image.Image, caption: str) -> float:
        return image.getpixel((0, 0))[0] + sum(map(ord, caption)) / 7


def lists_of(pairs: Sequence[tuple[int, int]]) -> CandidateLists:
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return CandidateLists.of_pairs(array[:, 0], array[:, 1])


@dataclass(frozen=True)
class Exchange(Processes):
    """Stands in for the processes of a job: hands out what the others put in, in rank order."""

    others: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        return [array if rank == self.rank else self.others[rank].pop(0) for rank in range(self.world_size)]


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1), st.data())
def test_lookup_finds_each_score_in_any_shape(pairs: set, data: st.DataObject) -> None:
    lists = lists_of(sorted(pairs))
    scores = PairScores(lists, np.arange(lists.num_pairs, dtype=np.float32), ScoringCost(0, 0, 0.0))
    rows = data.draw(st.lists(st.lists(st.sampled_from(sorted(pairs)), min_size=2, max_size=2), min_size=1, max_size=5))
    asked = np.array(rows)
    expected = [[sorted(pairs).index(pair) for pair in row] for row in rows]
    found = scores.lookup(asked[..., 0], asked[..., 1])
    assert found.dtype == np.float32 and found.tolist() == expected


def test_lookup_names_up_to_five_missing_pairs() -> None:
    scores = PairScores(lists_of([(1, 1)]), np.zeros(1, dtype=np.float32), ScoringCost(0, 0, 0.0))
    with pytest.raises(LookupError, match=r"7 pairs have no score.*\[\(0, 0\), \(0, 1\), \(0, 2\), \(0, 3\), \(0, 4\)\]"):
        scores.lookup(np.array([0] * 5 + [1] + [9, 9]), np.array([0, 1, 2, 3, 4, 1, 6, 7]))
    empty = PairScores(lists_of([]), np.zeros(0, dtype=np.float32), ScoringCost(0, 0, 0.0))
    with pytest.raises(LookupError, match="1 pairs"):
        empty.lookup(np.array([0]), np.array([0]))


@given(pairs=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 4))), world_size=st.integers(1, 4))
def test_every_number_of_processes_gives_the_same_scores(memory_set, pairs: set, world_size: int) -> None:
    dataset = memory_set(6, CAPTIONS)
    lists = lists_of(sorted(pairs))
    whole = complete_scores(PixelScorer(), dataset, lists)
    expected = [PixelScorer.formula(dataset.load_image(i), CAPTIONS[c]) for i, c in sorted(pairs)]
    assert np.array_equal(whole.scores_N, np.array(expected, dtype=np.float32))
    parts = [score_candidates(PixelScorer(), dataset, lists, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum(part.cost.pairs_scored for part in parts) == lists.num_pairs
    for rank in range(world_size):
        others = {r: [NO_FAILURE, NO_WARNING, part.lists.keys_N, part.scores_N, np.array([1e6 + r])] for r, part in enumerate(parts)}
        joined = complete_scores(PixelScorer(), dataset, lists, execution=Execution(processes=Exchange(rank, world_size, others=others)))
        assert np.array_equal(joined.scores_N, whole.scores_N) and np.array_equal(joined.lists.keys_N, lists.keys_N)
        assert (joined.cost.pairs_scored, joined.cost.images_encoded) == (lists.num_pairs, lists.num_images)
        if world_size > 1:
            slowest = max(r for r in range(world_size) if r != rank)
            assert joined.cost.seconds == 1e6 + slowest


def test_processes_that_lose_a_part_are_noticed(memory_set) -> None:
    dataset, lists = memory_set(2, CAPTIONS), lists_of([(0, 0), (1, 1)])
    others = {1: [NO_FAILURE, NO_WARNING, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), np.zeros(1)]}
    with pytest.raises(ValueError, match="2 pairs dealt out"):
        complete_scores(PixelScorer(), dataset, lists, execution=Execution(processes=Exchange(0, 2, others=others)))


def test_each_image_is_loaded_once_and_only_missing_pairs_are_scored(memory_set, tmp_path: Path) -> None:
    dataset, scorer, cache = memory_set(4, CAPTIONS), PixelScorer(), ScoreCache(tmp_path)
    base = lists_of([(0, 0), (0, 1), (1, 2), (2, 0)])
    tuned = lists_of([(0, 1), (0, 3), (1, 2), (3, 4), (3, 0)])
    first = complete_scores(scorer, dataset, base, cache=cache)
    assert dataset.loaded == [0, 1, 2]
    assert (first.cost.pairs_scored, first.cost.images_encoded, scorer.num_scored) == (4, 3, 4)
    assert first.cost.seconds > 0
    second = complete_scores(scorer, dataset, tuned, cache=cache)
    assert dataset.loaded == [0, 1, 2, 0, 3]  # images 1 and 2 lacked nothing
    assert (second.cost.pairs_scored, second.cost.images_encoded, scorer.num_scored) == (3, 2, 7)
    both = complete_scores(scorer, dataset, base.union(tuned), cache=cache)
    assert (both.cost.pairs_scored, both.cost.images_encoded, scorer.num_scored) == (0, 0, 7)
    afresh = complete_scores(PixelScorer(), dataset, base.union(tuned))
    assert np.array_equal(both.scores_N, afresh.scores_N) and np.array_equal(both.lists.keys_N, afresh.lists.keys_N)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_finite_names_its_pair(memory_set, value: float) -> None:
    class Broken(PixelScorer):
        def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
            scores = super().score(image, captions)
            scores[[caption == CAPTIONS[3] for caption in captions]] = value
            return scores

    dataset = memory_set(2, CAPTIONS)
    with pytest.raises(UserError, match=rf"found {value} for image 'image-1' with \['image-3#3'\]"):
        complete_scores(Broken(), dataset, lists_of([(0, 0), (1, 2), (1, 3)]))


def test_a_scorer_that_answers_in_another_shape_is_an_error(memory_set) -> None:
    class Short(PixelScorer):
        def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
            return super().score(image, captions)[1:]

    with pytest.raises(ValueError, match="one score per caption"):
        complete_scores(Short(), memory_set(1, CAPTIONS), lists_of([(0, 0), (0, 1)]))


def test_blip_scores_are_the_same_bits_at_one_two_and_three_processes(tiny_blip: Path, memory_set) -> None:
    dataset = memory_set(5, CAPTIONS)
    lists = lists_of([(i, c) for i in range(5) for c in range(5) if (i + c) % 3])
    scorer = load_scorer(str(tiny_blip), device="cpu")
    whole = complete_scores(scorer, dataset, lists)
    for world_size in (2, 3):
        parts = [score_candidates(scorer, dataset, lists, rank=rank, world_size=world_size) for rank in range(world_size)]
        for part in parts:
            assert np.array_equal(part.scores_N, whole.lookup(part.lists.image_of_pair_N, part.lists.caption_indices_N))
    assert np.array_equal(complete_scores(scorer, dataset, lists, execution=Execution(processes=Processes())).scores_N, whole.scores_N)


def test_the_bar_counts_pairs(memory_set, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.progress.LOG_SECONDS", 0.0)  # every update is said, however quick
    complete_scores(PixelScorer(), memory_set(2, CAPTIONS), lists_of([(0, 0), (1, 1), (1, 2)]), progress=True)
    shown = capsys.readouterr().err
    assert "rerank pixel" in shown and "pair" in shown
    assert [part in shown for part in ("1 of 3", "2 of 3", "3 of 3")] == [True, False, True]  # a picture at a time
    complete_scores(PixelScorer(), memory_set(2, CAPTIONS), lists_of([(0, 0)]))
    assert capsys.readouterr().err == ""


def test_workers_prepare_pictures_and_change_no_bit(tiny_blip: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(draws.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(tmp_path / f"{number:02}.png")
    rows = [{"image": f"{number:02}.png", "captions": CAPTIONS} for number in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_split(read_manifest(str(tmp_path / "rows.jsonl")), None)
    lists = lists_of([(image, 5 * image + place) for image in range(12) for place in (0, 1, 3)])
    scorer, opened = load_scorer(str(tiny_blip), device="cpu"), list[int]()
    alone = complete_scores(scorer, dataset, lists)
    load = dataset.load_image
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(dataset), "load_image", lambda self, image: opened.append(image) or load(image))
        cache = ScoreCache(tmp_path / "cache")
        helped = complete_scores(scorer, dataset, lists, cache=cache, execution=Execution(num_workers=2))
        assert helped.scores_N.tobytes() == alone.scores_N.tobytes() and opened == [], "this process opens none"
        found = complete_scores(scorer, dataset, lists, cache=cache)
        assert found.scores_N.tobytes() == alone.scores_N.tobytes() and opened == [], "nor are cached scores' pictures opened"
    (tmp_path / "09.png").write_bytes(b"no picture")
    heard: list[int] = []
    for workers in (0, 2):
        with pytest.raises(ImageError, match=r"09\.png: cannot be decoded: no picture of a known format"):
            complete_scores(scorer, dataset, lists, execution=Execution(num_workers=workers, on_progress=heard.append))
    assert heard == ([3] * 9 + [0] * 3) * 2, "what is before it is scored, and each round is told of"


def test_a_device_begins_a_picture_before_it_is_asked_for_the_one_before(memory_set) -> None:
    told: list[str] = []

    class Device(PixelScorer):
        num_ahead = 1

        def prepare(self, image: Image.Image) -> Image.Image:
            return image

        def begin(self, image: Image.Image, captions: Sequence[str]) -> Callable[[], np.ndarray]:
            number = len(told)
            told.append(f"begin {number}")
            scores = self.score(image, captions)
            return lambda: told.append(f"take {number}") or scores  # type: ignore[func-returns-value]

    lists = lists_of([(0, 0), (0, 1), (1, 2), (2, 3)])
    found = complete_scores(Device(), memory_set(3, CAPTIONS), lists)
    assert told == ["begin 0", "begin 1", "take 0", "begin 3", "take 1", "take 3"]
    assert found.scores_N.tobytes() == complete_scores(PixelScorer(), memory_set(3, CAPTIONS), lists).scores_N.tobytes()
