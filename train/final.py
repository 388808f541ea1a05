"""The end of a job: export the best checkpoint; measure base, tuned and what else is asked, reading the very folder exported."""

import json
import os
from pathlib import Path
from typing import Any

from eval.checkpoint import load_siglip
from eval.evaluator import Stage, evaluate
from eval.first_stage import progress_bar, retrieve
from eval.gallery import gallery
from eval.report import print_report, read_report, report_record, write_report
from eval.trec import write_trec
from rerank.scorer import load_scorer
from rerank.stages import reranked_stages
from train.arms import checkpoints, comparisons
from train.checkpoint import State
from train.config import JobConfig
from train.export import export_checkpoint
from train.job import Job


def finish(job: Job, state: State, check_signal: Any) -> None:
    """Export, evaluate, report; call on every process.

    Args:
        check_signal: called between rows, to leave when asked.

    Raises:
        UserError, OSError: the export or the report cannot be made.
    """
    folder = job.folder / "export"
    if job.processes.is_main:
        job.tuned.siglip.to("cpu")
        step = export_checkpoint(job.config, "best", folder)
        note = "" if step or state.best_score is None else ": no later checkpoint was better on val than the base itself"
        job.say(f"exported the checkpoint of step {step}{note}")
    job.processes.barrier()
    record = None
    if job.final_set is not None:
        record = _measure(job, folder, check_signal)
    if job.processes.is_main:
        _mark_finished(job.config)
        show_finished(job.config, record)


def _measure(job: Job, export: Path, check_signal: Any) -> dict[str, Any]:
    """The final report; its record."""
    dataset = job.final_set
    assert dataset is not None
    rerank = job.config.rerank
    # The reranker is loaded first: one that is refused should be refused before the embedding, not after.
    scorer = load_scorer(rerank.model, device=job.accelerator.device) if rerank is not None else None
    stages: list[Stage] = []
    for name, checkpoint in checkpoints(job.config, job.base, str(export)).items():
        model, inputs = load_siglip(checkpoint)
        model.to(job.accelerator.device)
        with progress_bar(f"{name} on {dataset.split}", dataset, job.processes) as bar:

            def advance(rows: int, bar: Any = bar) -> None:
                bar.update(rows)
                check_signal()

            stages.append(
                retrieve(
                    name,
                    model,
                    inputs,
                    dataset,
                    depth=rerank.top_k if rerank is not None else 10,
                    processes=job.processes,
                    num_workers=job.config.data.num_workers,
                    on_progress=advance,
                )
            )
    if scorer is not None and rerank is not None:
        stages += reranked_stages(dataset, stages, scorer, rerank.top_k, processes=job.processes)
    figures = evaluate(dataset, stages, comparisons(job.config, scorer.name if scorer is not None else None))
    figures.sections["leakage"] = [leak.as_record() for leak in job.leakages]
    if job.processes.is_main:
        folder = report_folder(job.config)
        notes = [f"Leakage: {leak}." for leak in job.leakages if leak.any]
        write_report(folder, figures, notes=notes, gallery=gallery(dataset, figures))
        if job.config.evaluation.trec:
            write_trec(folder / "trec", figures.queries, dataset)
    return report_record(figures)


def report_folder(config: JobConfig) -> Path:
    """Where the final report lies: eval/SPLIT."""
    split = config.data.test_split or config.data.val_split or "none"
    return config.run_folder / "eval" / split


def is_finished(config: JobConfig) -> bool:
    """True if the run ended with its final report, made as the configuration asks."""
    try:
        record = json.loads((config.run_folder / "finished.json").read_text(encoding="utf-8"))
        made = [config.run_folder / "export" / "model.safetensors"]
        if config.data.test_split or config.data.val_split:
            made.append(report_folder(config) / "report.json")
        return bool(record == _finished_record(config)) and all(path.is_file() for path in made)
    except (OSError, ValueError):
        return False


def _finished_record(config: JobConfig) -> dict[str, Any]:
    measured = config.model_dump(mode="json", include={"rerank", "evaluation"})
    return {"max_steps": config.train.max_steps} | measured


def _mark_finished(config: JobConfig) -> None:
    path = config.run_folder / "finished.json"
    temporary = path.with_name(f".finished.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(_finished_record(config)) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def show_finished(config: JobConfig, record: dict[str, Any] | None = None) -> None:
    """Print the figures of a finished run and where everything lies.

    Raises:
        OSError, ValueError: the report is not there.
    """
    final = config.data.test_split or config.data.val_split
    if final is not None:
        print_report(read_report(report_folder(config)) if record is None else record)
        print(f"report   {report_folder(config)}/report.html (report.json, queries.parquet beside it)")
    print(f"export   {config.run_folder}/export")
    print(f"metrics  {config.run_folder}/metrics.jsonl")
