"""The end of a job: export the best checkpoint; measure base, tuned and what else is asked, reading the very folder exported."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.atomic import hash_file
from eval.choices.choice_set import read_choices
from eval.choices.report import CHOICES, ChoiceReport, print_choices, write_choices
from eval.errors import named
from eval.execution import Execution
from eval.progress import say
from eval.report.answer import LastWords, print_answer
from eval.report.calibration import FILE as CALIBRATION_FILE
from eval.report.files import replacing
from eval.report.gallery import Gallery
from eval.report.leakage import leakage_section
from eval.report.page.about import About
from eval.report.report import read_report
from eval.report.section import Section
from eval.report.skipped import skipped_sections
from eval.report.trec import DEFAULT_RUN_DEPTH
from rerank.calibration import Reranker
from rerank.evaluation import EvaluationPlan, evaluate_plan, print_tables, report_line
from rerank.options import scoring_precision
from rerank.reorder.choices import measure_choices
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from rerank.scoring.score_cache import ScoreCache
from train.config.evaluation import BASELINE, SUBJECT
from train.config.export import ExportConfig
from train.config.job import JobConfig
from train.data.splits import RetentionSet
from train.engine.card import no_gain, no_gain_sections
from train.engine.checkpoint import State
from train.engine.export_folder import write_card
from train.engine.folder import about_run, another_rate, ended, mark_ended, measured_on_val, place_lines, read_ended, report_folder
from train.export.measure import exports_lines, exports_section, measure_forms, measured_forms
from train.siglip.card import model_card
from train.siglip.export import export_checkpoint
from train.siglip.job import Job
from train.siglip.mining_effect import MINING, mining_effect
from train.siglip.stages import as_evaluated, evaluation_plan
from train.siglip.watch import RETENTION, r1_of_both, retention_line, retention_record


def finish(job: Job, state: State, check_signal: Callable[[], Any]) -> None:
    """Export, evaluate, report; call on every process.

    Args:
        check_signal: called between rows, to leave when asked.

    Raises:
        UserError, OSError: the export or the report cannot be made.
    """
    stopped = "" if state.stopped_by is None else f"ended at step {state.step}: the retention set {state.stopped_by!r} was forgotten"
    export = job.export_best(state, export_checkpoint)
    job.processes.together(lambda: job.check_base(state))
    execution = job.evaluating(lambda count: check_signal())
    retained = [_measure_retention(job, export, watched, execution) for watched in job.splits.watch]
    effect = mining_effect(job.config, state, state.chosen_step) if job.processes.is_main else None
    missed = no_gain(state, state.chosen_step, job.config.train.begin_at)
    further = [Section(RETENTION, retained)] if retained else []
    further += [Section(MINING, effect.as_record())] if effect is not None else []
    about = about_run(job.config, state, SUBJECT, BASELINE, [SUBJECT])
    record = _measure(job, export, about, (no_gain_sections(missed), further), execution)
    if job.processes.is_main:
        said = {"stopped": stopped, "mining": effect.sentences() if effect is not None else []} | ({"no_gain": missed} if missed else {})
        if record is not None:
            write_card(job.folder / "export", model_card(job.config, state, state.chosen_step, job.tuned.inputs, report=record))
        mark_ended(job.config, _finished_record(job.config) | said, _further_reports(job.config))


def _measure(
    job: Job, export: Path, about: About, around: tuple[Sequence[Section], Sequence[Section]], execution: Execution
) -> dict[str, Any] | None:
    """Write the final report; its record, on the main process, or None without a split.

    Args:
        about: the run.
        around: sections at the report's beginning, and at its end.
    """
    (first, further), config, asked = around, job.config, job.config.evaluation
    if job.final_set is None:
        return None
    # The reranker is loaded first: one that is refused should be refused before the embedding, not after.
    reranker = _load_reranker(job)
    plan = job.processes.together(lambda: evaluation_plan(config, job.base, str(export)))  # its files may be gone since the start
    tune_on = calibrate_on = None
    if (plan.chooses or asked.calibration) and job.val_set is not None:  # qrels are of the final split
        other = as_evaluated(job.val_set, asked)
        tune_on, calibrate_on = other if plan.chooses else None, other if asked.calibration else None
    bank = job.train_set if asked.nnn else None
    report = evaluate_plan(
        plan, job.final_set, tune_on=tune_on, bank=bank, calibrate_on=calibrate_on, reranker=reranker, execution=execution
    )
    if report is not None:
        left_out = skipped_sections(job.final_set.skipped)
        report = report.beginning(*first).adding(leakage_section(job.leakages), *left_out, *further).told(about)
        with replacing(report_folder(config)):
            report.write(report_folder(config), trec=asked.trec, languages=[asked.mteb] if asked.mteb is not None else None)
        report.write_calibration(calibration_path(config))
    if len(measured_forms(config.export)) > 1:
        strip = config.model.strip_punctuation
        forms = measure_forms(config.export, export, job.final_set, strip_punctuation=strip, execution=execution)
        if report is not None:
            report = report.adding(exports_section(forms))
            report.write(report_folder(config))
    if config.choices:  # after the report is written: what fails here must not cost it
        measured = _measure_choices(job, plan, reranker, execution)
        if report is not None:
            report = report.adding(Section(CHOICES, [one.record for one in measured], [one.examples for one in measured]))
            report.write(report_folder(config))
    return report.record if report is not None else None


def _load_reranker(job: Job) -> Reranker | None:
    rerank, folder = job.config.rerank, job.config.pair_scores_folder
    if rerank is None:
        return None
    settings = ScorerSettings(score_kind=rerank.score, precision=scoring_precision(rerank.precision))
    with named({"reranker": "rerank.model", "precision": "rerank.precision"}):
        scorer = load_scorer(rerank.model, device=job.accelerator.device, settings=settings)
    cache = None if folder is None else job.processes.together(lambda: ScoreCache(folder, job.log))
    return Reranker(scorer, cache, rerank.model, rerank.score)


def _measure_retention(job: Job, export: Path, watched: RetentionSet, execution: Execution) -> dict[str, Any] | None:
    """Write a retention set's own report of base and tuned; its record in the final report, on the main process."""
    plan = EvaluationPlan(
        checkpoints={BASELINE: job.base, SUBJECT: str(export)},
        subject=SUBJECT,
        baseline=BASELINE,
        strip_punctuation=job.config.model.strip_punctuation,
    )
    report = evaluate_plan(plan, watched.dataset, execution=execution)
    if report is None:
        return None
    report = replace(report, shown=Gallery()).adding(*skipped_sections(watched.dataset.skipped))
    report.write(watch_folder(job.config, watched.config.name))
    return retention_record(watched.config, report.figures)


