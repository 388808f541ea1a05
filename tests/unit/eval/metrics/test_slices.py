"""Slices counted again with loops over the table of queries."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures, evaluate
from eval.metrics.slices import MARGIN, by_number, by_word
from eval.search.ranking import DIRECTIONS
from tests.unit.eval.reranked_set import first_stage, picture_set, reranked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    return picture_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def figures(dataset: RetrievalSet) -> Figures:
    first = first_stage(dataset)
    return evaluate(dataset, [first, reranked(dataset, first)])


def rows_of(figures: Figures, by: str, stage: str, direction: str) -> list[dict]:
    return [row for row in figures.slices if (row["by"], row["stage"], row["direction"]) == (by, stage, direction)]


def test_numbers_by_value_or_by_quarter() -> None:
    few = by_number("x", np.array([3, 1, 1, 2]))
    assert (few.labels, few.bin_Q.tolist()) == (["1", "2", "3"], [2, 0, 0, 1])
    many = by_number("x", np.arange(1, 9) / 10)
    assert many.labels == ["0.1 to 0.2", "0.3 to 0.4", "0.5 to 0.6", "0.7 to 0.8"] and many.bin_Q.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_number_bins_are_full_ordered_and_keep_equal_values_together(values: list[float]) -> None:
    array = np.array(values)
    made = by_number("x", array)
    parts = [array[made.bin_Q == number] for number in range(len(made.labels))]
    assert all(len(part) for part in parts) and sum(map(len, parts)) == len(values) and len(parts) <= 6
    assert all(one.max() < other.min() for one, other in zip(parts, parts[1:], strict=False))


def test_words_by_number_of_queries_and_the_rare_ones_together() -> None:
    words = ["b"] * 3 + ["a"] * 3 + [f"rare {n:02d}" for n in range(15)]
    made = by_word("x", words)
    assert made.labels == ["a", "b", *(f"rare {n:02d}" for n in range(9)), "(other)"]
    assert [made.labels[number] for number in made.bin_Q[:4]] == ["b", "b", "b", "a"]
    assert (made.bin_Q == 11).sum() == 6


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bins_of_a_slice_hold_every_query_and_agree_with_the_table(figures: Figures, dataset: RetrievalSet, direction: str) -> None:
    captions = dict(zip(dataset.caption_ids, dataset.captions, strict=True))
    for stage in ("base", "base+blip"):
        queries = [row for row in figures.queries.to_pylist() if (row["stage"], row["direction"]) == (stage, direction)]
        for by in {row["by"] for row in figures.slices}:
            rows = rows_of(figures, by, stage, direction)
            assert sum(row["num_queries"] for row in rows) == len(queries)
            found = sum(row["R@1"] * row["num_queries"] for row in rows) / len(queries)
            assert found == pytest.approx(figures.stages[stage][direction]["R@1"])
            assert all(0 <= row["ci95"][0] <= row["R@1"] <= row["ci95"][1] <= 1 for row in rows)
        for row in rows_of(figures, "kind", stage, direction):
            ranks = [q["rank"] for q in queries if ("odd" if int(q["image_id"][1:]) % 2 else "even") == row["bin"]]
            assert (row["num_queries"], row["R@1"]) == (len(ranks), pytest.approx(np.mean(np.array(ranks) == 1)))
        if direction == "text_to_image":
            for row in rows_of(figures, "caption length (words)", stage, direction):
                low, high = (int(row["bin"].split(" to ")[end]) for end in (0, -1))
                ranks = [q["rank"] for q in queries if low <= len(normalise(captions[q["query_id"]]).split()) <= high]
                assert (row["num_queries"], row["R@1"]) == (len(ranks), pytest.approx(np.mean(np.array(ranks) == 1)))


def test_near_duplicates_are_counted_among_the_captions(figures: Figures) -> None:
    """'a dog runs' and 'the dog runs' are the only two."""
    for direction in DIRECTIONS:
        rows = rows_of(figures, "near-duplicate captions", "base", direction)
        assert [(row["bin"], row["num_queries"]) for row in rows][1] == ("1", 2) and len(rows) == 2


def test_hard_cases_are_those_of_the_first_stage(figures: Figures) -> None:
    """A reranked stage is sliced by its first stage's margins, so the same queries stand in the same bin."""
    for direction in DIRECTIONS:
        before, after = (rows_of(figures, MARGIN, stage, direction) for stage in ("base", "base+blip"))
        assert [(row["bin"], row["num_queries"]) for row in before] == [(row["bin"], row["num_queries"]) for row in after]
        scores = [q["top_scores"] for q in figures.queries.to_pylist() if (q["stage"], q["direction"]) == ("base", direction)]
        margins = sorted(np.float32(top[0]) - np.float32(top[1]) for top in scores)
        assert (
            len(before) == 4 and before[0]["bin"].startswith(f"{margins[0]:.4g} to ") and before[-1]["bin"].endswith(f"{margins[-1]:.4g}")
        )


def test_a_slice_of_everything_has_the_interval_of_the_whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = picture_set(tmp_path_factory.mktemp("pictures"), num_images=12)
    dataset.columns = {"same": ["x"] * dataset.num_captions}
    figures = evaluate(dataset, [first_stage(dataset)])
    for direction in DIRECTIONS:
        (row,) = rows_of(figures, "same", "base", direction)
        assert row["ci95"] == pytest.approx(figures.stages["base"][direction]["ci95"]["R@1"], abs=1e-12)


def test_columns_by_number_by_word_and_where_captions_of_one_image_differ(tmp_path: Path) -> None:
    dataset = picture_set(tmp_path)
    num = dataset.num_captions
    dataset.columns = {
        "number": [float(n) for n in range(num)],
        "gaps": [None if n == 0 else "3" for n in range(num)],
        "of the caption": [str(n - dataset.caption_offsets[dataset.caption_image_C[n]]) + "th" for n in range(num)],
    }
    figures = evaluate(dataset, [first_stage(dataset)])
    assert len(rows_of(figures, "number", "base", "image_to_text")) == 4
    assert [(r["bin"], r["num_queries"]) for r in rows_of(figures, "gaps", "base", "text_to_image")] == [("3", num - 1), ("(none)", 1)]
    assert {r["bin"]: r["num_queries"] for r in rows_of(figures, "of the caption", "base", "image_to_text")} == {"(several)": 16, "0th": 8}


def test_large_numbers_keep_their_bins_apart() -> None:
    dates = np.array([20190101, 20190102, 20190103, 20200101], dtype=np.float64)
    assert by_number("date", dates).labels == ["20190101", "20190102", "20190103", "20200101"]
