"""eval/choices: what is right, example by example, and the figures made of it, against counting by hand and plain loops."""

import io
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModel, AutoTokenizer, SiglipImageProcessorPil

from eval.choices.choice_set import ChoiceExample, ChoiceImage, ChoiceSet
from eval.choices.cosines import cosines
from eval.choices.figures import choice_figures
from eval.choices.outcomes import accuracy, chances, outcome_table, pair_scores
from eval.choices.report import choice_report, print_choices, write_choices
from eval.dataset.images import decode_image
from eval.encoder.checkpoint import load_siglip
from eval.errors import UserError

SCORES = st.integers(-2, 2).map(float)  # few values: many ties


def made(*examples: ChoiceExample, num_captions: int = 9, keys: str = "abcdefgh") -> ChoiceSet:
    """A set whose pictures are never read; those of one letter are parts of one picture."""
    pictures = [ChoiceImage(key, b"", 0, (float(number), 0.0, 1.0, 1.0)) for number, key in enumerate(keys)]
    return ChoiceSet("made up", examples, pictures, [f"caption {number}" for number in range(num_captions)])


def choice(number: int, image: int, num_false: int, category: str | None = None) -> ChoiceExample:
    return ChoiceExample(f"choice-{number}", "choice", category, (image,), tuple(range(num_false + 1)))


def pair(number: int, first: int, category: str | None = None) -> ChoiceExample:
    return ChoiceExample(f"pair-{number}", "pair", category, (first, first + 1), (0, 1))


@given(st.lists(SCORES, min_size=2, max_size=6))
def test_accuracy_is_a_strict_win_over_every_false_caption(scores: list[float]) -> None:
    assert accuracy(np.array(scores)) == all(scores[0] > other for other in scores[1:])


@given(st.lists(SCORES, min_size=4, max_size=4))
def test_pair_scores_are_those_of_the_paper(scores: list[float]) -> None:
    # s[c, i] as in Thrush et al. 2022: caption c of image i; ours has images in rows.
    i0c0, i0c1, i1c0, i1c1 = scores
    text = i0c0 > i0c1 and i1c1 > i1c0
    image = i0c0 > i1c0 and i1c1 > i0c1
    assert pair_scores(np.array(scores).reshape(2, 2)) == (text, image, text and image)


def test_a_case_that_tells_text_and_image_score_apart() -> None:
    assert pair_scores(np.array([[0.9, 0.8], [0.3, 0.4]])) == (True, False, False), "caption 1 prefers image 0"
    assert pair_scores(np.array([[0.9, 0.3], [0.8, 0.4]])) == (False, True, False), "image 1 prefers caption 0"


def test_chance_counts_the_orders() -> None:
    orders = [pair_scores(np.array(order, dtype=float).reshape(2, 2)) for order in itertools.permutations(range(4))]
    counted = [float(Fraction(sum(column), 24)) for column in zip(*orders, strict=True)]
    assert list(chances(pair(0, 0)).values()) == pytest.approx(counted)
    for num_false in (1, 2, 3):
        wins = [order[0] == num_false for order in itertools.permutations(range(num_false + 1))]
        assert chances(choice(0, 0, num_false)) == {"accuracy": pytest.approx(np.mean(wins))}


