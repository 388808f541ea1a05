"""Ensembles, soups and query expansion on the demo: what does each gain, alone and reranked by BLIP?

    python -m benchmarks.combining_demo runs/demo --output results/combining-demo          # some fifteen minutes on two cores

1. Tunes two more seeds of the demo's job (configs/demo.yaml, seeds 1 and 2), and large once; runs that are there are used as they are.
2. Makes the soups of the three seeds' exports: greedy, chosen on val, and uniform (python -m train.soup).
3. One evaluation on test with base, tuned, large, base and large together, the soups, and base (and the ensemble) with captions expanded by
   synonyms (from rare words to plain ones), by a thesaurus (both ways) and by templates; each with BLIP on top. Weights, rules and pools
   are chosen on val (python -m eval, printed as it is called).
4. Another of the same kind with tuned and tuned large for base and large.
Writes OUTPUT.md, and OUTPUT/SECTION/report.json and queries.parquet behind it. The tables' comparisons are made anew from those rows.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.conclusion import title_lines
from benchmarks.kept_report import WAYS, comparison, comparisons_of, keep_report, points, ranks_of, read_kept, recall_lines
from benchmarks.training_run import run_training
from eval.report.report import read_report
from eval.report.section import section_lines
from eval.search.ranking import DIRECTIONS
from rerank.combine.rules import COMBINATIONS
from rerank.evaluation import FORMATS

DATA, COLUMN, BASE = "demo/data/scenes.parquet", "group=scene", "demo/models/siglip-base"
EXPANSIONS = {"synonyms": "synonyms:demo/data/synonyms.txt", "synonyms-2": "synonyms:demo/data/thesaurus.txt", "templates": "templates"}
SYSTEM_WORDS = {"synonyms-2": "thesaurus"}
WORDS_QUESTION = "Other words: text to image, the direction that they change"
CHOSEN = "ensemble,expansion"
BARE: dict[str, Any] = {"rerank": None, "watch": [], "choices": None}


@dataclass(frozen=True)
class Systems:
    """What one evaluation measures.

    Attributes:
        title: of its section.
        model: the checkpoint that is expanded; stage "model".
        large: its partner; stages "model-2" and "ensemble".
        also: additional checkpoints by stage.
        shown: the names of stages on the page, by the name in the report up to its first plus sign.
        expansions: of the captions, for "model": what --expand takes, by the ending of the stage.
        combine: the rules of which val chooses one, with its weights.
        against: what first stages are compared with next to those that `questions_of` knows: (stage, against).
    """

    title: str
    model: str
    large: str
    also: Mapping[str, str]
    shown: Mapping[str, str]
    expansions: Mapping[str, str] = field(default_factory=dict)
    against: Sequence[tuple[str, str]] = ()
    combine: str = ",".join(COMBINATIONS)


def base_systems(tuned: str, large: str, soups: Mapping[str, str]) -> Systems:
    """Base and all that is made of it."""
    against = [("tuned", "model"), *((soup, "tuned") for soup in soups)]
    shown = {"model": "base", "model-2": "large", "ensemble": "base & large"}
    return Systems("From base", BASE, large, {"tuned": tuned, **soups}, shown, EXPANSIONS, against)


def tuned_systems(tuned: str, large_tuned: str, soups: Mapping[str, str]) -> Systems:
    """The same from tuned checkpoints."""
    against = [(soup, "model") for soup in soups] + [("ensemble", soup) for soup in soups]
    shown = {"model": "tuned", "model-2": "large, tuned", "ensemble": "tuned & large, tuned"}
    return Systems("From tuned", tuned, large_tuned, soups, shown, EXPANSIONS, against)


def eval_command(systems: Systems, rerank: str, top_k: int, output: Path) -> list[str]:
    """`python -m eval` for them, without the interpreter."""
    words = ["-m", "eval", "--model", systems.model, "--ensemble", systems.large]
    for name, checkpoint in systems.also.items():
        words += ["--also", f"{name}={checkpoint}"]
    for method in systems.expansions.values():
        words += ["--expand", method]
    words += [
        "--data",
        DATA,
        "--column",
        COLUMN,
        "--split",
        "test",
        "--choose-on",
        "val",
        "--choose",
        CHOSEN if systems.large else "expansion",
    ]
    words += ["--combine", systems.combine, "--rerank", rerank, "--top-k", str(top_k), "--no-pair-scores"]
    return [*words, "--num-workers", "0", "--output", str(output)]


def called(words: Sequence[str]) -> None:
    """Run a command of this project and let it speak.

    Raises:
        SystemExit: it failed.
    """
    print("python " + " ".join(words), flush=True)
    if code := subprocess.run([sys.executable, *words], check=False).returncode:
        raise SystemExit(f"python {' '.join(words)} ended with {code}")


def tuned_run(name: str, folder: Path, **overrides: Any) -> Path:
    """The demo's job without what comes after SigLIP; used as it is where it is finished."""
    if (folder / name / "finished.json").is_file():
        return folder / name
    return run_training("configs/demo.yaml", {"name": name, "runs_folder": str(folder)} | BARE | overrides)


