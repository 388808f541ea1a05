"""The K sweep and the ceiling in a report's record, against the stages they must agree with."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.metrics.evaluate import Figures, evaluate
from eval.metrics.k_sweep import curves, curves_over, sweep_sizes
from eval.report.report import write_report
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.reranked_set import TOP_K, first_stage, picture_set, reranked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    return picture_set(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def figures(dataset: RetrievalSet) -> Figures:
    first = first_stage(dataset)
    return evaluate(dataset, [first, reranked(dataset, first)])


@pytest.mark.parametrize(("top_k", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])])
def test_sizes(top_k: int, expected: list[int]) -> None:
    assert sweep_sizes(top_k) == expected


def test_ends_of_the_sweep_are_the_two_stages(figures: Figures) -> None:
    record = figures.stages["base+blip"]
    assert [(row["k"], row["direction"]) for row in record["k_sweep"]] == [(k, d) for k in (1, 2, 4, 6) for d in DIRECTIONS]
    for k, stage in ((1, "base"), (TOP_K, "base+blip")):
        for row in (row for row in record["k_sweep"] if row["k"] == k):
            whole = figures.stages[stage][row["direction"]]
            assert [row[f"R@{cut}"] for cut in (1, 5, 10)] == pytest.approx([whole[f"R@{cut}"] for cut in (1, 5, 10)], abs=1e-12)
            assert row["ci95"] == pytest.approx(whole["ci95"]["R@1"], abs=1e-12)


def test_the_sweep_is_computed_from_the_written_table(figures: Figures, dataset: RetrievalSet, tmp_path: Path) -> None:
    """Recalls at each K recounted from queries.parquet alone; and the ranks in it are those the reranking gave."""
    rows = pq.read_table(write_report(tmp_path, figures) / "queries.parquet").to_pylist()
    assert all(row["rank_at_k"] is None for row in rows if row["stage"] == "base")
    expected = reranked(dataset, first_stage(dataset)).sweep
    for direction in DIRECTIONS:
        chosen = [row for row in rows if (row["stage"], row["direction"]) == ("base+blip", direction)]
        assert all(row["rank_at_k"][-1] == {"k": TOP_K, "rank": row["rank"]} for row in chosen)
        curve = dict(figures.stages["base+blip"]["r1_by_k"][direction])
        assert list(curve) == list(range(1, TOP_K + 1))
        for k in range(1, TOP_K + 1):
            ranks = np.array([row["rank_at_k"][k - 1]["rank"] for row in chosen])
            assert ranks.tolist() == expected[k][direction].tolist() and {row["rank_at_k"][k - 1]["k"] for row in chosen} == {k}
            assert curve[k] == pytest.approx((ranks == 1).mean(), abs=1e-12)
            if k not in sweep_sizes(TOP_K):
                continue
            told = next(row for row in figures.stages["base+blip"]["k_sweep"] if (row["k"], row["direction"]) == (k, direction))
            assert [told[f"R@{cut}"] for cut in (1, 5, 10)] == pytest.approx([(ranks <= cut).mean() for cut in (1, 5, 10)], abs=1e-12)


def test_no_size_passes_its_ceiling_and_the_ceiling_is_counted_in_the_table(figures: Figures) -> None:
    rows = figures.queries.to_pylist()
    for direction in DIRECTIONS:
        ranks = np.array([row["rank"] for row in rows if (row["stage"], row["direction"]) == ("base", direction)])
        assert figures.stages["base+blip"]["ceiling"][direction] == pytest.approx((ranks <= TOP_K).mean(), abs=1e-12)
        for row in figures.stages["base+blip"]["k_sweep"]:
            assert row["direction"] != direction or row["R@1"] <= (ranks <= row["k"]).mean()
    assert "ceiling" not in figures.stages["base"]


def test_counts_of_the_bins_add_up(figures: Figures, dataset: RetrievalSet) -> None:
    for row in figures.outcomes:
        num = {"image_to_text": dataset.num_images, "text_to_image": dataset.num_captions}[row["direction"]]
        assert sum(row["counts"].values()) == num and row["top_k"] == TOP_K
        after = (row["counts"]["right in both"] + row["counts"]["fixed"]) / num
        assert after == pytest.approx(figures.stages["base+blip"][row["direction"]]["R@1"])
        ceiling = figures.stages["base+blip"]["ceiling"][row["direction"]]
        assert row["counts"]["missing"] == round((1 - ceiling) * num)


def test_each_step_once_and_missing_only_where_something_was_reordered(dataset: RetrievalSet) -> None:
    base, tuned = first_stage(dataset), first_stage(dataset, "tuned", 0.4)
    twins = [reranked(dataset, stage) for stage in (base, tuned)]
    pairs = [("tuned", "base"), ("base+blip", "base"), ("tuned+blip", "tuned"), ("tuned+blip", "base+blip")]
    rows = evaluate(dataset, [base, tuned, *twins], pairs).outcomes
    assert sorted((row["stage"], row["against"]) for row in rows) == sorted(pairs * 2)
    for row in rows:
        assert ("missing" in row["counts"]) == (row["top_k"] is not None) == (row["stage"] == row["against"] + "+blip")


@pytest.mark.parametrize(
    ("names", "pairs", "shown"),
    [
        (["base", "tuned", "base+blip", "tuned+blip"], [("tuned", "base"), ("base+blip", "base")], ("tuned+blip", "tuned")),
        (["base", "tuned", "base+blip", "tuned+blip"], [("base+blip", "base"), ("tuned", "base")], ("base+blip", "base")),
        (["base", "tuned", "base+blip", "tuned+blip"], [], ("tuned+blip", "tuned")),
        (["base", "tuned", "base+blip"], [("tuned", "base")], ("tuned", "base")),
        (["base", "base+blip"], None, ("base+blip", "base")),
    ],
)
def test_which_step_is_shown(dataset: RetrievalSet, names: list[str], pairs: list[tuple[str, str]] | None, shown: tuple[str, str]) -> None:
    stages = {"base": first_stage(dataset), "tuned": first_stage(dataset, "tuned", 0.4)}
    stages |= {f"{name}+blip": reranked(dataset, stage) for name, stage in stages.items()}
    rows = evaluate(dataset, [stages[name] for name in names], pairs).failures
    assert {(row["stage"], row["against"]) for row in rows} == {shown}


def test_a_first_stage_that_is_not_measured_is_refused(dataset: RetrievalSet) -> None:
    twin = reranked(dataset, first_stage(dataset))
    with pytest.raises(UserError, match=r"'base\+blip' re-orders 'base', which is not measured here"):
        evaluate(dataset, [twin])


def test_curves_fill_the_box() -> None:
    shares = {1: (0.2, 0.5), 2: (0.6, 0.4)}
    rows = [
        {"k": k, "direction": direction, "R@1": share, "ci95": [share - 0.1, share + 0.1]}
        for k, both in shares.items()
        for direction, share in zip(DIRECTIONS, both, strict=True)
    ]
    drawn = curves(rows)
    assert drawn["places"] == {1: 0.0, 2: 400.0} and (drawn["low"], drawn["high"]) == pytest.approx((0.1, 0.7))
    first, last = drawn["lines"]["image_to_text"]
    assert (first["x"], first["ends"][0], last["x"], last["ends"][1]) == (0.0, 160.0, 400.0, 0.0)
    assert first["y"] == pytest.approx(160 * 0.5 / 0.6, abs=0.1)
    assert drawn["paths"]["image_to_text"] == [{"x": point["x"], "y": point["y"]} for point in (first, last)]


def test_the_line_goes_through_every_size_and_stays_in_the_box() -> None:
    """K between two that have a place lies between them, by its logarithm; what passes the intervals' ends widens the range."""
    rows = [{"k": k, "direction": direction, "R@1": 0.5, "ci95": [0.4, 0.6]} for k in (1, 2, 4, 8, 10) for direction in DIRECTIONS]
    line = [[k, 0.9 if k == 3 else 0.5] for k in range(1, 11)]
    drawn = curves(rows, dict.fromkeys(DIRECTIONS, line))
    path = drawn["paths"]["text_to_image"]
    assert [path[k - 1]["x"] for k in (1, 2, 4, 8, 10)] == [0.0, 100.0, 200.0, 300.0, 400.0]
    assert path[2]["x"] == pytest.approx(100 + 100 * np.log2(1.5), abs=0.1) and path[2]["y"] == 0.0
    assert drawn["high"] == 0.9 and all(0 <= point["y"] <= 160 for point in path) and path == sorted(path, key=lambda point: point["x"])


