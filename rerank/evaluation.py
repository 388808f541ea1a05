"""The one evaluation: `python -m eval`, a job's final report and the report of a retention set are a plan and a call of `evaluate_plan`;
what has its models in memory (a tuned cross-encoder, a soup, an interpolation of weights) calls the parts below it.

    plan = EvaluationPlan(checkpoints={"model": "google/siglip-base-patch16-224"}, reranking=Plan(top_k=32))
    report = evaluate_plan(plan, test_set, tune_on=val_set, reranker=Reranker(load_scorer("Salesforce/blip-itm-base-coco")))
    if report is not None:  # on the main process
        report.write("runs/report")
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.atomic import replace_files
from eval.choices.report import CHOICES
from eval.dataset.different_texts import other_gallery
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.checkpoint import load_inputs
from eval.encoder.inputs import SiglipInputs
from eval.errors import SettingError
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.checks import pair_faults
from eval.metrics.evaluate import Figures, evaluate, values_of
from eval.report.answer import LastWords, print_answer
from eval.report.calibration import CALIBRATION
from eval.report.gallery import Gallery, gallery
from eval.report.leakage import LEAKAGE
from eval.report.mteb import write_mteb
from eval.report.page.about import About
from eval.report.precision import PRECISION, precision_sections
from eval.report.report import print_report, report_record, write_report
from eval.report.revisions import REVISIONS, revision_sections
from eval.report.section import Section
from eval.report.skipped import SKIPPED
from eval.report.texts import TEXTS, text_record, texts_section
from eval.report.trec import TREC, trec_section, write_trec
from eval.search.stage import Stage
from rerank import stage_names
from rerank.calibration import Reranker, StagesOf, calibration_file, calibration_section, candidates_of, known_scores
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.first_stages import MINIMUM_DEPTH, FirstStages
from rerank.combine.record import ENSEMBLES, EXPANSIONS, combined_sections, expansion_table
from rerank.combine.spec import POOLINGS_OF_SCORES, Combining
from rerank.expansions.base import Expansion
from rerank.expansions.generated import Paraphraser
from rerank.expansions.given_texts import CAPTIONS
from rerank.nnn import NNN, NormalisedStage
from rerank.reorder.plan import Plan
from rerank.reorder.record import ADAPTIVE, BUDGET, FUSION
from rerank.reorder.reranking import Reranked, rerank_stages

FORMATS = (TEXTS, FUSION, ADAPTIVE, BUDGET, ENSEMBLES, EXPANSIONS, NNN, CALIBRATION, LEAKAGE, SKIPPED, PRECISION, REVISIONS, CHOICES, TREC)
"""How the sections of a report are shown, in the order of the terminal's sentences."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What one evaluation measures and compares.

    Attributes:
        checkpoints: folder or hub id by the name of its stage, in the order of the report; members of an ensemble among them.
        combining: how they are combined, in addition to measuring each alone.
        expansions: what makes additional views, by the names `combining` gives.
        reranking: how first stages are reranked; None: they are not.
        comparisons: (stage, against); None: what each step gained.
        subject, baseline: the checkpoint the report is about, and the one it began as: by default every other checkpoint is compared with
            the baseline, and the reranked subject with the reranked baseline; None: each checkpoint is compared with the one before.
        nnn: `combining.checkpoint` is also ranked by nearest-neighbour normalisation.
        trec_depth: how many items of each query TREC runs hold; None: there are none.

    Raises:
        SettingError: names that are no names or stand for two, or an expansion that cannot be pooled as asked.
    """

    checkpoints: Mapping[str, str]
    combining: Combining = Combining()
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    reranking: Plan | None = None
    comparisons: tuple[tuple[str, str], ...] | None = None
    subject: str | None = None
    baseline: str | None = None
    strip_punctuation: bool = False
    nnn: bool = False
    trec_depth: int | None = None

    def __post_init__(self) -> None:
        bad = [name for name in self.checkpoints if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
        names = self.first_stages
        if bad or len(set(names)) != len(names):
            raise SettingError(
                "checkpoints", f"each needs a name of its own, of letters, digits and ._-, and not that of another stage; found {names}"
            )
        if unknown := [name for name in self.combining.reused if name not in self.checkpoints]:
            raise SettingError("members", f"{unknown} are no checkpoints of this evaluation; there are {list(self.checkpoints)}")
        searched = [name for name, one in self.expansions.items() if one.name == CAPTIONS]
        if self.combining.pools_by_rank and searched:
            raise SettingError(
                "pools",
                f"reciprocal-rank: the views of {', '.join(searched)} are of images that are searched, and only what asks ranks a gallery; "
                f"pool by {POOLINGS_OF_SCORES}",
            )

    @cached_property
    def inputs(self) -> dict[str, SiglipInputs]:
        """How each checkpoint reads captions and images, loaded once; errors as of `eval.encoder.checkpoint.load_inputs`."""
        return {name: load_inputs(path, strip_punctuation=self.strip_punctuation) for name, path in self.checkpoints.items()}

    def with_top_k(self, top_k: int) -> "EvaluationPlan":
        """The same with another number of candidates to rerank; inputs that were loaded are not loaded again.

        Raises:
            SettingError: as of `Plan`.
        """
        assert self.reranking is not None
        other = replace(self, reranking=replace(self.reranking, top_k=top_k))
        if "inputs" in self.__dict__:
            other.__dict__["inputs"] = self.inputs
        return other

    @property
    def chooses(self) -> bool:
        """True if another split would decide something."""
        return self.nnn or self.combining.chooses or (self.reranking is not None and self.reranking.tuning.any)

    @property
    def first_stages(self) -> list[str]:
        """Names of what is measured without a reranker."""
        combined = [stage for stage, _, _ in self.combining.combined]
        return [*self.checkpoints, *combined, *([stage_names.normalised(self.combining.checkpoint)] if self.nnn else [])]

    def names(self, scorer_name: str | None) -> list[str]:
        """Names of all stages there will be; scorer_name: of the reranker, None: there is none."""
        if self.reranking is None or scorer_name is None:
            return self.first_stages
        return self.first_stages + self.reranking.names(self.first_stages, scorer_name)

    def pairs(self, scorer_name: str | None) -> list[tuple[str, str]]:
        """(stage, against) to compare: those given, or else what each step gained.

        That is: checkpoints; the ensemble and what is expanded; what is reranked against its first stage; what is tuned against that.

        Raises:
            SettingError: a pair given names no stage, or is there twice.
        """
        if self.comparisons is not None:
            if faults := pair_faults(self.comparisons, self.names(scorer_name)):
                raise SettingError("comparisons", "; ".join(faults))
            return list(self.comparisons)
        names = list(self.checkpoints)
        if self.baseline is not None:
            pairs = [(name, self.baseline) for name in names if name != self.baseline]
        else:
            pairs = list(zip(names[1:], names, strict=False))
        pairs += self.combining.pairs
        pairs += [(stage_names.normalised(self.combining.checkpoint), self.combining.checkpoint)] if self.nnn else []
        if self.reranking is None or scorer_name is None:
            return pairs
        pairs += self.reranking.pairs(self.first_stages, scorer_name)
        if self.subject is not None and self.baseline is not None:
            pairs.append((self.reranking.name(self.subject, scorer_name), self.reranking.name(self.baseline, scorer_name)))
        return pairs + self.reranking.tuned_pairs(self.first_stages, scorer_name)


@dataclass(frozen=True)
class Report:
    """What was measured, ready to be written and printed; of the main process.

    Attributes:
        sections: what else was found, in the order of the page.
        expansions: the rows of expansions.parquet; None: no additional view is in use.
        shown: queries with their first answers.
        stages: what was measured, each to the depth of the TREC runs.
        about: what the page says of where the figures come from.
    """

    dataset: RetrievalSet
    figures: Figures
    sections: list[Section] = field(default_factory=list)
    expansions: pa.Table | None = None
    shown: Gallery = Gallery()
    stages: Sequence[Stage] = ()
    about: About = About()

    @property
    def record(self) -> dict[str, Any]:
        """What report.json holds."""
        return report_record(self.figures, self.sections)

    def adding(self, *sections: Section) -> "Report":
        """The same with additional sections at the end."""
        return replace(self, sections=[*self.sections, *sections])

    def beginning(self, *sections: Section) -> "Report":
        """The same with additional sections at the beginning."""
        return replace(self, sections=[*sections, *self.sections])

    def told(self, about: About) -> "Report":
        """The same with what its page says of where the figures come from."""
        return replace(self, about=about)

    def write(self, folder: str | os.PathLike[str], *, trec: bool = False, languages: Sequence[str] | None = None) -> Path:
        """Write report.json, queries.parquet and report.html; expansions.parquet where there is. Returns the folder.

        Args:
            trec: write TREC files too.
            languages: of the captions, for MTEB's result files; None: write none.

        Raises:
            OSError: the folder cannot be written.
        """
        target = write_report(folder, self.figures, self.sections, gallery=self.shown, about=self.about)
        if self.expansions is not None:
            replace_files({target / "expansions.parquet": partial(pq.write_table, self.expansions)})
        if trec:
            write_trec(target / "trec", self.stages, self.dataset)
        if languages is not None:
            write_mteb(target / "mteb", self.stages, self.dataset, languages)
        return target

    def write_calibration(self, path: Path) -> None:
        """Write calibration.json, where the evaluation was asked for one.

        Raises:
            OSError: it cannot be written.
        """
        for section in self.sections:
            if section.format is CALIBRATION:
                replace_files({path: json.dumps(calibration_file(section.record), indent=1, allow_nan=False) + "\n"})


def print_record(record: dict[str, Any], folder: str | os.PathLike[str]) -> None:
    """Print a report's tables and sentences; at the end what it found, and where it lies."""
    print_tables(record)
    places = [report_line(folder)]
    print_answer(LastWords.of(record, places=places, next=f"query by query against another report: ./launch.sh compare RUN {folder}"))