def made_soups(runs: Sequence[Path], folder: Path) -> dict[str, str]:
    """The exports of the greedy and the uniform soup of some runs, by stage."""
    ingredients = [str(run / "export") for run in runs]
    measured = ["--data", DATA, "--column", COLUMN, "--split", "val"]
    called(["-m", "train.soup", *ingredients, "--output", str(folder / "soup"), "--greedy", *measured])
    called(["-m", "train.soup", *ingredients, "--output", str(folder / "soup-uniform"), *measured])
    return {name: str(folder / name / "export") for name in ("soup", "soup-uniform")}


def questions_of(stages: Sequence[str], systems: Systems, scorer: str) -> dict[str, list[tuple[str, str]]]:
    """What is compared, of the stages that a report has: (stage, against), by the question that a table answers.

    Checkpoints against each other as `Systems` names them, the ensemble against each member; expanded against not; reranked against not,
    for checkpoints and the ensemble; and the pairs of the first two again, reranked.
    """
    checkpoints = [("model-2", "model"), ("ensemble", "model"), ("ensemble", "model-2"), *systems.against]
    expanded = [(f"{stage}+{name}", stage) for name in systems.expansions for stage in ("model", "ensemble")]
    named = dict.fromkeys(["model", *(stage for stage, _ in checkpoints)])
    asked = {
        "Several checkpoints": checkpoints,
        WORDS_QUESTION: expanded,
        "BLIP on top": [(f"{stage}+{scorer}", stage) for stage in named],
        "All with BLIP on top": [(f"{stage}+{scorer}", f"{against}+{scorer}") for stage, against in (*checkpoints, *expanded)],
    }
    return {question: [pair for pair in pairs if set(pair) <= set(stages)] for question, pairs in asked.items()}


def in_words(stage: str, shown: Mapping[str, str]) -> str:
    """A stage's name on the page: that of its checkpoint, then what was done to it."""
    first, plus, rest = stage.partition("+")
    return " + ".join([shown.get(first, first), *(SYSTEM_WORDS.get(part, part) for part in rest.split("+") if plus)])


