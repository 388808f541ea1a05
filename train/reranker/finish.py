"""The end of a reranker's tuning: export the best cross-encoder; measure the retriever alone, and reranked by it before and after."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BlipForImageTextRetrieval, BlipProcessor

from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.tokenizer import rewrite_tokenizer_config
from eval.progress import say
from eval.report.answer import LastWords, print_answer
from eval.report.leakage import leakage_section
from eval.report.page.about import About
from eval.report.report import read_report
from eval.report.section import Section
from eval.report.skipped import skipped_sections
from eval.report.texts import text_record, texts_section
from eval.search.retrieve import progress_bar
from rerank.evaluation import print_tables, report_line, report_of
from rerank.reorder.stages import reranked as reranked_stages
from rerank.reorder.stages import score_stages
from rerank.scorers.load import load_scorer
from rerank.stage_names import reranked
from train.config.reranker import RerankerConfig
from train.engine.card import (
    CARD,
    Base,
    commit_of,
    data_words,
    index_results,
    metadata,
    model_words,
    no_gain,
    no_gain_sections,
    recipe,
    result_lines,
    shown_name,
)
from train.engine.checkpoint import State
from train.engine.export_folder import average_line, load_chosen, plain_state, replaced_export, report_on, write_card, write_plain
from train.engine.folder import about_run, another_rate, ended, mark_ended, measured_on_val, place_lines, read_ended, report_folder
from train.reranker.evaluation import RETRIEVER, first_stage
from train.reranker.job import RerankerJob
from train.reranker.model import TunedCrossEncoder, build_cross_encoder

UNTUNED, TUNED = "blip", "blip-tuned"
"""What the cross-encoder is called before and after, in names of stages."""
MEASURED = reranked(RETRIEVER, TUNED)
"""The stage that the tuning is for."""
COMPARISONS = [
    (reranked(RETRIEVER, UNTUNED), RETRIEVER),
    (MEASURED, RETRIEVER),
    (MEASURED, reranked(RETRIEVER, UNTUNED)),
]


def finish_reranker(job: RerankerJob, state: State, check_signal: Callable[[], None]) -> None:
    """Export, evaluate, report; call on every process.

    Args:
        check_signal: called between rows and pairs, to leave when asked.

    Raises:
        UserError, OSError: the export or the report cannot be made.
    """
    export = job.export_best(state, export_cross_encoder)
    job.processes.together(lambda: job.check_base(state))
    missed = no_gain(state, state.chosen_step, job.config.train.begin_at)
    about = about_run(job.config, state, MEASURED, reranked(RETRIEVER, UNTUNED), [MEASURED])
    record = _measure(job, export, about, no_gain_sections(missed), check_signal)
    if job.processes.is_main:
        if record is not None:
            write_card(job.folder / "export", cross_encoder_card(job.config, state, state.chosen_step, record))
        mark_ended(job.config, _expected(job.config) | ({"no_gain": missed} if missed else {}))


def _measure(
    job: RerankerJob, export: Path, about: About, first: Sequence[Section], check_signal: Callable[[], None]
) -> dict[str, Any] | None:
    """Write the final report, with sections at its beginning; its record, on the main process, or None without a split."""
    if (dataset := job.final_set) is None:
        return None
    device, top_k = job.accelerator.device, job.config.evaluation.top_k
    execution = job.execution(lambda pairs: check_signal())
    with progress_bar(f"retriever on {dataset.split}", dataset, job.processes) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)
            check_signal()

        stages = [first_stage(job, dataset, advance)]
    for name, model in ((UNTUNED, job.base), (TUNED, str(export))):
        scores = score_stages(dataset, stages[:1], load_scorer(model, device=device), top_k, execution=execution)
        stages += reranked_stages(stages[:1], scores, name, top_k)
    if not job.processes.is_main:
        return None
    tokens = {RETRIEVER: CaptionTokens.of(job.retriever.inputs, dataset.captions)}
    texts = texts_section(text_record(dataset.captions, dataset.caption_hash_C, tokens))
    report = report_of(dataset, stages, COMPARISONS).beginning(*first)
    report = report.adding(texts, leakage_section(job.leakages), *skipped_sections(dataset.skipped)).told(about)
    report.write(report_folder(job.config))
    return report.record


def export_cross_encoder(config: RerankerConfig, which: str, folder: Path, tuned: TunedCrossEncoder | None = None) -> int:
    """Export the best, the last or a numbered checkpoint of a run as a plain cross-encoder: float32, adapters merged. Returns its step.

    Args:
        tuned: the model that the run holds in memory, on the CPU; its weights are replaced. None: it is built from the base.

    Raises:
        UserError: the run or the checkpoint is not there, or damaged; or the base has changed.
        OSError: the export cannot be written.
    """
    base = config.model.base
    tuned, step, newest = load_chosen(config, which, base, lambda: tuned or build_cross_encoder(config.model, config.seed))
    weights = plain_state(tuned.module)
    with replaced_export(folder, sum(tensor.nbytes for tensor in weights.values())) as temporary:
        write_plain(BlipForImageTextRetrieval, tuned.module.config, weights, temporary)
        BlipProcessor(tuned.checkpoint.image_processor, tuned.checkpoint.tokenizer).save_pretrained(temporary)
        rewrite_tokenizer_config(temporary)
        (temporary / CARD).write_text(cross_encoder_card(config, newest, step), encoding="utf-8")
    if (report := report_on(config, folder)) is not None:
        write_card(folder, cross_encoder_card(config, newest, step, report))
    return step


def cross_encoder_card(config: RerankerConfig, state: State, chosen_step: int, report: Mapping[str, Any] | None = None) -> str:
    """The README.md of an export, with the metadata the hub reads.

    Args:
        report: the record of the final report on these very weights; None: there is none.
    """
    how = {"head": "the matching head alone", "lora": "the head, and LoRA in the text tower's attention, merged", "all": "every weight"}
    score = "" if state.best_score is None or chosen_step != state.best_step else f" (mean R@1 on val {100 * state.best_score:.2f})"
    base, negatives, begun_at = Base.of(config.model.base), config.negatives, config.train.begin_at
    begun_line = f"- Began at: `{shown_name(begun_at)}`, with its weights and optimizer state.\n" if begun_at else ""
    missed, tags = no_gain(state, chosen_step, begun_at), ("blip", "image-text-matching", "reranker")
    results = index_results(report, MEASURED) if report is not None else []
    mined = f"of each image up to {negatives.captions_per_image} hard captions and {negatives.images_per_caption} hard images, mined by "
    mined += f"`{shown_name(config.miner)}`"
    measured = "None: no final report on these very weights is there.\n"
    if report is not None:
        measured = result_lines(report, list(report["stages"]))
    return (
        metadata(
            config.name, base, pipeline="text-ranking", tags=tags, source=config.data.source, results=results, commit=commit_of(report)
        )
        + f"# {config.name}\n\n"
        + (f"**{missed}**\n\n" if missed else "")
        + "A BLIP cross-encoder tuned to rerank the top of an image-text search, "
        f"from {model_words(config.model.base, state.base_sha256)}.\n\n"
        f"- Method: {how[config.model.what]}; cross-entropy of match against no match, batch {config.train.batch_size} images, "
        f"{config.train.precision}; mined negatives: {mined if chosen_step else 'none, for these are the weights that it began with'}.\n"
        f"- Data: {data_words(config.data.source, state.data_sha256, commit_of(report))}, split `{config.data.train_split}`.\n"
        f"- Checkpoint: step {chosen_step} of {config.train.max_steps}{score}.\n{begun_line}{average_line(config.train)}{base.line()}"
        '- Captions are read lower-cased, without `.!"()*#:;~`, at most 30 words and 35 tokens, with [ENC] in the place of [CLS], as the '
        "original BLIP reads them; transformers' own processor leaves [CLS] there. Column 1 of `itm_score` is the match.\n\n"
        "```\npython -m eval --model SIGLIP --data PAIRS --output OUT --rerank THIS_FOLDER\n```\n\n"
        f"## Results\n\n{measured}\n"
        "## Recipe\n\nEvery key that decides what is learnt:\n\n```json\n" + json.dumps(recipe(config), indent=1) + "\n```\n"
    )


def is_reranker_finished(config: RerankerConfig) -> bool:
    """True if the run ended with its final report."""
    return ended(config, _expected(config))


def _expected(config: RerankerConfig) -> dict[str, Any]:
    return {"max_steps": config.train.max_steps, "top_k": config.evaluation.top_k}


def show_reranker(config: RerankerConfig) -> None:
    """Print the figures of a finished run and where everything lies.

    Raises:
        OSError, ValueError: the report is not there.
    """
    missed, record, places = read_ended(config).get("no_gain", ""), None, place_lines(config)
    if missed:
        say(missed)
    if config.data.test_split or config.data.val_split:
        record = read_report(report_folder(config))
        print_tables(record)
        places = [report_line(report_folder(config)), *places]
    export, source = shlex.quote(f"{config.run_folder}/export"), shlex.quote(config.data.source)
    split = f" --split {config.data.test_split}" if config.data.test_split is not None else ""
    following = f"measure it: ./launch.sh eval --model {shlex.quote(config.miner)} --rerank {export} --data {source}{split} --output OUT"
    if missed:
        following = another_rate(config)
    warnings = [text for text in (missed, measured_on_val(config)) if text]
    print_answer(LastWords.of(record, first=MEASURED, warnings=warnings, places=places, next=following))
