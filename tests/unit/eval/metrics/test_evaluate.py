"""Figures recomputed from the table of queries alone."""

from dataclasses import replace

import numpy as np
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import Figures, evaluate, values_of
from eval.metrics.metrics import RECALL_AT
from eval.metrics.significance import ImageSums, resample_weights
from eval.metrics.stage_metrics import METRICS, StageMetrics
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from tests.unit.eval.one_direction import search


def retrieval_set(num_images: int = 30) -> RetrievalSet:
    generator = np.random.default_rng(0)
    images = []
    for number in range(num_images):
        captions = [f"caption {number} {place}" for place in range(int(generator.integers(1, 5)))]
        captions += ["a dog"] if number % 7 == 0 else []
        images.append(ManifestImage(f"i{number:03d}", "test", None, None, number, "g" if number < 3 else None, captions, "here"))
    return RetrievalSet(images, None, source="memory", split="test")


def stage(name: str, dataset: RetrievalSet, noise: float, seed: int = 0) -> Stage:
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(dataset.num_images, 8))
    captions = images[dataset.caption_image_C] + noise * generator.normal(size=(dataset.num_captions, 8))
    images, captions = (np.float32(x / np.linalg.norm(x, axis=1, keepdims=True)) for x in (images, captions))
    rankings = {
        "image_to_text": search("image_to_text", images, captions, dataset.positives("image_to_text"), 10),
        "text_to_image": search("text_to_image", captions, images, dataset.positives("text_to_image"), 10),
    }
    return Stage(name, rankings, {"seconds": 1.5, "pairs_scored": 0})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def figures() -> Figures:
    dataset = retrieval_set()
    return evaluate(dataset, [stage("base", dataset, 2.0), stage("tuned", dataset, 0.7)])


def test_shape_of_the_record(figures: Figures) -> None:
    assert set(figures.data) == {"source", "split", "num_images", "num_captions", "sha256", "truth"}
    assert list(figures.stages) == ["base", "tuned"]
    for record in figures.stages.values():
        assert set(record) == {"image_to_text", "text_to_image", "cost"}
        for direction in DIRECTIONS:
            assert set(record[direction]) == {*METRICS, "ci95"}
            assert set(record[direction]["ci95"]) == set(METRICS)
    wanted = {"stage", "against", "direction", "metric", "delta", "ci95", "p_value", "wins", "losses", "verdict"}
    assert all(set(row) == wanted for row in figures.comparisons)
    shown = [(row["direction"], row["metric"]) for row in figures.comparisons]
    assert shown == [(direction, f"R@{k}") for direction in (*DIRECTIONS, "both") for k in RECALL_AT]
    assert figures.queries.column_names == [
        *("stage", "direction", "query_id", "image_id", "rank"),
        *("num_positives", "ap_at_r", "r_precision", "top_ids", "top_scores", "rank_at_k"),
    ]


def test_means_are_those_of_the_table(figures: Figures) -> None:
    rows = figures.queries.to_pylist()
    for name, record in figures.stages.items():
        for direction in DIRECTIONS:
            chosen = [row for row in rows if row["stage"] == name and row["direction"] == direction]
            ranks = np.array([row["rank"] for row in chosen])
            expected = {f"R@{k}": (ranks <= k).mean() for k in RECALL_AT}
            expected |= {"median_rank": np.median(ranks), "mean_rank": ranks.mean(), "MRR": (1 / ranks).mean()}
            expected["mAP@R"] = np.mean([row["ap_at_r"] for row in chosen])
            expected["R-Precision"] = np.mean([row["r_precision"] for row in chosen])
            for metric in METRICS:
                assert record[direction][metric] == pytest.approx(expected[metric], abs=1e-12)
                low, high = record[direction]["ci95"][metric]
                assert low <= record[direction][metric] <= high


def test_intervals_are_those_of_resampled_images(figures: Figures) -> None:
    """Repeating each query as often as its image was drawn, with numpy's own mean and median."""
    chosen = [row for row in figures.queries.to_pylist() if row["stage"] == "base" and row["direction"] == "text_to_image"]
    ranks, images = np.array([row["rank"] for row in chosen]), np.array([int(row["image_id"][1:]) for row in chosen])
    samples = [np.repeat(ranks, weights[images].astype(int)) for weights in resample_weights(30)]
    ci95 = figures.stages["base"]["text_to_image"]["ci95"]
    for metric, values in {"median_rank": map(np.median, samples), "mean_rank": map(np.mean, samples)}.items():
        assert ci95[metric] == pytest.approx(np.quantile(list(values), [0.025, 0.975]).tolist())


@pytest.mark.parametrize("queries_per_image", [1, 2])
def test_every_resampled_median_is_numpys(queries_per_image: int) -> None:
    """21 images drawn: an odd number of queries has one in the middle, an even number two."""
    images = np.repeat(np.arange(21), queries_per_image)
    ranks = np.random.default_rng(3).integers(1, 1000, len(images))
    weights = resample_weights(21, num_resamples=100)
    arm = StageMetrics(ranks, images, ImageSums.of(ranks[:, None].astype(float), images, 21))
    assert arm._resampled_medians(weights).tolist() == [np.median(np.repeat(ranks, row[images])) for row in weights]


