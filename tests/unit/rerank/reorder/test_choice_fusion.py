"""rerank/reorder/choices.py: the cross-encoder's scores, the sum of both, and who is compared with whom."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.choices.choice_set import ChoiceExample, ChoiceImage, ChoiceSet, read_choices
from eval.errors import UserError
from rerank.reorder.choices import fused, match_scores, measure_choices, stage_names, standardised

ROOT = Path(__file__).parents[4]
DEMO = ROOT / "demo"


class ColourScorer:
    """A formula of the picture and the text, which remembers what it was asked."""

    name, fingerprint = "colour", "colour-1"

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        level = image.getpixel((0, 0))[0]
        self.asked += [(level, caption) for caption in captions]
        return np.array([formula(level, caption) for caption in captions], dtype=np.float32)


def formula(level: int, caption: str) -> float:
    return float((level * 31 + len(caption) * 57) % 101)


@pytest.fixture
def choices(tmp_path: Path) -> ChoiceSet:
    pictures = []
    for level in (10, 20, 30):
        path = tmp_path / f"{level}.png"
        Image.new("RGB", (4, 4), (level, 0, 0)).save(path)
        pictures.append(ChoiceImage(path.name, path, 1))
    captions = ["a", "bb", "ccc", "dddd"]
    examples = [
        ChoiceExample("x", "choice", None, (2,), (3, 0)),
        ChoiceExample("y", "pair", None, (0, 2), (3, 1)),
        ChoiceExample("z", "choice", None, (2,), (0, 3)),
    ]
    return ChoiceSet("here", examples, pictures, captions)


def test_every_pair_is_scored_once_and_put_in_its_place(choices: ChoiceSet) -> None:
    scorer = ColourScorer()
    found_N = match_scores(scorer, choices)
    pairs = [(30, "dddd"), (30, "a"), (10, "dddd"), (10, "bb"), (30, "dddd"), (30, "bb"), (30, "a"), (30, "dddd")]
    assert found_N.tolist() == [formula(*pair) for pair in pairs]
    assert sorted(scorer.asked) == sorted(set(pairs))


def test_a_score_that_is_not_finite_names_picture_and_caption(choices: ChoiceSet) -> None:
    scorer = ColourScorer()
    scorer.score = lambda image, captions: np.full(len(captions), np.nan, dtype=np.float32)  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"10\.png.*'bb'"):
        match_scores(scorer, choices)


def test_the_sum_of_z_scores_by_hand() -> None:
    # Means 2 and 20, deviations 1 and 10: z = -1, 1, -1, 1 and 1, -1, -1, 1.
    found = fused(np.array([1.0, 3.0, 1.0, 3.0]), np.array([30.0, 10.0, 10.0, 30.0]))
    assert found.tolist() == [0.0, 0.0, -2.0, 2.0]
    assert standardised(np.full(5, 0.1)).tolist() == [0.0] * 5
    assert fused(np.full(4, 0.3), np.array([30.0, 10.0, 10.0, 30.0])).tolist() == [1.0, -1.0, -1.0, 1.0], "a constant has no say"


@given(st.lists(st.integers(-50, 50), min_size=3, max_size=20), st.floats(0.01, 100), st.floats(-100, 100))
def test_no_unit_and_no_offset_has_a_say(scores: list[int], unit: float, offset: float) -> None:
    scores_N = np.array(scores, dtype=float)
    np.testing.assert_allclose(standardised(unit * scores_N + offset), standardised(scores_N), atol=1e-6)


def test_stages_their_rules_and_who_is_compared(choices: ChoiceSet) -> None:
    base = str(DEMO / "models" / "siglip-base")
    report = measure_choices(choices, {"base": base, "tuned": base}, ColourScorer())
    assert list(report.record["stages"]) == ["base", "tuned", "colour", "base+colour", "tuned+colour"]
    assert report.record["scores"]["base"] == "cosine" and "z(cosine) + z(match score)" in report.record["scores"]["tuned+colour"]
    against = [("tuned", "base"), ("colour", "base"), ("colour", "tuned"), ("base+colour", "base"), ("base+colour", "colour")]
    against += [("tuned+colour", "tuned"), ("tuned+colour", "colour")]
    assert list(dict.fromkeys((row["stage"], row["against"]) for row in report.record["comparisons"])) == against
    by_stage = {stage: rows["scores"].tolist() for stage, rows in report.table.to_pandas().groupby("stage")}
    one, other, both = (np.concatenate(by_stage[stage]) for stage in ("base", "colour", "base+colour"))
    np.testing.assert_allclose(both, (one - one.mean()) / one.std() + (other - other.mean()) / other.std(), atol=1e-9)
    alone = measure_choices(choices, {"base": base}, None).record
    assert list(alone["stages"]) == ["base"] and alone["comparisons"] == []


def test_a_name_stands_for_one_stage(choices: ChoiceSet) -> None:
    assert stage_names(["base", "tuned"], "blip") == ["base", "tuned", "blip", "base+blip", "tuned+blip"]
    for names in (["base", "base"], ["base", "blip"], ["base", "base+blip"]):
        with pytest.raises(UserError, match="a name of its own"):
            stage_names(names, "blip")
    with pytest.raises(UserError, match="a name of its own"):
        measure_choices(choices, {"colour": "nowhere"}, ColourScorer())


def test_the_demos_base_knows_colours() -> None:
    choices = read_choices(DEMO / "data" / "choices.parquet")
    colours = [example for example in choices.examples if example.category == "colour" and example.kind == "choice"]
    part = ChoiceSet("colours", colours, choices.images, choices.captions)
    record = measure_choices(part, {"base": str(DEMO / "models" / "siglip-base")}, None).record
    assert record["stages"]["base"]["overall"]["accuracy"]["ci95"][0] > record["stages"]["base"]["overall"]["accuracy"]["chance"] + 0.2