def print_tables(record: dict[str, Any]) -> None:
    """Print a report's tables and sentences."""
    print_report(record, FORMATS)


def report_line(folder: str | os.PathLike[str]) -> str:
    """Where a report lies; report.json and queries.parquet are next to it."""
    return f"report   {folder}/report.html"


def read_texts(plan: EvaluationPlan, dataset: RetrievalSet, execution: Execution = ONE_PROCESS) -> dict[str, Any]:
    """What the captions of a split are like, and what the tokenizer of each checkpoint makes of them; call on every process.

    Raises:
        UserError: a checkpoint's tokenizer cannot be used.
    """
    every, tokens = dataset.every or dataset, dict[str, CaptionTokens]()
    for name, inputs in execution.processes.together(lambda: plan.inputs).items():
        tokens[name] = CaptionTokens.of(inputs, every.captions, execution.processes)
    gallery = "every" if dataset.every is None else "different"
    return text_record(every.captions, every.caption_hash_C, tokens, gallery=gallery)


def evaluate_plan(
    plan: EvaluationPlan,
    dataset: RetrievalSet,
    *,
    tune_on: RetrievalSet | None = None,
    bank: RetrievalSet | None = None,
    calibrate_on: RetrievalSet | None = None,
    reranker: Reranker | None = None,
    texts: dict[str, Any] | None = None,
    execution: Execution = ONE_PROCESS,
) -> Report | None:
    """Choose, measure and compare; call on every process. What goes wrong on one is raised on all; the report is the main process's.

    Args:
        dataset: the split that is measured, with its ground truth.
        tune_on: the split that everything left to choose is chosen on; None: nothing is.
        bank: the reference queries of `plan.nnn`, of a third split.
        calibrate_on: the split that the scores of the checkpoint `plan.combining` names are calibrated on, alone and reranked; None: none.
        reranker: the cross-encoder of `plan.reranking`.
        texts: what `read_texts` gave of the split; None: it is read here.

    Raises:
        UserError: a checkpoint, an expansion or the reranker cannot be used, or a pair of stages cannot be compared.
    """
    scorer_name = reranker.scorer.name if reranker is not None else None
    pairs = plan.pairs(scorer_name)
    texts = read_texts(plan, dataset, execution) if texts is None else texts
    other = other_gallery(dataset)
    sets = EmbeddedSets(
        checkpoints=plan.checkpoints,
        expansions=plan.expansions,
        reused=plan.combining.reused or ([plan.combining.checkpoint] if plan.nnn else []),
        execution=execution,
        strip_punctuation=plan.strip_punctuation,
        galleries={dataset: other} if other is not None else {},
        bank=bank,
    )
    depth = max(MINIMUM_DEPTH, plan.reranking.top_k if plan.reranking is not None else 0)
    calibrated_k = candidates_of([dataset, calibrate_on or dataset], plan.reranking.top_k if plan.reranking is not None else None)
    firsts = FirstStages(plan.combining, sets, max(depth, plan.trec_depth or 0, 0 if calibrate_on is None else calibrated_k))
    normalised = _chosen_normalisation(plan, sets, tune_on, bank)

    def retrieved(one: RetrievalSet, names: Sequence[str] = plan.first_stages) -> list[Stage]:
        is_asked = normalised is not None and normalised.name in names
        return firsts.stages(one, names) + ([normalised.stage(one, firsts.depth)] if normalised is not None and is_asked else [])

    for one in [dataset] + ([tune_on] if tune_on is not None else []):
        for name in plan.expansions:  # what is refused is refused before the work
            sets.additional(name, one)
    tuning = plan.reranking.tuning if plan.reranking is not None else None
    if tune_on is not None and plan.combining.chooses:
        firsts.choose(tune_on)
    if tune_on is not None and tune_on is not calibrate_on and (tuning is None or not tuning.any):
        sets.forget(tune_on)
    stages, expanded, found, reranked = retrieved(dataset), firsts.expanded_stages(dataset), None, None
    if plan.reranking is not None and reranker is not None:
        tuned = plan.reranking.tuning.of(plan.first_stages)
        found = rerank_stages(
            plan.reranking,
            dataset,
            stages,
            reranker.scorer,
            tune_on=(tune_on, lambda other: retrieved(other, tuned)) if tune_on is not None else None,
            cache=reranker.cache,
            execution=execution,
        )
        stages += found.stages
        if plan.reranking.skip_margin is None:  # what is skipped is not scored, and has no seconds a pair to compare with
            reranked = stage_names.reranked(plan.combining.checkpoint, reranker.scorer.name)
    fitted = None
    if calibrate_on is not None:
        if found is not None and found.budget is not None:
            calibrated_k = min(calibrated_k, found.budget.top_k)
        fitted = _fitted(plan, firsts, (dataset, stages, found), calibrate_on, reranker, calibrated_k, execution)
    with execution.processes.jointly():
        if execution.processes.is_main:
            report = report_of(dataset, stages if firsts.depth == depth else [stage.cut(depth) for stage in stages], pairs)
            sections = [texts_section(texts, None if other is None else _of_other_gallery(other, firsts.other_gallery))]
            sections += found.sections(report.figures, dataset) if found is not None else []
            sections += combined_sections(report.figures, dataset, firsts.ensemble_stage(dataset, stages, reranked), expanded)
            sections += [normalised.section()] if normalised is not None else []
            runs = stages if plan.trec_depth is None else [stage.cut(plan.trec_depth) for stage in stages]
            sections += [trec_section(runs, dataset)] if plan.trec_depth is not None else []
            models = [*plan.checkpoints.values(), *(one.model for one in plan.expansions.values() if isinstance(one, Paraphraser))]
            if fitted is not None:
                name = plan.combining.checkpoint
                own = StagesOf(dataset, [stage for stage in stages if stage.name in (name, reranked)])
                sections.append(calibration_section(fitted, own, calibrated_k, reranker, plan.checkpoints[name]))
            sections += precision_sections(execution.precision)
            sections += revision_sections([*models, *([reranker.model] if reranker is not None and reranker.model is not None else [])])
            return replace(report, sections=sections, expansions=expansion_table(report.figures, dataset, expanded), stages=runs)
    return None


