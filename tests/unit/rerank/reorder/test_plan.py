"""rerank/reorder/plan.py and the arms of rerank/reorder/tuned_stages.py on two small splits: of one scoring, measured as any, said in the
report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.metrics.evaluate import Figures, evaluate
from eval.report.report import report_record, write_report
from eval.report.sentences import chosen_lines
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.fusion import Fusion, choose_weight
from rerank.reorder.plan import Plan, Reranked
from rerank.reorder.skipping import choose_margin, needed_lists, rerank_within
from rerank.reorder.stages import score_stages
from rerank.reorder.tuned_stages import Asked, chosen_stages
from rerank.scoring.candidates import candidate_lists
from tests.unit.eval.reranked_set import first_stage, picture_set

TOP_K = 5
ARMS = Asked(fusion=True, max_loss=0.05)
LATER = ["base+toy", "base+toy+sum", "base+toy+fused", "base+toy+adaptive"]


class Toy:
    """Says "match" of a picture's own captions more often than not, by what the set holds: a formula of the picture and the text."""

    name, fingerprint = "toy", "toy-1"

    def __init__(self, *datasets: RetrievalSet) -> None:
        self.own = {(key(d.load_image(int(i))), c) for d in datasets for i, c in zip(d.caption_image_C, d.captions, strict=True)}
        self.num_pairs = 0

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        self.num_pairs += len(captions)
        noise = [np.random.default_rng([key(image), *text.encode()]).normal() for text in captions]
        return np.array([n + 1.5 * ((key(image), text) in self.own) for n, text in zip(noise, captions, strict=True)], dtype=np.float32)


def key(image: Image.Image) -> int:
    return int(np.asarray(image).astype(np.int64).sum())


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[RetrievalSet, RetrievalSet]:
    """(measured, chosen on): pictures of two sizes."""
    return tuple(picture_set(tmp_path_factory.mktemp("set"), num, side) for num, side in ((24, 20), (18, 12)))  # type: ignore[return-value]


def retrieved(dataset: RetrievalSet) -> list[Stage]:
    return [first_stage(dataset, depth=12)]


@pytest.fixture(scope="module")
def made(splits: tuple[RetrievalSet, RetrievalSet]) -> tuple[Reranked, Figures]:
    measured, other = splits
    firsts = retrieved(measured)
    reranked = Plan(TOP_K, arms=ARMS).stages(measured, firsts, Toy(*splits), choose_on=(other, retrieved))
    figures = evaluate(measured, firsts + reranked.stages, Plan(TOP_K, arms=ARMS).pairs(["base"], "toy"))
    figures.sections.update(reranked.sections(figures, measured))
    return reranked, figures


def test_arms_are_those_promised_and_each_is_scored_by_the_one_scoring(splits, made) -> None:
    measured, other = splits
    assert [stage.name for stage in made[0].stages] == LATER == Plan(TOP_K, arms=ARMS).names(["base"], "toy")
    scorer = Toy(*splits)
    Plan(TOP_K, arms=ARMS).stages(measured, retrieved(measured), scorer, choose_on=(other, retrieved))
    assert scorer.num_pairs == sum(candidate_lists(retrieved(d)[0].rankings.values(), TOP_K).num_pairs for d in splits)


def test_what_is_chosen_on_one_split_is_measured_on_the_other(splits, made) -> None:
    measured, other = splits
    (there,), (here,) = retrieved(other), retrieved(measured)
    scores_there, scores = (score_stages(d, [s], Toy(*splits), TOP_K) for d, s in ((other, there), (measured, here)))
    fusion = choose_weight(there.rankings, scores_there, TOP_K).fusion
    margin = choose_margin(there.rankings, scores_there, TOP_K, 0.05)
    assert fusion.weight > 0 and 0 < margin < 1, "else this test says little"
    arms = {stage.name: stage for stage in made[0].stages}
    for d in DIRECTIONS:
        expected = {
            "base+toy+sum": Fusion(1.0, fusion.units).rank(here.rankings[d], scores, TOP_K),
            "base+toy+fused": fusion.rank(here.rankings[d], scores, TOP_K),
            "base+toy+adaptive": rerank_within(here.rankings[d], scores, TOP_K, margin),
        }
        for name, ranking in expected.items():
            assert np.array_equal(arms[name].rankings[d].top_indices_QK, ranking.top_indices_QK)
            assert np.array_equal(arms[name].sweep[TOP_K][d], ranking.best_ranks())
            assert np.array_equal(arms[name].sweep[1][d], here.rankings[d].best_ranks())
        assert np.array_equal(arms["base+toy+adaptive"].sweep[4][d], rerank_within(here.rankings[d], scores, 4, margin).best_ranks())
    needed = needed_lists(list(here.rankings.values()), TOP_K, margin)
    assert arms["base+toy+adaptive"].cost["pairs_needed"] == needed.num_pairs < scores.lists.num_pairs
    assert arms["base+toy+fused"].cost["pairs_needed"] == scores.lists.num_pairs


def recall(figures: Figures, stage: str) -> float:
    rows = [row for row in figures.queries.select(["stage", "direction", "rank"]).to_pylist() if row["stage"] == stage]
    return float(np.mean([np.mean([row["rank"] == 1 for row in rows if row["direction"] == d]) for d in DIRECTIONS]))