def gain_lines(
    queries: pa.Table, stages: Mapping[str, Any], pairs: Sequence[tuple[str, str]], shown: Mapping[str, str], way: str = "both"
) -> list[str]:
    """Gain next to cost: R@1 of a direction or the mean of both, the difference with its interval, and the seconds that both systems took.

    Args:
        stages: of report.json.
    """
    rows, directions = comparisons_of(queries, pairs), DIRECTIONS if way == "both" else (way,)
    lines = [
        f"| system | R@1, {'mean of both' if way == 'both' else WAYS[way]} | against | gain, points | paired 95% interval | verdict "
        "| seconds | seconds of the other |",
        "|---" * 8 + "|",
    ]
    for stage, against in pairs:
        row = comparison(rows, stage, against, way)
        recall = np.mean([np.mean(ranks_of(queries, stage, direction) == 1) for direction in directions])
        cells = [in_words(stage, shown), f"{100 * recall:.1f}", in_words(against, shown), f"{100 * row['delta']:+.1f}"]
        cells += [points(row["ci95"]), row["verdict"], *(f"{stages[name]['cost']['seconds']:.1f}" for name in (stage, against))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def question_lines(question: str, pairs: Sequence[Sequence[str]], record: Mapping[str, Any], queries: pa.Table) -> list[str]:
    """One question's table under its own heading."""
    listed = [(stage, against) for stage, against in pairs]
    way = "text_to_image" if question == WORDS_QUESTION else "both"
    return [f"### {question}", "", *gain_lines(queries, record["stages"], listed, record["study"]["shown"], way), ""]


def section(record: Mapping[str, Any], queries: pa.Table) -> list[str]:
    """One evaluation on the page, from what is kept of it: the keys of report.json, and `study` (title, shown, pairs, command)."""
    study = record["study"]
    shown = study["shown"]
    named = {stage for pairs in study["questions"].values() for pair in pairs for stage in pair}
    order = [stage for stage in record["stages"] if stage in named]
    table = recall_lines(queries, order)
    rows = [line.replace(f"| {stage} |", f"| {in_words(stage, shown)} |", 1) for stage, line in zip(order, table[2:], strict=True)]
    return [
        f"## {study['title']}",
        "",
        f"`{study['command']}`",
        "",
        *table[:2],
        *rows,
        "",
        *(line for question, pairs in study["questions"].items() for line in question_lines(question, pairs, record, queries)),
        "Chosen on val; and what the ensemble's additional seconds would buy as reranking of its first member (names as in the report):",
        "",
        *(f"- {line}" for line in section_lines(record, FORMATS)),
        "",
    ]


def page(parts: Sequence[tuple[Mapping[str, Any], pa.Table]], command: str) -> str:
    """The whole page."""
    data = parts[0][0]["data"]
    return "\n".join(
        [
            *title_lines("combining-demo", "Ensembles, soups and expanded queries on the demo"),
            f"`{command}`. Measured on test ({data['num_images']} images, {data['num_captions']} captions); what is",
            "chosen is chosen on val. Recalls in percent, differences in points of mean R@1 of both directions. Intervals: "
            "bootstrap over images;",
            "verdicts are corrected for all metrics and directions of a pair. Seconds: of the whole "
            "system, in one run; read ratios.",
            "",
            *(line for record, queries in parts for line in section(record, queries)),
        ]
    )


def scorer_of(stages: Mapping[str, Any]) -> str:
    """The name of the reranker: what `model` has behind its plus sign where it is reranked and nothing else."""
    (name,) = [
        stage for stage in stages if stage.startswith("model+") and stage.count("+") == 1 and "rerank_seconds" in stages[stage]["cost"]
    ]
    return name.partition("+")[2]


def kept(systems: Systems, rerank: str, top_k: int, report: Path, folder: Path) -> None:
    """Keep what the page needs of a report that `eval_command` wrote."""
    record, queries = read_report(report), pq.read_table(report / "queries.parquet")
    questions = questions_of(list(record["stages"]), systems, scorer_of(record["stages"]))
    named = {stage for pairs in questions.values() for pair in pairs for stage in pair}
    record["study"] = {
        "title": systems.title,
        "shown": dict(systems.shown),
        "questions": questions,
        "command": "python " + " ".join(eval_command(systems, rerank, top_k, report)),
    }
    record["stages"] = {stage: figures for stage, figures in record["stages"].items() if stage in named}
    keep_report(record, queries.filter(pc.is_in(queries["stage"], pa.array(sorted(named)))), folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="the demo's run: tuned, seed 0")
    parser.add_argument("--large", default="demo/models/siglip-large")
    parser.add_argument("--rerank", default="demo/models/blip-itm")
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--combine", default=Systems.combine, help="rules of which val chooses one for the ensembles (default: all)")
    parser.add_argument("--runs", type=Path, default=Path("runs/combining"), help="folder of the additional runs, soups and reports")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    seeds = [asked.run_folder, *(tuned_run(f"demo-{seed}", asked.runs, seed=seed) for seed in (1, 2))]
    large_tuned = tuned_run("large-0", asked.runs, **{"model.base": asked.large})
    soups = made_soups(seeds, asked.runs)
    tuned = str(asked.run_folder / "export")
    sections = {
        "base": base_systems(tuned, asked.large, soups),
        "tuned": tuned_systems(tuned, str(large_tuned / "export"), soups),
    }
    for name, systems in ((name, replace(systems, combine=asked.combine)) for name, systems in sections.items()):
        report = asked.runs / f"eval-{name}"
        called(eval_command(systems, asked.rerank, asked.top_k, report))
        kept(systems, asked.rerank, asked.top_k, report, asked.output / name)
    text = page([read_kept(asked.output / name) for name in sections], "python -m benchmarks.combining_demo " + " ".join(sys.argv[1:]))
    asked.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
