"""The end of a job: export the best checkpoint; measure base, tuned and what else is asked, reading the very folder exported."""

from pathlib import Path
from typing import Any

from eval.choices.choice_set import read_choices
from eval.choices.report import print_choices, write_choices
from eval.dataset.retrieval_set import RetrievalSet
from eval.dataset.truth import with_ground_truth
from eval.encoder.checkpoint import load_siglip
from eval.metrics.evaluate import evaluate
from eval.report.gallery import gallery
from eval.report.report import print_report, read_report, report_record, write_report
from eval.report.trec import write_trec
from eval.search.retrieve import progress_bar, retrieve
from eval.search.stage import Stage
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.expansion_effects import write_expansions
from rerank.combine.first_stages import MINIMUM_DEPTH, FirstStages
from rerank.reorder.choices import measure_choices
from rerank.reorder.record import chosen_sections
from rerank.reorder.stages import reranked, score_stages
from rerank.reorder.tuned_stages import Chosen, choose_stages, chosen_stages
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import PairScorer, ScorerSettings
from rerank.scoring.pair_scores import PairScores
from rerank.scoring.score_cache import ScoreCache
from train.config.job import JobConfig
from train.data.splits import RetentionSet
from train.engine.checkpoint import State
from train.engine.folder import ended, mark_ended, read_ended, report_folder, show_places
from train.siglip.export import export_checkpoint
from train.siglip.job import Job
from train.siglip.stages import CHOSEN_FOR, checkpoints, chosen_stages_asked, combining, comparisons
from train.siglip.watch import final_line, final_record


def finish(job: Job, state: State, check_signal: Any) -> None:
    """Export, evaluate, report; call on every process.

    Args:
        check_signal: called between rows, to leave when asked.

    Raises:
        UserError, OSError: the export or the report cannot be made.
    """
    folder = job.folder / "export"
    stopped = "" if state.stopped_by is None else f"ended at step {state.step}: the watch set {state.stopped_by!r} was forgotten"
    if job.processes.is_main:
        if not job.config.train.shard:  # a part is small, and others lie where they lie
            job.tuned.siglip.to("cpu")
        step = export_checkpoint(job.config, "best", folder)
        note = "" if step or state.best_score is None else ": no later checkpoint was better on val than the base itself"
        job.log(f"exported the checkpoint of step {step}{note}")
    export = job.shared.bring(folder)
    watched = {watch_set.config.name: _measure_watched(job, export, watch_set, check_signal) for watch_set in job.splits.watch}
    record = None
    if job.final_set is not None:
        record = _measure(job, export, watched, check_signal)
    if job.processes.is_main:
        _mark_finished(job.config, stopped)
        show_finished(job.config, record)


def _measure(job: Job, export: Path, watched: dict[str, dict[str, Any]], check_signal: Any) -> dict[str, Any]:
    """The final report; its record.

    Args:
        watched: what is to be said of each watch set.
    """
    dataset = job.final_set
    assert dataset is not None
    rerank = job.config.rerank
    # The reranker is loaded first: one that is refused should be refused before the embedding, not after.
    scorer = _load_scorer(job)
    folder_of_kept = job.config.pair_scores_folder
    kept = None if folder_of_kept is None else job.processes.together(lambda: ScoreCache(folder_of_kept, job.log))
    firsts, val_set = _first_stages(job, export, check_signal), _judged_val(job)
    if firsts.combining.chooses and val_set is not None:
        firsts.choose(val_set)
        if rerank is None or not rerank.chooses:
            firsts.sets.forget(val_set)
    stages = firsts.measured(dataset)
    chosen: list[Chosen] = []
    if scorer is not None and rerank is not None:
        scores = _score(job, dataset, stages, scorer, kept, check_signal)
        stages += reranked(stages, scores, scorer.name, rerank.top_k)
        if rerank.chooses and val_set is not None:
            chosen = _choose_on_val(job, firsts, val_set, scorer, kept, check_signal)
            stages += chosen_stages(chosen, stages, scores)
    figures = evaluate(dataset, stages, comparisons(job.config, scorer.name if scorer is not None else None))
    figures.sections.update(chosen_sections(figures, dataset, chosen))
    figures.sections.update(firsts.sections(figures, dataset, scorer.name if scorer is not None else None))
    figures.sections["leakage"] = [leak.as_record() for leak in job.leakages]
    if watched:
        figures.sections["watch"] = list(watched.values())
    notes = [f"Leakage: {leak}." for leak in job.leakages if leak.any]
    notes += [f"{final_line(name, record)}." for name, record in watched.items()]
    pictures = gallery(dataset, figures) if job.processes.is_main else []
    folder = report_folder(job.config)
    if job.processes.is_main:
        write_report(folder, figures, notes=notes, gallery=pictures)
        if (views := firsts.table(figures, dataset)) is not None:
            write_expansions(folder / "expansions.parquet", views)
        if job.config.evaluation.trec:
            write_trec(folder / "trec", figures.queries, dataset)
    if job.config.choices:  # after the report is written: what fails here must not cost it
        figures.sections["choices"] = _measure_choices(job, export, scorer, kept, check_signal)
        if job.processes.is_main:
            write_report(folder, figures, notes=notes, gallery=pictures)
    return report_record(figures)


def _load_scorer(job: Job) -> PairScorer | None:
    rerank = job.config.rerank
    if rerank is None:
        return None
    return load_scorer(rerank.model, device=job.accelerator.device, settings=ScorerSettings(score_kind=rerank.score))