def test_a_constant_model_gets_nothing() -> None:
    choices = made(choice(0, 0, 1), choice(1, 1, 3), pair(0, 2))
    figures = choice_figures(outcome_table(choices, {"constant": np.ones(10)}), [])["stages"]["constant"]["overall"]
    assert {metric: figure["value"] for metric, figure in figures.items()} == dict.fromkeys(
        ("accuracy", "text_score", "image_score", "group_score"), 0.0
    )
    assert figures["accuracy"]["chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_stage_must_have_finite_scores_for_every_pair() -> None:
    choices = made(choice(0, 0, 1))
    with pytest.raises(ValueError, match="not finite"):
        outcome_table(choices, {"model": np.array([0.0, np.nan])})
    with pytest.raises(ValueError, match="cannot reshape array"):
        outcome_table(choices, {"model": np.zeros(3)})


@pytest.fixture(scope="module")
def mixed() -> tuple[ChoiceSet, dict[str, np.ndarray]]:
    """60 choices of 20 pictures in three categories, 20 pairs, and two random stages of which one is better."""
    rng = np.random.default_rng(3)
    examples = [choice(n, n % 20, 1 + n % 3, ("size", "order", None)[n % 3]) for n in range(60)]
    examples += [pair(n, n, "order") for n in range(20)]
    choices = made(*examples, keys="".join(chr(65 + n) for n in range(22)))
    true_N = np.concatenate([[1.0] + [0.0] * (len(e.captions) - 1) if e.kind == "choice" else [1.0, 0.0, 0.0, 1.0] for e in examples])
    return choices, {"one": rng.normal(size=len(true_N)), "two": rng.normal(size=len(true_N)) + 2 * true_N}


def test_figures_are_means_and_intervals_over_pictures(mixed: tuple[ChoiceSet, dict[str, np.ndarray]]) -> None:
    choices, stages = mixed
    record = choice_figures(outcome_table(choices, stages), [("two", "one")])
    blocks = choices.scores_by_example(stages["two"])
    right = np.array([scores[0, 0] > scores[0, 1:].max() for scores in blocks[:60]], dtype=float)
    figure = record["stages"]["two"]["overall"]["accuracy"]
    assert (figure["value"], figure["num_examples"]) == (pytest.approx(right.mean()), 60)
    rng = np.random.default_rng(0)
    by_picture = right.reshape(3, 20).T  # example n shows picture n % 20
    means = [by_picture[rng.integers(0, 20, 20)].mean() for _ in range(4000)]
    assert figure["ci95"] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    order = record["stages"]["two"]["categories"]["order"]
    assert order["accuracy"]["value"] == pytest.approx(right[1::3].mean()) and order["accuracy"]["num_examples"] == 20
    assert order["group_score"]["num_examples"] == 20 and set(record["stages"]["two"]["categories"]) == {"size", "order"}
    assert set(record["stages"]["two"]["categories"]["size"]) == {"accuracy"}


def test_examples_of_one_picture_are_one_witness() -> None:
    """Two pictures with 20 examples each, all right of one and all wrong of the other: a resample holds 0, 1 or 2 of the right one."""
    choices = made(*(choice(n, n % 2, 1) for n in range(40)))
    scores_N = np.concatenate([[1.0, 0.0] if n % 2 else [0.0, 1.0] for n in range(40)])
    record = choice_figures(outcome_table(choices, {"one": scores_N, "two": np.tile([1.0, 0.0], 40)}), [("two", "one")])
    assert record["stages"]["one"]["overall"]["accuracy"]["ci95"] == [0.0, 1.0]
    (row,) = record["comparisons"]
    assert (row["delta"], row["ci95"], row["wins"]) == (0.5, [0.0, 1.0], 20)
    assert row["p_value"] == 1.0, "flipping one picture leaves the difference as large"


def test_p_values_are_corrected_within_a_pair_of_stages() -> None:
    """Six pictures won of six: flipped signs are as extreme 2 times in 64, so p is near 1/32; asked four times it is 4/32, and other
    pairs change nothing."""
    choices = made(*(choice(n, n, 1) for n in range(6)))
    lost, won = np.tile([0.0, 1.0], 6), np.tile([1.0, 0.0], 6)
    table = outcome_table(choices, {"lost": lost, "won": won})
    (alone,) = choice_figures(table, [("won", "lost")])["comparisons"]
    assert (alone["p_value"], alone["verdict"]) == (pytest.approx(1 / 32, abs=0.006), "better")
    four = choice_figures(table, [("won", "lost")] * 4)["comparisons"]
    assert [row["p_value"] for row in four] == [pytest.approx(4 * alone["p_value"])] * 4
    assert {row["verdict"] for row in four} == {"no evidence"}
    further = choice_figures(
        outcome_table(choices, {"lost": lost, "won": won, "third": lost}), [("third", "lost"), ("won", "lost"), ("won", "third")]
    )
    assert [row for row in further["comparisons"] if (row["stage"], row["against"]) == ("won", "lost")] == [alone]


def test_comparisons_are_paired_and_corrected_together(mixed: tuple[ChoiceSet, dict[str, np.ndarray]]) -> None:
    choices, stages = mixed
    rows = choice_figures(outcome_table(choices, stages | {"copy": stages["two"]}), [("two", "one"), ("copy", "two")])["comparisons"]
    assert [(row["stage"], row["metric"]) for row in rows[::4]] == [("two", "accuracy"), ("copy", "accuracy")]
    better, same = rows[0], rows[4]
    wins = {stage: [s[0, 0] > s[0, 1:].max() for s in choices.scores_by_example(scores)[:60]] for stage, scores in stages.items()}
    assert better["wins"] == sum(b > a for a, b in zip(wins["one"], wins["two"], strict=True))
    assert better["losses"] == sum(b < a for a, b in zip(wins["one"], wins["two"], strict=True))
    assert better["delta"] == pytest.approx((better["wins"] - better["losses"]) / 60)
    assert better["verdict"] == "better" and better["ci95"][0] > 0
    assert (same["delta"], same["ci95"], same["p_value"], same["verdict"]) == (0.0, [0.0, 0.0], 1.0, "no evidence")
    with pytest.raises(UserError, match=r"\['three'\]; measured: \['one', 'two'\]"):
        choice_figures(outcome_table(choices, stages), [("three", "one")])


def test_the_report_is_printed_and_written(mixed: tuple[ChoiceSet, dict[str, np.ndarray]], tmp_path: Path) -> None:
    choices, stages = mixed
    report = choice_report(choices, stages, [("two", "one")], {"one": "a", "two": "b"})
    write_choices(tmp_path / "out", report)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"choices.html", "choices.json", "choices.parquet"}
    console = Console(file=io.StringIO(), width=60)
    print_choices(report.record, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    overall = report.record["stages"]["two"]["overall"]["accuracy"]
    assert f"{100 * overall['value']:.1f}" in said and "better" in said and "group score" in said and "…" not in said


def test_cosines_are_those_of_plain_transformers(tiny_siglip: Path, pictures: list[Path], sentences: list[str]) -> None:
    examples = [ChoiceExample("a", "choice", None, (2,), (3, 0, 1)), ChoiceExample("b", "pair", None, (0, 1), (1, 2))]
    choices = ChoiceSet("here", examples, [ChoiceImage(path.name, path, 1) for path in pictures[:3]], sentences[:4])
    found_N = cosines(*load_siglip(tiny_siglip), choices)
    model, tokenizer = AutoModel.from_pretrained(tiny_siglip), AutoTokenizer.from_pretrained(tiny_siglip)
    processor = SiglipImageProcessorPil.from_pretrained(tiny_siglip)
    wanted = []
    for image, caption in [(2, 3), (2, 0), (2, 1), (0, 1), (0, 2), (1, 1), (1, 2)]:
        pixels = processor(images=decode_image(pictures[image]), return_tensors="pt")["pixel_values"]
        ids = tokenizer([sentences[caption]], padding="max_length", max_length=16, padding_side="right", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            one, other = model.vision_model(pixel_values=pixels).pooler_output, model.text_model(input_ids=ids).pooler_output
        wanted.append(torch.nn.functional.cosine_similarity(one, other).item())
    np.testing.assert_allclose(found_N, wanted, atol=1e-6)