def _measure_choices(job: Job, plan: EvaluationPlan, reranker: Reranker | None, execution: Execution) -> list[ChoiceReport]:
    """Each choice set; written with its rows to eval/SPLIT/choices/N."""
    reports = []
    for number, path in enumerate(job.config.choices or ()):
        report = measure_choices(
            read_choices(path),
            plan.checkpoints,
            reranker.scorer if reranker is not None else None,
            cache=reranker.cache if reranker is not None else None,
            execution=execution,
            strip_punctuation=plan.strip_punctuation,
        )
        if job.processes.is_main:
            write_choices(choices_folder(job.config, number), report)
        reports.append(report)
    return reports


def choices_folder(config: JobConfig, number: int) -> Path:
    """Where the report of a choice set lies: eval/SPLIT/choices/N."""
    return report_folder(config) / "choices" / str(number)


def calibration_path(config: JobConfig) -> Path:
    """Where the calibration of a job's scores lies: next to the weights, not among the files that their manifest.json seals."""
    return config.run_folder / "export" / CALIBRATION_FILE


def watch_folder(config: JobConfig, name: str) -> Path:
    """Where a retention set's own report lies: eval/watch/NAME."""
    return config.run_folder / "eval" / "watch" / name


def report_folders(config: JobConfig) -> list[Path]:
    """The folders of all reports that a job ends with."""
    choices = [choices_folder(config, number) for number in range(len(config.choices or ()))]
    return [report_folder(config), *choices, *(watch_folder(config, watched.name) for watched in config.watch)]