def _chosen_normalisation(
    plan: EvaluationPlan, sets: EmbeddedSets, tune_on: RetrievalSet | None, bank: RetrievalSet | None
) -> NormalisedStage | None:
    """The normalised stage, k and alpha chosen; None: it is not asked for.

    Raises:
        SettingError: there is no split to choose on, or no reference queries.
    """
    if not plan.nnn:
        return None
    if tune_on is None or bank is None:
        missing = "split to choose k and alpha on, such as val" if tune_on is None else "reference queries, such as those of train"
        raise SettingError("nnn", f"there is no {missing}")
    normalised = NormalisedStage(plan.combining.checkpoint, sets, bank)
    normalised.choose(tune_on)
    return normalised


def _fitted(
    plan: EvaluationPlan,
    firsts: FirstStages,
    measured: tuple[RetrievalSet, Sequence[Stage], Reranked | None],
    calibrate_on: RetrievalSet,
    reranker: Reranker | None,
    top_k: int,
    execution: Execution,
) -> StagesOf:
    """The stages that are calibrated, on the split for it; what is known of it is not made again."""
    dataset, stages, found = measured
    name = plan.combining.checkpoint
    first, scores = known_scores(found, name, calibrate_on)
    if calibrate_on is dataset:
        first, scores = next(stage for stage in stages if stage.name == name), found.scores if found is not None else None
    if first is None:
        (first,) = firsts.stages(calibrate_on, [name])
    return StagesOf.scored(calibrate_on, first, reranker, top_k, scores, execution)


def _of_other_gallery(other: RetrievalSet, stages: Sequence[Stage]) -> dict[str, Any]:
    """What report.json has of the checkpoints over the other gallery."""
    gallery = "every" if other.every is None else "different"
    return {"gallery": gallery, "num_captions": other.num_captions, "stages": {stage.name: values_of(other, stage) for stage in stages}}


def report_of(dataset: RetrievalSet, stages: Sequence[Stage], pairs: Sequence[tuple[str, str]]) -> Report:
    """The report of stages that are made; on one process.

    Raises:
        UserError: see `eval.metrics.evaluate.evaluate`.
    """
    figures = evaluate(dataset, stages, pairs)
    return Report(dataset, figures, shown=gallery(dataset, figures), stages=stages)