def test_one_size_of_one_value_is_drawn(dataset: RetrievalSet) -> None:
    rows = [{"k": 1, "direction": direction, "R@1": 1.0, "ci95": [1.0, 1.0]} for direction in DIRECTIONS]
    assert curves(rows)["lines"]["text_to_image"] == [{"x": 0.0, "y": 0.0, "ends": [0.0, 0.0]}]


def test_a_stage_of_other_models_says_nothing_of_missing(dataset: RetrievalSet) -> None:
    stages = [first_stage(dataset), first_stage(dataset, "tuned", 0.4)]
    assert all("missing" not in row["counts"] for row in evaluate(dataset, stages).outcomes)
    assert evaluate(dataset, [Stage("alone", stages[0].rankings)]).failures == []


def test_curves_over_another_key_keep_the_order_of_the_rows() -> None:
    rows = [{"weight": w, "direction": d, "R@1": r, "ci95": [r, r]} for w, r in ((0.0, 0.5), (8.0, 1.0), (None, 0.0)) for d in DIRECTIONS]
    drawn = curves_over(rows, "weight")
    assert drawn["places"] == {0.0: 0.0, 8.0: 200.0, None: 400.0} and (drawn["low"], drawn["high"]) == (0.0, 1.0)
    for line in (drawn["lines"]["image_to_text"], drawn["paths"]["text_to_image"]):
        assert [(point["x"], point["y"]) for point in line] == [(0.0, 80.0), (200.0, 0.0), (400.0, 160.0)]
