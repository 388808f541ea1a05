"""Scorings with a score cache: whatever was cached, damaged or edited in between, the scores are those of an undisturbed scoring."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.choices.choice_set import ChoiceImage
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.errors import UserError, WriteError
from eval.execution import Execution
from eval.manifest.manifest import read_manifest
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scoring.candidates import CandidateLists, candidate_lists
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ImageList, ScoreCache, ScoreDatabase
from tests.unit.rerank.stage_of_random_rankings import random_stage

CAPTIONS = [f"caption {number}" for number in range(6)]
NUM_IMAGES = 5


class FormulaScorer:
    """A formula of a pixel and the text that also depends, in its last bits, on how many captions it is given at once, as BLIP's may."""

    name = "formula"

    def __init__(self, fingerprint: str = "formula-1") -> None:
        self.fingerprint, self.asked = fingerprint, []

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        pixel = image.getpixel((0, 0))[0]
        self.asked += [(pixel, caption) for caption in captions]
        scores = np.array([pixel + sum(map(ord, caption)) / 7 for caption in captions], dtype=np.float32)
        return scores + np.float32(2**-10) * len(captions)


@dataclass
class Colours:
    """A data set in memory: picture i is of colour i + 1."""

    captions: list[str] = field(default_factory=lambda: list(CAPTIONS))
    colours: list[int] = field(default_factory=lambda: list(range(1, NUM_IMAGES + 1)))

    @property
    def image_ids(self) -> list[str]:
        return [f"image {i}" for i in range(len(self.colours))]

    @property
    def caption_ids(self) -> list[str]:
        return self.captions

    def load_image(self, image: int) -> Image.Image:
        return Image.new("RGB", (2, 2), (self.colours[image], 0, 0))

    def image_digest(self, image: int) -> bytes:
        return hashlib.sha256(self.load_image(image).tobytes()).digest()


def lists_of(pairs: Sequence[tuple[int, int]]) -> CandidateLists:
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return CandidateLists.of_pairs(array[:, 0], array[:, 1])


def straight(lists: CandidateLists, dataset: Colours | RetrievalSet | None = None) -> PairScores:
    return complete_scores(FormulaScorer(), dataset or Colours(), lists)


some_lists = st.sets(st.tuples(st.integers(0, NUM_IMAGES - 1), st.integers(0, len(CAPTIONS) - 1)), min_size=1).map(sorted)
damages = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["flip", "cut", "zeros", "gone"])), max_size=3)


def damage(folder: Path, where: int, how: str) -> None:
    """Damage one of the databases that hold something."""
    paths = sorted(path for path in folder.rglob("*.sqlite") if path.stat().st_size)
    if not paths:
        return
    path = paths[where % len(paths)]
    data = path.read_bytes()
    place = where % len(data)
    if how == "gone":
        path.unlink()
    else:
        tail = {"cut": b"", "zeros": bytes(len(data) - place), "flip": bytes([data[place] ^ 4]) + data[place + 1 :]}[how]
        path.write_bytes(data[:place] + tail)


@pytest.mark.slow
@settings(deadline=None)
@given(steps=st.lists(st.tuples(some_lists, damages), min_size=1, max_size=5), last=some_lists)
def test_any_history_gives_the_straight_scores_but_for_what_was_asked_in_other_lists(tmp_path_factory, steps: list, last: list) -> None:
    """Runs of any lists, with damage between them; every score is the formula's, and no pair is scored that was known."""
    folder, known, was_damaged = tmp_path_factory.mktemp("cache"), lists_of([]), False
    for pairs, bad in [*steps, (last, []), (last, [])]:
        scorer, lists = FormulaScorer(), lists_of(pairs)
        scores = complete_scores(scorer, Colours(), lists, cache=ScoreCache(folder, log=lambda text: None))
        assert np.array_equal(scores.lists.keys_N, lists.keys_N)
        np.testing.assert_allclose(scores.scores_N, straight(lists).scores_N, atol=2**-10 * len(CAPTIONS))
        scored = lists.difference(scores.cached)
        asked = zip(scored.image_of_pair_N, scored.caption_indices_N, strict=True)
        assert scorer.asked == [(image + 1, CAPTIONS[caption]) for image, caption in asked]
        assert (scores.cost.pairs_scored, scores.cost.images_encoded) == (scored.num_pairs, scored.num_images)
        assert was_damaged or np.array_equal(scored.keys_N, lists.difference(known).keys_N)
        known, was_damaged = known.union(lists), was_damaged or bool(bad)
        for where, how in bad:
            damage(folder, where, how)
    assert scorer.asked == []