def test_table_agrees_with_the_data_set(figures: Figures) -> None:
    dataset = retrieval_set()
    positives = {direction: dataset.positives(direction) for direction in DIRECTIONS}
    gallery = {"image_to_text": list(dataset.caption_ids), "text_to_image": list(dataset.image_ids)}
    number = {direction: {name: n for n, name in enumerate(gallery[direction])} for direction in DIRECTIONS}
    for row in figures.queries.to_pylist():
        own = number["text_to_image" if row["direction"] == "image_to_text" else "image_to_text"][row["query_id"]]
        right = set(positives[row["direction"]].of(own).tolist())
        assert row["num_positives"] == len(right) and row["query_id"].split("#")[0] == row["image_id"]
        found = [place for place, name in enumerate(row["top_ids"], 1) if number[row["direction"]][name] in right]
        assert row["rank"] == found[0] if found else row["rank"] > len(row["top_ids"])


def test_wins_losses_and_deltas(figures: Figures) -> None:
    rows = figures.queries.to_pylist()
    hit = {(r["stage"], r["direction"], r["query_id"]): r["rank"] <= 1 for r in rows}
    for direction in (*DIRECTIONS, "both"):
        row = next(r for r in figures.comparisons if r["direction"] == direction and r["metric"] == "R@1")
        sides = DIRECTIONS if direction == "both" else (direction,)
        queries = [(s, q) for (name, s, q) in hit if name == "base" and s in sides]
        assert row["wins"] == sum(hit["tuned", *query] and not hit["base", *query] for query in queries)
        assert row["losses"] == sum(hit["base", *query] and not hit["tuned", *query] for query in queries)
        deltas = [figures.stages["tuned"][s]["R@1"] - figures.stages["base"][s]["R@1"] for s in sides]
        assert row["delta"] == pytest.approx(np.mean(deltas)) and row["ci95"][0] <= row["delta"] <= row["ci95"][1]
    both = next(r for r in figures.comparisons if r["direction"] == "both")
    assert both["verdict"] == "better" and both["ci95"][0] > 0


def test_equal_arms_give_no_evidence() -> None:
    dataset = retrieval_set()
    figures = evaluate(dataset, [stage("base", dataset, 2.0), stage("tuned", dataset, 2.0)])
    for row in figures.comparisons:
        assert (row["delta"], row["ci95"], row["p_value"], row["verdict"]) == (0.0, [0.0, 0.0], 1.0, "no evidence")


def test_no_verdict_changes_when_another_stage_is_added() -> None:
    """Correction is within a question, one pair of stages: what else a report measures has no part in it."""
    dataset = retrieval_set()
    stages = [stage("base", dataset, 2.0), stage("tuned", dataset, 1.4)]
    others = [stage(f"other {number}", dataset, 2.0, seed=number) for number in range(1, 6)]
    pairs = [("tuned", "base")]
    alone = evaluate(dataset, stages, pairs).comparisons
    among = evaluate(dataset, stages + others, [(other.name, "base") for other in others] + pairs).comparisons
    assert [row for row in among if row["stage"] == "tuned"] == alone
    assert {row["verdict"] for row in alone} == {"better", "no evidence"}, "or the test could not see a change"


def test_pairs_can_be_chosen() -> None:
    dataset = retrieval_set(12)
    stages = [stage("a", dataset, 1.0), stage("b", dataset, 1.5), stage("c", dataset, 2.0)]
    assert {(row["stage"], row["against"]) for row in evaluate(dataset, stages).comparisons} == {("b", "a"), ("c", "b")}
    assert {(row["stage"], row["against"]) for row in evaluate(dataset, stages, [("c", "a")]).comparisons} == {("c", "a")}
    assert evaluate(dataset, stages[:1]).comparisons == []


def test_values_are_those_of_the_report() -> None:
    dataset = retrieval_set()
    base = stage("base", dataset, 2.0)
    record = evaluate(dataset, [base]).stages["base"]
    for direction, values in values_of(dataset, base).items():
        assert values == {key: value for key, value in record[direction].items() if key != "ci95"}


def test_faults_of_stages_are_told_at_once() -> None:
    dataset = retrieval_set(12)
    whole = stage("a", dataset, 1.0)
    half = Stage("half", {"image_to_text": whole.rankings["image_to_text"]})
    scores = whole.rankings["text_to_image"].top_scores_QK.copy()
    scores[3:9, 1] = np.nan
    broken = Stage("nan", {**whole.rankings, "text_to_image": replace(whole.rankings["text_to_image"], top_scores_QK=scores)})
    small = stage("small", retrieval_set(10), 1.0)
    with pytest.raises(UserError) as caught:
        evaluate(dataset, [whole, whole, half, broken, small], [("a", "z")])
    told = str(caught.value)
    assert "'a' is there 2 times" in told and "'half' has no ranking text_to_image" in told and "['z']" in told
    assert "'nan', text_to_image: 6 queries have a score that is not a finite number, e.g. " + str(dataset.caption_ids[3:8]) in told
    assert "'small', image_to_text: 10 queries were ranked, but the split has 12" in told
