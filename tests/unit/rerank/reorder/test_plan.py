"""rerank/reorder/plan.py, reranking.py and the tuned stages of stages.py on two small splits: of one scoring, measured as any, told in the
report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import SettingError, UserError
from eval.metrics.evaluate import Figures, evaluate
from eval.report.report import report_record, write_report
from eval.report.section import section_lines
from eval.search.ranking import DIRECTIONS
from eval.search.stage import Stage
from rerank.reorder.fusion import Fusion, choose_weight
from rerank.reorder.plan import Plan, Tuning
from rerank.reorder.record import ADAPTIVE, FUSION
from rerank.reorder.reranking import Reranked, rerank_stages
from rerank.reorder.skipping import choose_margin, needed_lists, rerank_within
from rerank.reorder.stages import score_stages
from rerank.scoring.candidates import candidate_lists
from tests.unit.eval.reranked_set import first_stage, picture_set

TOP_K = 5
PLAN = Plan(top_k=TOP_K, tuning=Tuning(fusion=True, max_loss=0.05))
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
    reranked = rerank_stages(PLAN, measured, firsts, Toy(*splits), tune_on=(other, retrieved))
    pairs = PLAN.pairs(["base"], "toy") + PLAN.tuned_pairs(["base"], "toy")
    return reranked, evaluate(measured, firsts + reranked.stages, pairs)


def test_arms_are_those_promised_and_each_is_scored_by_the_one_scoring(splits, made) -> None:
    measured, other = splits
    assert [stage.name for stage in made[0].stages] == LATER == PLAN.names(["base"], "toy")
    scorer = Toy(*splits)
    rerank_stages(PLAN, measured, retrieved(measured), scorer, tune_on=(other, retrieved))
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
    sections = made[0].sections(made[1], splits[0])
    record = report_record(made[1], sections)
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
    page = (write_report(tmp_path, made[1], sections) / "report.html").read_text()
    assert page.count('<tr class="fused">') == 3 and page.count('<tr class="weight">') == 2 * 11
    assert page.count('<tr class="margin">') == len(adaptive["curve"]) and "first stage alone" in page
    lines = section_lines(record, (FUSION, ADAPTIVE))
    assert len(lines) == 2 and f"weight {fusion['weight']:g}" in lines[0] and f"{100 * measured['share_saved']:.1f}% of" in lines[1]
    assert f"trails by {adaptive['margin']:.4f} is skipped, chosen on test (18 images)" in lines[1]


def test_with_a_margin_given_only_what_is_needed_is_scored(splits) -> None:
    measured, scorer = splits[0], Toy(*splits)
    (here,) = retrieved(measured)
    plan = Plan(top_k=TOP_K, skip_margin=0.1)
    found = rerank_stages(plan, measured, [here], scorer)
    needed = needed_lists(list(here.rankings.values()), TOP_K, 0.1)
    assert scorer.num_pairs == needed.num_pairs < candidate_lists(here.rankings.values(), TOP_K).num_pairs
    assert [stage.name for stage in found.stages] == plan.names(["base"], "toy") == ["base+toy+adaptive"]
    assert plan.pairs(["base"], "toy") == [("base+toy+adaptive", "base")]
    evaluate(measured, [here, *found.stages])


def test_where_nothing_may_be_skipped_the_arm_is_full_reranking_and_the_report_says_so(splits, made, tmp_path: Path) -> None:
    measured, chosen = splits[0], replace(made[0].tuned[0], margin=float("inf"), fusion=None)
    (here,), twin = retrieved(measured), made[0].stages[0]
    scores = score_stages(measured, [here], Toy(*splits), TOP_K)
    (arm,) = chosen.stages(here, scores, twin.cost)
    assert all(np.array_equal(arm.rankings[d].top_indices_QK, twin.rankings[d].top_indices_QK) for d in DIRECTIONS)
    figures = evaluate(measured, [here, twin, arm])
    sections = Reranked([arm], scores, [chosen]).sections(figures, measured)
    (record,) = report_record(figures, sections)["adaptive"]
    assert (record["margin"], record["measured"]["saved"], record["measured"]["loss"]) == (None, 0, 0.0)
    assert "nothing may be skipped" in section_lines(report_record(figures, sections), (ADAPTIVE,))[0]
    assert "Nothing may be skipped" in (write_report(tmp_path, figures, sections) / "report.html").read_text()


def test_seconds_pick_k(splits, capsys: pytest.CaptureFixture[str]) -> None:
    measured = splits[0]
    many = rerank_stages(Plan(top_k=TOP_K, seconds=3600), measured, retrieved(measured), Toy(*splits))
    assert many.budget is not None and many.budget.top_k == TOP_K == many.stages[0].top_k
    assert capsys.readouterr().out.startswith("budget   3600 s to rerank in; measured")
    (section,) = many.sections(evaluate(measured, [*retrieved(measured), *many.stages]), measured)
    assert (section.format.key, section.record) == ("budget", many.budget.record())
    assert "Time budget: 3600 s to rerank in" in section.notes[0]
    with pytest.raises(UserError, match="too few to rerank in"):
        rerank_stages(Plan(top_k=TOP_K, seconds=1e-9), measured, retrieved(measured), Toy(*splits))


@pytest.mark.parametrize(
    ("values", "setting", "message"),
    [
        ({"top_k": 0}, "top_k", "expected 1 candidate per query or more; found 0"),
        ({"top_k": 1, "tuning": Tuning(fusion=True)}, "top_k", "a choice needs 2 per query or more; found 1"),
        ({"top_k": 1, "seconds": 5.0}, "top_k", "a time budget needs 2"),
        ({"top_k": 1, "skip_margin": 0.1}, "top_k", "a margin needs 2"),
        ({"seconds": 0.0}, "seconds", "expected a time above 0 seconds; found 0"),
        ({"seconds": float("nan")}, "seconds", "found nan"),
        ({"skip_margin": -1.0}, "skip_margin", "0 or more; found -1"),
        ({"skip_margin": 0.1, "tuning": Tuning(max_loss=0.1)}, "skip_margin", "leave it out, or choose neither"),
    ],
)
def test_a_plan_checks_itself_and_names_the_setting(values: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        Plan(**{"top_k": 5} | values)
    assert refused.value.setting == setting and "--" not in str(refused.value)


@pytest.mark.parametrize("max_loss", [-0.1, 1.5, float("nan")])
def test_a_loss_is_a_share(max_loss: float) -> None:
    with pytest.raises(SettingError, match="expected a share from 0 to 1"):
        Tuning(max_loss=max_loss)


def test_only_the_stages_asked_for_are_tuned() -> None:
    plan = Plan(top_k=5, tuning=Tuning(fusion=True, max_loss=0.1, stages=("tuned",)))
    assert plan.names(["base", "tuned"], "toy") == ["base+toy", "tuned+toy", "tuned+toy+sum", "tuned+toy+fused", "tuned+toy+adaptive"]
    assert plan.tuned_pairs(["base", "tuned"], "toy") == [("tuned+toy+fused", "tuned+toy"), ("tuned+toy+adaptive", "tuned+toy")]