@settings(deadline=None)
@given(pairs=some_lists, rounds=st.lists(damages, min_size=1, max_size=4))
def test_the_same_lists_give_the_same_bits_whatever_was_lost_in_between(tmp_path_factory, pairs: list, rounds: list) -> None:
    """An image's list is known whole or not at all: it is never scored in two batches."""
    folder, lists = tmp_path_factory.mktemp("cache"), lists_of(pairs)
    for bad in rounds:
        scores = complete_scores(FormulaScorer(), Colours(), lists, cache=ScoreCache(folder, log=lambda text: None))
        assert np.array_equal(scores.scores_N, straight(lists).scores_N)
        for where, how in bad:
            damage(folder, where, how)


def test_what_ends_a_scoring_between_images_costs_no_image_that_was_done(tmp_path: Path) -> None:
    class Asked(Exception):
        pass

    lists = lists_of([(i, c) for i in range(NUM_IMAGES) for c in range(i + 1)])
    heard: list[int] = []

    def leave(pairs: int) -> None:
        heard.append(pairs)
        if len(heard) == 3:
            raise Asked

    with pytest.raises(Asked):
        complete_scores(FormulaScorer(), Colours(), lists, cache=ScoreCache(tmp_path), execution=Execution(on_progress=leave))
    assert heard == [1, 2, 3]
    after = FormulaScorer()
    scores = complete_scores(after, Colours(), lists, cache=ScoreCache(tmp_path))
    assert np.array_equal(scores.scores_N, straight(lists).scores_N)
    assert {pixel for pixel, _ in after.asked} == {4, 5} and len(after.asked) == 9 and scores.cached.num_pairs == 6


def test_a_larger_k_and_another_first_stage_score_only_what_is_new(tmp_path: Path) -> None:
    from rerank.reorder.stages import reranked_stages

    dataset, base, tuned = (
        Colours(),
        random_stage("base", 1, NUM_IMAGES, len(CAPTIONS)),
        random_stage("tuned", 2, NUM_IMAGES, len(CAPTIONS)),
    )
    dataset.num_images, dataset.num_captions, dataset.split = NUM_IMAGES, len(CAPTIONS), "test"
    known, asked = lists_of([]), 0
    for stages, top_k in (([base], 2), ([base], 3), ([base, tuned], 3), ([tuned], 2)):
        scorer = FormulaScorer()
        reranked = reranked_stages(dataset, stages, scorer, top_k, cache=ScoreCache(tmp_path), show_progress=False)
        own = [candidate_lists(stage.rankings.values(), top_k) for stage in stages]
        for stage, lists in zip(reranked, own, strict=True):
            new = lists.difference(known)
            assert (stage.cost["pairs_needed"], stage.cost["pairs_scored"]) == (lists.num_pairs, new.num_pairs)
            assert stage.cost["pairs_kept"] == lists.num_pairs - new.num_pairs and stage.cost["images_encoded"] == new.num_images
        union = known.union(*own)
        assert len(scorer.asked) == union.num_pairs - known.num_pairs
        known, asked = union, asked + len(scorer.asked)
    assert asked == known.num_pairs and scorer.asked == []