def test_the_report_says_what_was_chosen_saved_and_gained(splits, made, tmp_path: Path) -> None:
    record = report_record(made[1])
    (fusion,), (adaptive,) = record["fusion"], record["adaptive"]
    assert [(row["stage"], row["weight"]) for row in fusion["measured"]] == list(zip(LATER, [0.0, 1.0, fusion["weight"]], strict=False))
    for row in fusion["measured"]:
        assert row["R@1"]["both"] == pytest.approx(recall(made[1], row["stage"]), abs=1e-12)
        assert row["delta"] == pytest.approx(recall(made[1], row["stage"]) - recall(made[1], "base+toy"), abs=1e-12)
        assert row["ci95"][0] <= row["delta"] <= row["ci95"][1]
    compared = {row["stage"]: row for row in record["comparisons"] if (row["direction"], row["metric"]) == ("both", "R@1")}
    assert fusion["measured"][2]["ci95"] == pytest.approx(compared["base+toy+fused"]["ci95"], abs=1e-12), "the intervals of the comparisons"
    assert adaptive["measured"]["ci95"] == pytest.approx([-end for end in reversed(compared["base+toy+adaptive"]["ci95"])], abs=1e-12)
    assert fusion["chosen_on"]["num_images"] == splits[1].num_images
    by_weight = {w: np.mean([r["R@1"] for r in fusion["weights"] if r["weight"] == w]) for w in {r["weight"] for r in fusion["weights"]}}
    assert by_weight[fusion["weight"]] == pytest.approx(max(share for weight, share in by_weight.items() if weight is not None))
    assert by_weight[None] == pytest.approx(
        np.mean([(ranking.best_ranks() == 1).mean() for ranking in retrieved(splits[1])[0].rankings.values()])
    )
    costs = {name: record["stages"][name]["cost"]["pairs_needed"] for name in ("base+toy", "base+toy+adaptive")}
    measured = adaptive["measured"]
    assert (measured["pairs"], measured["saved"]) == (costs["base+toy"], costs["base+toy"] - costs["base+toy+adaptive"])
    assert measured["loss"] == pytest.approx(recall(made[1], "base+toy") - recall(made[1], "base+toy+adaptive"), abs=1e-12)
    assert measured["ci95"][0] <= measured["loss"] <= measured["ci95"][1]
    assert adaptive["chosen"]["lost"] <= 0.05 and adaptive["curve"][0]["share_saved"] == 0 and adaptive["curve"][-1]["share_saved"] == 1
    page = (write_report(tmp_path, made[1]) / "report.html").read_text()
    assert page.count('<tr class="fused">') == 3 and page.count('<tr class="weight">') == 2 * 11
    assert page.count('<tr class="margin">') == len(adaptive["curve"]) and "first stage alone" in page
    lines = chosen_lines(record)
    assert len(lines) == 2 and f"weight {fusion['weight']:g}" in lines[0] and f"{100 * measured['share_saved']:.1f}% of" in lines[1]
    assert f"trails by {adaptive['margin']:.4f} is skipped, chosen on test (18 images)" in lines[1]


def test_with_a_margin_given_only_what_is_needed_is_scored(splits) -> None:
    measured, scorer = splits[0], Toy(*splits)
    (here,) = retrieved(measured)
    plan = Plan(TOP_K, skip_margin=0.1)
    found = plan.stages(measured, [here], scorer)
    needed = needed_lists(list(here.rankings.values()), TOP_K, 0.1)
    assert scorer.num_pairs == needed.num_pairs < candidate_lists(here.rankings.values(), TOP_K).num_pairs
    assert [stage.name for stage in found.stages] == plan.names(["base"], "toy") == ["base+toy+adaptive"]
    assert plan.pairs(["base"], "toy") == [("base+toy+adaptive", "base")]
    evaluate(measured, [here, *found.stages])


def test_where_nothing_may_be_skipped_the_arm_is_full_reranking_and_the_report_says_so(splits, made, tmp_path: Path) -> None:
    measured, chosen = splits[0], replace(made[0].chosen[0], margin=float("inf"), fusion=None)
    (here,), twin = retrieved(measured), made[0].stages[0]
    scores = score_stages(measured, [here], Toy(*splits), TOP_K)
    (arm,) = chosen_stages([chosen], [here, twin], scores)
    assert all(np.array_equal(arm.rankings[d].top_indices_QK, twin.rankings[d].top_indices_QK) for d in DIRECTIONS)
    figures = evaluate(measured, [here, twin, arm])
    figures.sections.update(Reranked([arm], scores, [chosen]).sections(figures, measured))
    (record,) = report_record(figures)["adaptive"]
    assert (record["margin"], record["measured"]["saved"], record["measured"]["loss"]) == (None, 0, 0.0)
    assert "nothing may be skipped" in chosen_lines(report_record(figures))[0]
    assert "Nothing may be skipped" in (write_report(tmp_path, figures) / "report.html").read_text()


def test_seconds_pick_k(splits, capsys: pytest.CaptureFixture[str]) -> None:
    measured = splits[0]
    many = Plan(TOP_K, seconds=3600).stages(measured, retrieved(measured), Toy(*splits))
    assert many.budget is not None and many.budget.top_k == TOP_K == many.stages[0].top_k
    assert capsys.readouterr().out.startswith("budget   3600 s to rerank in; measured")
    assert many.sections(evaluate(measured, [*retrieved(measured), *many.stages]), measured) == {"budget": many.budget.record()}
    with pytest.raises(UserError, match="too few to rerank in"):
        Plan(TOP_K, seconds=1e-9).stages(measured, retrieved(measured), Toy(*splits))


def test_a_single_candidate_leaves_nothing_to_choose(splits) -> None:
    measured, other = splits
    with pytest.raises(UserError, match="take 2 or more"):
        Plan(1, arms=ARMS).stages(measured, retrieved(measured), Toy(*splits), choose_on=(other, retrieved))
