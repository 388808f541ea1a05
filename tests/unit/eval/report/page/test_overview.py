"""The first screen: the sentence and the tiles by hand, intervals against the report's own, what was chosen where."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.metrics.evaluate import Figures, evaluate
from eval.report.page.about import About
from eval.report.page.overview import mean_intervals, overview
from eval.report.report import write_report
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS
from tests.unit.eval.reranked_set import first_stage, picture_set, reranked


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RetrievalSet:
    return picture_set(tmp_path_factory.mktemp("pictures"), side=16)


@pytest.fixture(scope="module")
def figures(dataset: RetrievalSet) -> Figures:
    """base, tuned, and what reranks tuned."""
    base, tuned = first_stage(dataset), first_stage(dataset, "tuned", 0.4, seed=2)
    return evaluate(dataset, [base, tuned, reranked(dataset, tuned)], [("tuned", "base"), ("tuned+blip", "tuned")])


def with_means(figures: Figures, means: Mapping[str, float], **row: Any) -> Figures:
    """Other means, and another comparison of tuned with base."""
    stages = {name: values | {d: values[d] | {"R@1": means[name]} for d in DIRECTIONS} for name, values in figures.stages.items()}
    own = [one | row if (one["stage"], one["direction"], one["metric"]) == ("tuned", "both", "R@1") else one for one in figures.comparisons]
    return replace(figures, stages=stages, comparisons=own)


MEANS = {"base": 0.26, "tuned": 0.388, "tuned+blip": 0.949}
BETTER = (0.128, [0.083, 0.174], "better")
TUNING = About(words={("tuned", "base"): "Tuning"})


@pytest.mark.parametrize(
    ("row", "about", "sentence"),
    [
        (BETTER, TUNING, "Tuning raised mean R@1 from 26.0 to 38.8 (+12.8, 95% interval +8.3 to +17.4): better."),
        ((-0.02, [-0.03, -0.01], "worse"), TUNING, "Tuning lowered mean R@1 from 26.0 to 38.8 (−2.0, 95% interval −3.0 to −1.0): worse."),
        (
            (0.01, [-0.01, 0.03], "no evidence"),
            TUNING,
            "Tuning moved mean R@1 from 26.0 to 38.8 (+1.0, 95% interval −1.0 to +3.0): no evidence of a difference.",
        ),
        (BETTER, About(), "tuned has a mean R@1 of 38.8, base of 26.0 (+12.8, 95% interval +8.3 to +17.4): better."),
    ],
)
def test_one_sentence_answers(figures: Figures, row: tuple[float, list[float], str], about: About, sentence: str) -> None:
    delta, ci95, verdict = row
    made = with_means(figures, MEANS, delta=delta, ci95=ci95, verdict=verdict)
    assert overview(made, about, {}).sentence == sentence


def test_the_pair_asked_for_is_the_answer_and_the_tiles_go_through_it(figures: Figures) -> None:
    assert [row.stage for row in overview(figures, About(), {}).tiles] == ["base", "tuned", "tuned+blip"]
    asked = overview(figures, About(pair=("tuned+blip", "tuned")), {})
    assert asked.sentence.startswith("Reranking ") and [row.stage for row in asked.tiles] == ["tuned", "tuned+blip"]
    alone = overview(replace(figures, comparisons=[], outcomes=[]), About(), {})
    assert alone.sentence.startswith("Mean R@1: that of base is ") and all(row.compared is None for row in alone.rows)


def test_intervals_of_the_mean_are_those_of_one_direction_where_both_are_the_same(figures: Figures) -> None:
    """Rows of image to text given as both directions: then the mean is that direction's."""
    one = figures.queries.filter(pa.compute.equal(figures.queries["direction"], "image_to_text"))
    place = one.column_names.index("direction")
    both = pa.concat_tables([one, one.set_column(place, "direction", pa.array(["text_to_image"] * len(one)))])
    found = mean_intervals(both, list(figures.stages))
    assert found == {name: pytest.approx(values["image_to_text"]["ci95"]["R@1"]) for name, values in figures.stages.items()}


def test_everything_drawn_lies_on_the_axis(figures: Figures) -> None:
    first = overview(figures, About(), {})
    places = [first.place(share) for row in first.rows for share in (*row.ci95, row.mean)] + [first.place(tick) for tick in first.ticks]
    assert min(places) >= 0 and max(places) <= 100 and 0 <= first.low < first.high <= 1


def test_what_was_chosen_on_val_is_said_of_the_stage_and_of_what_reranks_it(figures: Figures, tmp_path: Path) -> None:
    kind = SectionFormat(key="fusion", chosen=lambda record: {"tuned+blip": "weight 1 chosen on val"})
    about = About(chosen={"tuned": "checkpoint of step 4, chosen on val"})
    page = (write_report(tmp_path, figures, [Section(kind, None)], about=about) / "report.html").read_text(encoding="utf-8")
    told = "<td class=\"word\">tuned+blip<small>weight 1 chosen on val; checkpoint of step 4, chosen on val</small></td>"
    assert told in page and '<td class="word">tuned<small>checkpoint of step 4, chosen on val</small></td>' in page
    assert '<td class="word">base</td>' in page


def test_there_is_a_banner_only_where_there_is_something_to_say(figures: Figures, tmp_path: Path) -> None:
    many = replace(figures, data=figures.data | {"num_images": 300})
    quiet = (write_report(tmp_path, many) / "report.html").read_text(encoding="utf-8")
    assert 'class="banner"' not in quiet
    told = (write_report(tmp_path, many, about=About(warnings=["It was forgotten."])) / "report.html").read_text(encoding="utf-8")
    assert told.count('class="banner"') == 1 and "<li>It was forgotten.</li>" in told