def test_captions_with_the_same_text_are_scored_once_and_alike(tmp_path: Path) -> None:
    dataset, lists = Colours(captions=["a dog", "a cat", "a dog"]), lists_of([(0, 0), (0, 1), (0, 2)])
    for cache in (ScoreCache(tmp_path), ScoreCache(tmp_path), None):
        scores = complete_scores(scorer := FormulaScorer(), dataset, lists, cache=cache)
        assert scores.scores_N[0] == scores.scores_N[2]
        assert np.array_equal(scores.scores_N, straight(lists, dataset).scores_N)
        assert scorer.asked in ([(1, "a dog"), (1, "a cat")], [])


def test_another_fingerprint_knows_nothing(tmp_path: Path) -> None:
    lists = lists_of([(0, 0), (1, 1)])
    for fingerprint in ("formula-1", "formula-2"):
        complete_scores(scorer := FormulaScorer(fingerprint), Colours(), lists, cache=ScoreCache(tmp_path))
        assert len(scorer.asked) == 2


def test_other_settings_of_blip_have_scores_of_their_own(tiny_blip: Path, memory_set, tmp_path: Path) -> None:
    dataset, lists = memory_set(2, ["a dog", "the red cat"]), lists_of([(0, 0), (0, 1), (1, 1)])
    for kind in ("match_logit", "margin"):
        scorer = load_scorer(str(tiny_blip), device="cpu", settings=ScorerSettings(score_kind=kind))
        alone = complete_scores(scorer, dataset, lists)
        for num_cached in (0, 3):
            scores = complete_scores(scorer, dataset, lists, cache=ScoreCache(tmp_path))
            assert scores.cached.num_pairs == num_cached and np.array_equal(scores.scores_N, alone.scores_N)
    assert len(list(tmp_path.iterdir())) == 2


def draw(path: Path, colour: int) -> None:
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)


def split_of(folder: Path, captions: list[str], names: Sequence[str] = ("0.png", "1.png")) -> RetrievalSet:
    rows = [f'{{"image": "{name}", "caption": "{caption}"}}' for name, caption in zip(names, captions, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(rows))
    return load_split(read_manifest(str(folder / "pairs.jsonl")), None)


def test_what_is_edited_is_scored_again_and_what_is_renamed_is_not(tmp_path: Path) -> None:
    """By content: an edited picture or caption is a new one, the old one back again is known, and names do not matter."""
    every = lists_of([(0, 0), (0, 1), (1, 0), (1, 1)])

    def asked(captions: list[str], names: Sequence[str] = ("0.png", "1.png")) -> list:
        dataset, scorer = split_of(tmp_path, captions, names), FormulaScorer()
        scores = complete_scores(scorer, dataset, every, cache=ScoreCache(tmp_path / "cache"))
        np.testing.assert_allclose(scores.scores_N, straight(every, dataset).scores_N, atol=2**-8)
        return scorer.asked

    draw(tmp_path / "0.png", 10), draw(tmp_path / "1.png", 11)
    assert len(asked(["a", "b"])) == 4
    assert asked(["a", "b"]) == []
    draw(tmp_path / "1.png", 12)
    assert asked(["a", "b"]) == [(12, "a"), (12, "b")]
    assert asked(["a", "B"]) == [(10, "B"), (12, "B")]
    draw(tmp_path / "1.png", 11)
    assert asked(["a", "b"]) == []
    (tmp_path / "0.png").rename(tmp_path / "z.png")
    assert asked(["b", "a"], ["1.png", "z.png"]) == []


def test_a_picture_that_changes_while_it_is_scored_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 10), draw(tmp_path / "1.png", 11)
    dataset, lists = split_of(tmp_path, ["a", "b"]), lists_of([(0, 0), (1, 0)])

    class Editor(FormulaScorer):
        def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
            draw(tmp_path / "1.png", 13)
            return super().score(image, captions)

    with pytest.raises(UserError, match=r"image '1.png': its file was changed while it was scored"):
        complete_scores(Editor(), dataset, lists, cache=ScoreCache(tmp_path / "cache"))
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png: cannot be read"):
        complete_scores(FormulaScorer(), dataset, lists, cache=ScoreCache(tmp_path / "cache"))