def is_finished(config: JobConfig) -> bool:
    """True if the run ended with its final report, made as the configuration asks."""
    return ended(config, _finished_record(config), _further_reports(config))


def _further_reports(config: JobConfig) -> list[Path]:
    """What must be there next to export and final report."""
    watched = [watch_folder(config, watched.name) / "report.json" for watched in config.watch]
    return watched + ([calibration_path(config)] if config.evaluation.calibration and config.data.val_split is not None else [])


_LATER_KEYS: dict[str, Any] = {"gallery": "every", "nnn": False, "mteb": None, "calibration": False, "trec_depth": DEFAULT_RUN_DEPTH}
_LATER_KEYS |= {"precision": "fp32"}
"""Keys of `evaluation` that runs of earlier versions do not have, and the values that ask for what those did."""


def _finished_record(config: JobConfig) -> dict[str, Any]:
    left_out: dict[str, Any] = {"rerank": {"pair_scores"}}
    if config.rerank is not None and config.rerank.precision == "fp32":
        left_out["rerank"].add("precision")
    # As of runs of earlier versions, whose marks have no such keys.
    left_out["evaluation"] = {key for key, without in _LATER_KEYS.items() if getattr(config.evaluation, key) == without}
    left_out["export"] = {"language"}  # of the card, and of no figure
    parts = {"rerank", "evaluation"} | ({"export"} if config.export.model_copy(update={"language": []}) != ExportConfig() else set())
    measured = config.model_dump(mode="json", include=parts, exclude=left_out)
    # Read by nothing else: what they hold decides the figures, which are made again where it changed.
    files = [Path(path) for path in (*(config.choices or ()), config.evaluation.qrels) if path is not None]
    inputs = {str(path): hash_file(path) if path.is_file() else None for path in files}
    return {"max_steps": config.train.max_steps} | measured | {"choices": config.choices or None, "inputs_sha256": inputs or None}


def show_finished(config: JobConfig) -> None:
    """Print the figures of a finished run and where everything lies.

    Raises:
        OSError, ValueError: the report is not there.
    """
    final, said, record = config.data.test_split or config.data.val_split, read_ended(config), None
    missed, stopped = said.get("no_gain", ""), said.get("stopped", "")
    if missed:
        say(missed)
    if final is not None:
        record = read_report(report_folder(config))
        print_tables(record)
        for choices in record.get("choices", ()):
            print_choices(choices)
    watched = {one.name: read_report(watch_folder(config, one.name)) for one in config.watch}
    retained = [retention_line(name, one) for name, one in watched.items()]
    is_forgotten = any(r1_of_both(one["comparisons"])["ci95"][1] < 0 for one in watched.values())
    notes = [f"mining   {sentence}" for sentence in said.get("mining", ())]  # not said by runs of earlier versions
    notes += [f"exports  {line}" for line in exports_lines((record or {}).get("exports", ()))]
    words = LastWords.of(
        record,
        first=SUBJECT,
        warnings=[text for text in (missed, f"stopped  {stopped}" if stopped else "", measured_on_val(config)) if text],
        notes=[*retained, *notes],
        places=[*([report_line(report_folder(config))] if final is not None else []), *place_lines(config)],
        next=_next_step(config, record, has_won=not missed, is_forgotten=is_forgotten),
    )
    print_answer(words)


def _next_step(config: JobConfig, record: Mapping[str, Any] | None, *, has_won: bool, is_forgotten: bool) -> str:
    """What to do with a finished run."""
    run, own = shlex.quote(str(config.run_folder)), (SUBJECT, "both", "R@1")
    rows = [row for row in (record or {}).get("comparisons", ()) if (row["stage"], row["direction"], row["metric"]) == own]
    if not has_won:
        return another_rate(config)
    if is_forgotten:
        return f"forget less: ./launch.sh wise {run} --output {shlex.quote(f'{config.run_folder}-wise')}"
    if rows and rows[0]["verdict"] != "better":
        return "more data, or several settings: ./launch.sh study CONFIG.yaml"
    return f"search with it: ./launch.sh explore {run} --images {shlex.quote(config.data.source)}"
