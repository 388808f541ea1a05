"""rerank_lists: each query's candidates in the cross-encoder's order, pair by pair, each picture read once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.errors import UserError
from rerank.scorers.load import load_scorer
from rerank.scoring.lists import rerank_lists


class Counting:
    """Scores by the picture's grey value and the caption's length; counts the pictures it is given."""

    name, fingerprint, reads = "counting", "counting-1", None

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        self.calls.append(len(captions))
        return np.array([image.getpixel((0, 0))[0] * len(text) % 7 for text in captions], dtype=np.float32)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for number in range(5):
        Image.new("RGB", (8, 8), (10 * number + 3,) * 3).save(tmp_path / f"{number}.png")
    return [str(tmp_path / f"{number}.png") for number in (3, 1, 4, 0, 2)]


def by_hand(lists: dict[str, list[str]], *, of_pictures: bool) -> dict[str, list[tuple[str, float]]]:
    found = {}
    for query, candidates in lists.items():
        pairs = [(query, item) if of_pictures else (item, query) for item in candidates]
        scores = [float((10 * int(Path(path).stem) + 3) * len(text) % 7) for path, text in pairs]
        order = sorted(range(len(candidates)), key=lambda place: -scores[place])  # stable
        found[query] = [(candidates[place], scores[place]) for place in order]
    return found


def test_pictures_for_captions(paths: list[str], tmp_path: Path) -> None:
    lists = {"a": paths, "bb": paths[:2], "ccc": [paths[1], paths[0], paths[1]], "dddd": []}
    scorer = Counting()
    found = rerank_lists(scorer, lists, cache=tmp_path / "scores")
    assert found == by_hand(lists, of_pictures=False) and [*found] == [*lists]
    assert len(scorer.calls) == 5 and sum(scorer.calls) == 9  # each picture once, each pair once
    again = Counting()
    assert rerank_lists(again, lists, cache=tmp_path / "scores") == found and again.calls == []


def test_captions_for_pictures(paths: list[str]) -> None:
    lists = {paths[0]: ["a", "bb", "ccc"], paths[1]: ["bb", "eeeee"]}
    assert rerank_lists(Counting(), lists, direction="image_to_text") == by_hand(lists, of_pictures=True)


def test_scores_are_those_of_the_cross_encoder(paths: list[str], tiny_blip: Path) -> None:
    scorer = load_scorer(str(tiny_blip), device="cpu")
    found = rerank_lists(scorer, {"a red circle": paths[:3]})
    for path, score in found["a red circle"]:
        assert score == pytest.approx(float(scorer.score(Image.open(path), ["a red circle"])[0]), abs=1e-5)


def test_what_cannot_be_used_is_refused(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 of 2 pictures are not there, e.g. 'nowhere.png'"):
        rerank_lists(Counting(), {"a": [paths[0], "nowhere.png"]})
    with pytest.raises(UserError, match="direction: expected 'image_to_text' or 'text_to_image'; found 'both'"):
        rerank_lists(Counting(), {"a": paths}, direction="both")  # type: ignore[arg-type]  # what a person may give
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken.png"):
        rerank_lists(Counting(), {"a": [str(tmp_path / "broken.png")]})
    assert rerank_lists(Counting(), {"a": []}) == {"a": []} and rerank_lists(Counting(), {}) == {}