def _score(
    job: Job, dataset: RetrievalSet, stages: list[Stage], scorer: PairScorer, kept: ScoreCache | None, check_signal: Any
) -> PairScores:
    """The scores of every pair that these stages' heads hold."""
    assert job.config.rerank is not None
    top_k = job.config.rerank.top_k
    return score_stages(dataset, stages, scorer, top_k, kept=kept, processes=job.processes, on_progress=lambda pairs: check_signal())


def _first_stages(job: Job, export: Path, check_signal: Any) -> FirstStages:
    """What makes the first stages of the report."""
    asked = job.processes.together(lambda: combining(job.config))  # files that it reads may be gone since the start, on some machine
    sets = EmbeddedSets(
        checkpoints(job.config, job.base, str(export)),
        asked.expansions,
        asked.expanded,
        job.accelerator.device,
        job.processes,
        num_workers=job.config.data.num_workers,
        strip_punctuation=job.config.model.strip_punctuation,
        on_rows=lambda rows: check_signal(),
    )
    return FirstStages(asked, sets, job.config.rerank.top_k if job.config.rerank is not None else MINIMUM_DEPTH)


def _judged_val(job: Job) -> RetrievalSet | None:
    """The val split judged by the same rule as the final one, but for evaluation.qrels, which are of that."""
    asked = job.config.evaluation
    if job.val_set is None:
        return None
    return with_ground_truth(job.val_set, protocol=asked.protocol, near_duplicates=asked.near_duplicates)


def _choose_on_val(
    job: Job, firsts: FirstStages, val_set: RetrievalSet, scorer: PairScorer, kept: ScoreCache | None, check_signal: Any
) -> list[Chosen]:
    """What is chosen for tuned+RERANKER: its val split retrieved and scored as the test split is."""
    assert job.config.rerank is not None
    stages = [firsts.plain(CHOSEN_FOR, val_set)]
    scores = _score(job, val_set, stages, scorer, kept, check_signal)
    return choose_stages(val_set, stages, scores, scorer.name, job.config.rerank.top_k, chosen_stages_asked(job.config))


def _measure_watched(job: Job, export: Path, watched: RetentionSet, check_signal: Any) -> dict[str, Any]:
    """Write a watch set's own report of base and tuned; what the final report says of it."""
    name = watched.config.name
    stages = _watched_stages(job, {"base": job.base, "tuned": str(export)}, watched.dataset, name, check_signal)
    figures = evaluate(watched.dataset, stages, [("tuned", "base")])
    if job.processes.is_main:
        write_report(watch_folder(job.config, name), figures)
    return final_record(watched.config, figures)


def _watched_stages(job: Job, measured: dict[str, str], dataset: RetrievalSet, label: str, check_signal: Any) -> list[Stage]:
    """Each checkpoint (name: folder or hub id) on one set."""
    stages: list[Stage] = []
    for name, checkpoint in measured.items():
        model, inputs = load_siglip(checkpoint, strip_punctuation=job.config.model.strip_punctuation)
        model.to(job.accelerator.device)
        with progress_bar(f"{name} on {label}", dataset, job.processes) as bar:

            def advance(rows: int, bar: Any = bar) -> None:
                bar.update(rows)
                check_signal()

            stages.append(retrieve(name, model, inputs, dataset, depth=MINIMUM_DEPTH, execution=job.execution(advance)))
    return stages


def _measure_choices(job: Job, export: Path, scorer: PairScorer | None, kept: ScoreCache | None, check_signal: Any) -> list[dict[str, Any]]:
    """The record of each choice set; written with its rows to eval/SPLIT/choices/N."""
    records = []
    for number, path in enumerate(job.config.choices or ()):
        report = measure_choices(
            read_choices(path),
            checkpoints(job.config, job.base, str(export)),
            scorer,
            kept=kept,
            strip_punctuation=job.config.model.strip_punctuation,
            execution=job.execution(lambda rows: check_signal()),
        )
        if job.processes.is_main:
            write_choices(report_folder(job.config) / "choices" / str(number), report)
        records.append(report.record)
    return records


def watch_folder(config: JobConfig, name: str) -> Path:
    """Where a watch set's own report lies: eval/watch/NAME."""
    return config.run_folder / "eval" / "watch" / name


def is_finished(config: JobConfig) -> bool:
    """True if the run ended with its final report, made as the configuration asks."""
    made = [watch_folder(config, watched.name) / "report.json" for watched in config.watch]
    return ended(config, _finished_record(config), made)


def _finished_record(config: JobConfig) -> dict[str, Any]:
    measured = config.model_dump(mode="json", include={"rerank", "evaluation"}, exclude={"rerank": {"pair_scores"}})
    return {"max_steps": config.train.max_steps} | measured | {"choices": config.choices or None}


def _mark_finished(config: JobConfig, stopped: str) -> None:
    """Write finished.json, with the words why the run ended before its last step, if it did."""
    mark_ended(config, _finished_record(config) | {"stopped": stopped})


def show_finished(config: JobConfig, record: dict[str, Any] | None = None) -> None:
    """Print the figures of a finished run and where everything lies.

    Raises:
        OSError, ValueError: the report is not there.
    """
    final = config.data.test_split or config.data.val_split
    if final is not None:
        record = read_report(report_folder(config)) if record is None else record
        print_report(record)
        for choices in record.get("choices", ()):
            print_choices(choices)
        print(f"report   {report_folder(config)}/report.html (report.json, queries.parquet beside it)")
    for watched in config.watch:
        print(final_line(watched.name, read_report(watch_folder(config, watched.name))))
    if stopped := read_ended(config).get("stopped"):
        print(f"stopped  {stopped}")
    show_places(config)
