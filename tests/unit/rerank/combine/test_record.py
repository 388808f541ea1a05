"""rerank/combine/record.py and rerank/combine/equal_cost.py: what a report says of an ensemble, recomputed from its own rows and by
hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.differences import Differences
from eval.metrics.evaluate import Figures, evaluate
from eval.report.report import report_record, write_report
from eval.report.section import section_lines
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.combine.combine import rank_ensemble
from rerank.combine.ensemble_weights import choose_ensemble
from rerank.combine.record import ENSEMBLES, EnsembleStage, combined_sections
from rerank.combine.tuning import TunedSetting
from rerank.combine.views import LateFusion
from rerank.scoring.candidates import candidate_lists
from tests.unit.eval.reranked_set import TOP_K, reranked
from tests.unit.rerank.combine.member_sets import caption_set, member

SECONDS = {"base": 10.0, "large": 30.0, "ensemble": 43.0}
COMPARED = [("ensemble", "large"), ("base+blip", "base")]


def stage(name: str, dataset: RetrievalSet, seeds: list[int], weights: list[float]) -> Stage:
    members = [member(dataset, seed) for seed in seeds]
    found = rank_ensemble(members, dataset, weights=weights, combination="logits", depth=10)
    return Stage(name, found, {"seconds": SECONDS[name], "image_seconds": SECONDS[name] / 2, "pairs_scored": 0})


def with_cost(twin: Stage, seconds_a_pair: float) -> Stage:
    """As `rerank.reorder.stages.reranked` has it, half of the pairs kept from earlier scorings."""
    needed = candidate_lists(stage("base", caption_set(24, "test"), [1], [1.0]).rankings.values(), TOP_K).num_pairs
    scored = needed // 2
    cost = {"pairs_needed": needed, "pairs_scored": scored, "rerank_seconds": seconds_a_pair * scored, "seconds": 1.0, "top_k": TOP_K}
    return replace(twin, cost=cost)


def made(seconds_a_pair: float = 0.25) -> tuple[RetrievalSet, Figures]:
    dataset = caption_set(24, "test")
    base = stage("base", dataset, [1], [1.0])
    stages = [base, stage("large", dataset, [2], [1.0]), stage("ensemble", dataset, [1, 2], [0.4, 0.6])]
    stages.append(with_cost(reranked(dataset, base), seconds_a_pair))
    return dataset, evaluate(dataset, stages, COMPARED)


@pytest.fixture(scope="module")
def figures() -> tuple[RetrievalSet, Figures]:
    return made()


@pytest.fixture(scope="module")
def choice() -> TunedSetting[LateFusion]:
    other = caption_set(12, "val")
    return choose_ensemble([member(other, 1), member(other, 2)], other, ["logits", "reciprocal-rank"])


def arm(**others: Any) -> EnsembleStage:
    return EnsembleStage(
        members=["base", "large"],
        first=stage("base", caption_set(24, "test"), [1], [1.0]),
        fusion=LateFusion("logits", (0.4, 0.6)),
        footprint={"weight_bytes": 400, "vector_bytes": 96},
        first_footprint={"weight_bytes": 100, "vector_bytes": 32},
        **others,
    )


def record_of(figures: tuple[RetrievalSet, Figures], **others: Any) -> dict[str, Any]:
    (record,) = combined_sections(figures[1], figures[0], arm(**others), [])[0].record
    return json.loads(json.dumps(record, allow_nan=False))


def recall(figures: Figures, name: str, direction: str) -> float:
    """R@1 from the rows of queries.parquet, one row at a time."""
    rows = [row for row in figures.queries.to_pylist() if row["stage"] == name and row["direction"] == direction]
    return sum(row["rank"] == 1 for row in rows) / len(rows)


def mean_recall(figures: Figures, name: str) -> float:
    return sum(recall(figures, name, direction) for direction in DIRECTIONS) / 2


def test_members_and_the_ensemble_are_measured_as_the_rows_say(figures: tuple[RetrievalSet, Figures]) -> None:
    record = record_of(figures)
    assert [(row["stage"], row["weight"]) for row in record["measured"]] == [("base", 0.4), ("large", 0.6), ("ensemble", None)]
    for row in record["measured"]:
        assert row["R@1"]["both"] == pytest.approx(mean_recall(figures[1], row["stage"]))
        assert all(row["R@1"][d] == pytest.approx(recall(figures[1], row["stage"], d)) for d in DIRECTIONS)
    for row in record["measured"][:2]:
        assert row["delta"] == pytest.approx(mean_recall(figures[1], "ensemble") - mean_recall(figures[1], row["stage"]))
        assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]
    assert record["measured"][2]["delta"] is None
    better = max(("base", "large"), key=lambda name: mean_recall(figures[1], name))
    assert record["better_member"] == better and record["chosen_on"] is None and record["curve"] == []


def test_a_pair_that_is_compared_has_the_comparison_s_own_verdict(figures: tuple[RetrievalSet, Figures]) -> None:
    base, large, _ = record_of(figures)["measured"]
    (row,) = [
        r for r in figures[1].comparisons if (r["stage"], r["against"], r["direction"], r["metric"]) == ("ensemble", "large", "both", "R@1")
    ]
    assert {key: large[key] for key in ("delta", "ci95", "p_value", "verdict")} == {
        key: row[key] for key in ("delta", "ci95", "p_value", "verdict")
    }
    assert large["in_comparisons"] and not base["in_comparisons"]
    dataset = figures[0]
    alone = evaluate(dataset, [stage("base", dataset, [1], [1.0]), stage("ensemble", dataset, [1, 2], [0.4, 0.6])])
    (row,) = [r for r in alone.comparisons if (r["direction"], r["metric"]) == ("both", "R@1")]
    assert base["p_value"] == row["p_value"] and base["verdict"] == row["verdict"]
    changed = [r | {"verdict": "worse"} if r["metric"] == "R@1" else r for r in figures[1].comparisons]
    assert record_of((dataset, replace(figures[1], comparisons=changed)))["measured"][1]["verdict"] == "worse"


def test_differences_have_the_interval_of_the_comparisons(figures: tuple[RetrievalSet, Figures]) -> None:
    found = Differences(figures[1], figures[0])
    row = found.verdict("ensemble", "large", "both")
    own = {d: found.metrics("large", d).ranks_Q for d in DIRECTIONS}
    for difference in (found.of_means("ensemble", "large"), found.against_ranks("ensemble", own)):
        assert difference["delta"] == pytest.approx(row["delta"]) and difference["ci95"] == pytest.approx(row["ci95"])


def test_the_curve_is_what_was_tried(figures, choice) -> None:
    record = record_of(figures, choice=choice)
    assert record["chosen_on"]["split"] == "val" and record["chosen_on"]["num_images"] == 12
    assert len(record["curve"]) == len(choice.tried) == 2 * 21
    for point, row in zip(choice.tried, record["curve"], strict=True):
        shares = {d: sum(rank == 1 for rank in point.ranks[d].tolist()) / len(point.ranks[d]) for d in DIRECTIONS}
        assert (row["combination"], tuple(row["weights"])) == (point.setting.combination, point.setting.weights)
        assert row["R@1"] == pytest.approx(shares | {"both": sum(shares.values()) / 2})
        assert all(row["ci95"][key][0] <= row["R@1"][key] <= row["ci95"][key][1] for key in row["R@1"])


def test_an_interval_of_the_curve_is_that_of_the_report(figures) -> None:
    """The same stage measured as any stage."""
    dataset, measured = figures
    choice = choose_ensemble([member(dataset, 1), member(dataset, 2)], dataset, ["logits"])
    curve = record_of(figures, choice=choice)["curve"]
    (row,) = [row for row in curve if row["weights"] == [0.4, 0.6]]
    for direction in DIRECTIONS:
        assert row["ci95"][direction] == pytest.approx(measured.stages["ensemble"][direction]["ci95"]["R@1"])


def test_cost_stands_beside_the_gain(figures: tuple[RetrievalSet, Figures]) -> None:
    cost = record_of(figures)["cost"]
    assert cost["ensemble"] == {"seconds": 43.0, "images_per_second": 24 / 21.5, "weight_bytes": 400, "vector_bytes": 96}
    assert cost["base"] == {"stage": "base", "seconds": 10.0, "images_per_second": 24 / 5, "weight_bytes": 100, "vector_bytes": 32}
    assert cost["extra_seconds"] == 33.0


def pairs_by_hand(dataset: RetrievalSet, k: int) -> int:
    """Distinct (image, caption) among the first K of every query."""
    base, pairs = stage("base", dataset, [1], [1.0]), set()
    for direction in DIRECTIONS:
        for query, items in enumerate(base.rankings[direction].top_indices_QK[:, :k].tolist()):
            pairs |= {(query, item) if direction == "image_to_text" else (item, query) for item in items}
    return len(pairs) if k > 1 else 0


@pytest.mark.parametrize("seconds_a_pair", [0.01, 0.15, 0.25, 0.4, 9.0])
def test_the_same_seconds_buy_the_largest_k_they_pay_for(seconds_a_pair: float) -> None:
    dataset, measured = figures = made(seconds_a_pair)
    same = record_of(figures, reranked="base+blip")["same_seconds"]
    k = max(size for size in range(1, TOP_K + 1) if pairs_by_hand(dataset, size) * seconds_a_pair <= 33.0)
    assert (same["stage"], same["k"], same["top_k"], same["pairs"]) == ("base+blip", k, TOP_K, pairs_by_hand(dataset, k))
    assert same["seconds"] == pytest.approx(seconds_a_pair * same["pairs"]) and same["seconds"] <= 33.0
    rows = [row for row in measured.queries.to_pylist() if row["stage"] == "base+blip"]
    shares = []
    for direction in DIRECTIONS:
        ranks = [{at["k"]: at["rank"] for at in row["rank_at_k"]}[k] for row in rows if row["direction"] == direction]
        shares.append(sum(rank == 1 for rank in ranks) / len(ranks))
        assert same["R@1"][direction] == pytest.approx(shares[-1])
    assert same["delta"] == pytest.approx(mean_recall(measured, "ensemble") - sum(shares) / 2)
    assert same["ci95"][0] <= same["delta"] <= same["ci95"][1]
    if k == 1:
        assert same["R@1"]["both"] == pytest.approx(mean_recall(measured, "base")), "nothing is re-ordered"


def test_all_of_those_k_are_met_above() -> None:
    """The prices of the test before reach no reranking, some and all of it."""
    found = {record_of(made(price), reranked="base+blip")["same_seconds"]["k"] for price in (0.01, 0.25, 9.0)}
    assert min(found) == 1 and max(found) == TOP_K and len(found) == 3


def test_what_a_pair_takes_is_not_made_up_where_none_was_scored(figures: tuple[RetrievalSet, Figures]) -> None:
    dataset, measured = figures
    kept = dict(measured.stages)
    kept["base+blip"] = kept["base+blip"] | {"cost": kept["base+blip"]["cost"] | {"pairs_scored": 0, "rerank_seconds": 0.0}}
    assert record_of((dataset, replace(measured, stages=kept)), reranked="base+blip")["same_seconds"] is None


def test_sections_are_absent_where_nothing_was_asked(figures: tuple[RetrievalSet, Figures]) -> None:
    assert combined_sections(figures[1], figures[0], None, []) == []


def page_of(figures: tuple[RetrievalSet, Figures], folder: Path, **others: Any) -> tuple[str, dict[str, Any]]:
    dataset, measured = figures
    sections = combined_sections(measured, dataset, arm(**others), [])
    return (write_report(folder, measured, sections) / "report.html").read_text(), report_record(measured, sections)


def test_the_page_shows_the_curve_the_cost_and_the_same_seconds(figures, choice, tmp_path: Path) -> None:
    page, record = page_of(figures, tmp_path, choice=choice, reranked="base+blip")
    assert page.count('<tr class="member">') == 3 and page.count('<tr class="cost">') == 2
    assert page.count("R@1 over the weight of large in ensemble") == 2, "a drawing for each combination"
    points = [line for line in page.splitlines() if '<tr class="point' in line]
    assert len(points) == 42 and "+33.0 seconds" in page and "Were those seconds spent on reranking base alone" in page
    (line,) = section_lines(record, [ENSEMBLES])
    better = record["ensemble"][0]["better_member"]
    assert line.startswith("ensemble: mean of logits, 0.4 base + 0.6 large, chosen on val (12 images); against the better member, ")
    assert f"better member, {better}" in line and "+33.0 s against base, which would buy base+blip at K = " in line


def test_seconds_that_buy_no_reranking_say_so(tmp_path: Path) -> None:
    page, record = page_of(made(9.0), tmp_path, reranked="base+blip")
    base = f"{100 * mean_recall(made(9.0)[1], 'base'):.2f}"
    assert f"they buy no reranking by base+blip, which leaves a mean R@1 of {base}." in page
    assert "which would buy no reranking: the ensemble is" in section_lines(record, [ENSEMBLES])[0]


def test_the_chosen_point_is_marked_in_words(figures, choice, tmp_path: Path) -> None:
    page, _ = page_of(figures, tmp_path, choice=choice)
    assert page.count("✓ mean of logits (chosen)") == 1
    assert "Were those seconds" not in page


def test_three_members_are_a_table_of_the_twenty_best(figures, tmp_path: Path) -> None:
    dataset, measured = figures
    other = caption_set(12, "val")
    choice = choose_ensemble([member(other, seed) for seed in (1, 2, 3)], other, ["logits"])
    members = ["base", "large", "base+blip"]
    three = replace(arm(choice=choice), members=members, fusion=LateFusion("logits", (0.2, 0.5, 0.3)))
    sections = combined_sections(measured, dataset, three, [])
    page = (write_report(tmp_path, measured, sections) / "report.html").read_text()
    rows = [line for line in page.splitlines() if '<tr class="point' in line]
    assert len(rows) == 20 and "<svg" not in page.split("<h2>Ensembles</h2>")[1].split("<h2>")[0]
    curve = sections[0].record[0]["curve"]
    shown = [float(line.rsplit("<td>", 1)[-1].split("<small>")[0]) for line in rows]
    assert shown == [round(100 * point, 2) for point in sorted((row["R@1"]["both"] for row in curve), reverse=True)[:20]]


def test_a_given_ensemble_says_so(figures: tuple[RetrievalSet, Figures], tmp_path: Path) -> None:
    page, record = page_of(figures, tmp_path)
    assert "as given" in page and ", as given; against" in section_lines(record, [ENSEMBLES])[0]
    assert "Where the weights were chosen" not in page