def test_the_part_of_a_picture_is_part_of_what_a_choice_shows(tmp_path: Path) -> None:
    draw(tmp_path / "0.png", 10)
    data = (tmp_path / "0.png").read_bytes()
    digests = {
        ChoiceImage(key, source, len(data), box).digest()
        for key, source in (("a", tmp_path / "0.png"), ("b", data))
        for box in (None, (0.0, 0.0, 2.0, 2.0), (0.0, 0.0, 2.0, 3.0))
    }
    assert len(digests) == 3 and hashlib.sha256(data).digest() in digests


def test_a_cache_that_cannot_be_written_ends_the_scoring(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    (tmp_path / "formula-1").write_text("a file where a folder is wanted")
    with pytest.raises(WriteError, match="score cache: could not write .*formula-1"):
        complete_scores(FormulaScorer(), Colours(), lists_of([(0, 0)]), cache=cache)


class DeviceScorer(FormulaScorer):
    """The same on a device that works ahead; it hears of each picture."""

    num_ahead = 1

    def __init__(self, begun: Callable[[int], object]) -> None:
        super().__init__()
        self._begun = begun

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def begin(self, prepared: Image.Image, captions: Sequence[str]) -> Callable[[], np.ndarray]:
        scores = self.score(prepared, captions)
        self._begun(prepared.getpixel((0, 0))[0])
        return lambda: scores


def test_a_device_does_not_wait_for_the_disk_and_all_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes the first list until the last picture is begun; what was scored meanwhile is written in one transaction."""
    lists, is_last, written = lists_of([(i, c) for i in range(NUM_IMAGES) for c in range(i + 1)]), Event(), list[int]()
    write_lists = ScoreDatabase.write_lists

    def slow(self: ScoreDatabase, given: Sequence[ImageList]) -> None:
        assert is_last.wait(20), "the scoring waited for the disk"
        written.append(len(given))
        write_lists(self, given)

    monkeypatch.setattr(ScoreDatabase, "write_lists", slow)
    scorer = DeviceScorer(lambda pixel: is_last.set() if pixel == NUM_IMAGES else None)
    scores = complete_scores(scorer, Colours(), lists, cache=ScoreCache(tmp_path))
    assert np.array_equal(scores.scores_N, straight(lists).scores_N) and sum(written) == NUM_IMAGES > len(written)
    after = FormulaScorer()
    again = complete_scores(after, Colours(), lists, cache=ScoreCache(tmp_path))
    assert np.array_equal(again.scores_N, scores.scores_N) and not after.asked


def test_what_a_device_scored_before_it_ended_is_written_and_a_full_disk_ends_it(tmp_path: Path) -> None:
    def leave(pixel: int) -> None:
        if pixel == 4:
            raise KeyboardInterrupt

    lists = lists_of([(i, 0) for i in range(NUM_IMAGES)])
    with pytest.raises(KeyboardInterrupt):
        complete_scores(DeviceScorer(leave), Colours(), lists, cache=ScoreCache(tmp_path))
    after = FormulaScorer()
    complete_scores(after, Colours(), lists, cache=ScoreCache(tmp_path))
    assert [pixel for pixel, _ in after.asked] == [3, 4, 5], "the third was under way"
    (tmp_path / "full" / "formula-1").parent.mkdir()
    (tmp_path / "full" / "formula-1").write_text("a file where a folder is wanted")
    with pytest.raises(WriteError, match="score cache: could not write .*formula-1"):
        complete_scores(DeviceScorer(lambda pixel: None), Colours(), lists, cache=ScoreCache(tmp_path / "full"))
