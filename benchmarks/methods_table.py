"""docs/methods.md: common methods, what usual advice says of each, what the demo measured, what it cost and how to run it.

    python -m benchmarks.methods_table --write         # put the table into docs/methods.md
    python -m benchmarks.methods_table                 # print it

Everything is computed from files under results/: a report's rows and record (demo, text-text, combining-demo), and the rows of the study
of mining (mining-gain). What has no file there is said to be unmeasured. A test compares docs/methods.md with it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.demo_table import ROOT
from benchmarks.kept_report import comparison, comparisons_of, mean_recall, points, read_kept, read_kept_study
from train.study.comparison import compare_systems

RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "methods.md"
START = "<!-- methods table: python -m benchmarks.methods_table --write -->"
END = "<!-- end of methods table -->"


@dataclass(frozen=True)
class Measured:
    """What was found of one system.

    Attributes:
        row: `delta`, `ci95` and `verdict` of mean R@1 of both directions.
        cost: in words.
        source: the page under results/ that tells more.
        remark: what the interval does not cover.
    """

    row: dict[str, Any]
    cost: str
    source: str
    remark: str = ""


@dataclass(frozen=True)
class Method:
    """One row: one system of a method.

    Attributes:
        name: of the method and the system.
        said: the advice: does it help?
        how: command or configuration key.
        measure: looks it up under a folder of results; None: no file there measures it.
    """

    name: str
    said: str
    how: str
    measure: Callable[[Path], Measured | None]


def of_report(folder: str, stage: str, against: str) -> Callable[[Path], Measured | None]:
    """A system of a kept report; cost: the seconds of the system over those of what it stands against."""

    def measure(results: Path) -> Measured | None:
        if not (results / folder / "report.json").is_file():
            return None
        record, queries = read_kept(results / folder)
        if stage not in record["stages"]:
            return None
        rows = record["comparisons"]
        for pairs in record.get("study", {}).get("questions", {}).values():  # a verdict is that of the study's own table
            if [stage, against] in pairs:
                rows = comparisons_of(queries, [(one, other) for one, other in pairs])
        return Measured(comparison(rows, stage, against), seconds(record["stages"], stage, against), source_of(results, folder))

    return measure


def of_ensemble(folder: str, stage: str, members: tuple[str, str]) -> Callable[[Path], Measured | None]:
    """An ensemble against the better of its members; next to its cost, what its additional seconds buy as reranking of the first member."""

    def measure(results: Path) -> Measured | None:
        if not (results / folder / "report.json").is_file():
            return None
        record, queries = read_kept(results / folder)
        better = max(members, key=lambda member: mean_recall(queries, member))
        found = of_report(folder, stage, better)(results)
        if found is None:
            return None
        (same,) = [each["same_seconds"] for each in record.get("ensemble", []) if each["stage"] == stage] or [None]
        if same is None:
            return found
        both = f"{100 * same['R@1']['both']:.1f} for {100 * mean_recall(queries, stage):.1f}"
        return replace(found, cost=f"{found.cost}; its additional seconds as reranking (K = {same['k']}): mean R@1 {both}")

    return measure


def seconds(stages: dict[str, Any], stage: str, against: str) -> str:
    """What a system takes on the test split, next to what it stands against."""
    one, other = (float(stages[name]["cost"]["seconds"]) for name in (stage, against))
    return f"{one:.1f} s for {other:.1f} s ({one / other:.1f} times)"


def source_of(results: Path, folder: str) -> str:
    """The page of a folder of results, or of the one above, as a link from docs/."""
    for name in (folder, folder.split("/")[0]):
        if (results / f"{name}.md").is_file():
            return f"[results/{name}.md](../results/{name}.md)"
    return f"[results/{folder}](../results/{folder})"


def tuning(results: Path) -> Measured | None:
    """Fine-tuning: tuned against base, which cost the same in use."""
    found = of_report("demo", "tuned", "base")(results)
    runs = results / "mining-gain" / "runs.json"
    if found is None:
        return None
    cost = "training once: 400 steps of 64 images"
    if runs.is_file():
        taken = [run["step_seconds"] for run in json.loads(runs.read_text(encoding="utf-8"))["runs"] if run["arm"] == "none"]
        cost += f", {sum(taken) / len(taken):.0f} s"
    return Measured(found.row, f"{cost}; in use none", found.source)


def mining(results: Path) -> Measured | None:
    """Hard-negative mining: mined against not, over seeds."""
    kept = results / "mining-gain"
    if not (kept / "queries.parquet").is_file():
        return None
    (row,) = compare_systems(read_kept_study(kept), [("mined", "none")])
    found = row["both"]
    runs = json.loads((kept / "runs.json").read_text(encoding="utf-8"))["runs"]
    taken = {name: sum(run["step_seconds"] + run["mining_seconds"] for run in runs if run["arm"] == name) for name in ("none", "mined")}
    return Measured(
        {"delta": found["delta"], "ci95": found["ci95_images"], "verdict": row["verdict"]},
        f"training {taken['mined'] / taken['none']:.1f} times as long; in use none",
        source_of(results, "mining-gain"),
        f"over {len(found['by_seed'])} seeds {points(found['ci95_seeds'])}",
    )


def unmeasured(results: Path) -> None:
    """A method that the demo has nothing to measure on."""


RERANK = "`--rerank DIR`, `rerank.model`; [reranking](reranking.md)"
REFUSED = "refused by `--rerank`; [reranking](reranking.md)"
ENSEMBLE = "`--ensemble DIR2[:weight]`, `evaluation.ensemble`; [ensembles](ensembles.md)"
SYNONYMS = "`--expand synonyms:FILE`, `evaluation.expand`; [expansion](expansion.md)"
TEMPLATES = "`--expand templates`, `evaluation.expand`; [expansion](expansion.md)"
PARAPHRASES = "`--expand FILE`, `--expand column:NAME`; [expansion](expansion.md)"
MODEL = "`--expand paraphrase:DIR`; [expansion](expansion.md)"
CAPTIONS = "`--expand captions:FILE`, `captions-column:NAME`; [expansion](expansion.md)"
SOUP = "`./launch.sh soup RUN RUN ... --output DIR --greedy`; [ensembles](ensembles.md)"
MEMBERS = ("model", "model-2")
YES, NO = "yes", "no, may hurt"
METHODS: tuple[Method, ...] = (
    Method("Cross-encoder reranking: BLIP on base", YES, RERANK, of_report("demo", "base+blip", "base")),
    Method("the same on tuned", YES, RERANK, of_report("demo", "tuned+blip", "tuned")),
    Method("Text-text reranker: base's own text tower, on base", NO, REFUSED, of_report("text-text", "base+tower", "base")),
    Method("the same: a text cross-encoder of the demo's own, on base", NO, REFUSED, of_report("text-text", "base+cross", "base")),
    Method("the same: a released sentence encoder (MiniLM), on base", NO, REFUSED, of_report("text-text", "base+minilm", "base")),
    Method("the same: a text model that never errs, on base", NO, REFUSED, of_report("text-text", "base+truth", "base")),
    Method("the same: a text model that never errs, on tuned", NO, REFUSED, of_report("text-text", "tuned+truth", "tuned")),
    Method("the same: the text cross-encoder, on tuned", NO, REFUSED, of_report("text-text", "tuned+cross", "tuned")),
    Method("Ensembling: base and large, against the better", YES, ENSEMBLE, of_ensemble("combining-demo/base", "ensemble", MEMBERS)),
    Method("the same, both tuned, against the better", YES, ENSEMBLE, of_ensemble("combining-demo/tuned", "ensemble", MEMBERS)),
    Method("the same in the weights: a soup of three seeds, against one", "", SOUP, of_report("combining-demo/base", "soup", "tuned")),
    Method("Query expansion: synonyms (to plain words), base", YES, SYNONYMS, of_report("combining-demo/base", "model+synonyms", "model")),
    Method("the same: synonyms, on tuned", YES, SYNONYMS, of_report("combining-demo/tuned", "model+synonyms", "model")),
    Method("the same: a thesaurus, both ways, on base", YES, SYNONYMS, of_report("combining-demo/base", "model+synonyms-2", "model")),
    Method("the same: a thesaurus, both ways, on tuned", YES, SYNONYMS, of_report("combining-demo/tuned", "model+synonyms-2", "model")),
    Method("the same: templates, on base", YES, TEMPLATES, of_report("combining-demo/base", "model+templates", "model")),
    Method("the same: templates, on tuned", YES, TEMPLATES, of_report("combining-demo/tuned", "model+templates", "model")),
    Method("the same: a paraphrase of one's own, on base", YES, PARAPHRASES, of_report("own-words/base", "model+paraphrases", "model")),
    Method("the same: a paraphrase of one's own, on tuned", YES, PARAPHRASES, of_report("own-words/tuned", "model+paraphrases", "model")),
    Method("the same: one more caption of each image, on base", YES, CAPTIONS, of_report("own-words/base", "model+captions", "model")),
    Method("the same: one more caption of each image, on tuned", YES, CAPTIONS, of_report("own-words/tuned", "model+captions", "model")),
    Method("the same: paraphrases by a local model", YES, MODEL, unmeasured),
    Method("Fine-tuning on labelled pairs", YES, "`./launch.sh CONFIG.yaml`; [training](training.md)", tuning),
    Method("Hard-negative mining, while tuning", YES, "`mining:` in the configuration; [mining](mining.md)", mining),
)  # fmt: skip


def methods_table(results: Path = RESULTS, methods: Sequence[Method] = METHODS) -> str:
    """The table as Markdown."""
    lines = [
        "| method | advice: does it help? | gain on the demo, points | paired 95% interval | verdict | cost | how | more |",
        "|---" * 8 + "|",
    ]
    for method in methods:
        found = method.measure(results)
        if found is None:
            lines.append(f"| {method.name} | {method.said} | not measured | | | | {method.how} | |")
            continue
        verdict = found.row["verdict"] + (f" ({found.remark})" if found.remark else "")
        cells = [method.name, method.said, f"{100 * found.row['delta']:+.1f}", points(found.row["ci95"]), verdict, found.cost, method.how]
        lines.append("| " + " | ".join([*cells, found.source]) + " |")
    return "\n".join(lines)


def page_with(table: str, page: str) -> str:
    """docs/methods.md with the table between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, found_start, rest = page.partition(START)
    _, found_end, after = rest.partition(END)
    if not found_start or not found_end:
        raise ValueError(f"docs/methods.md lacks the lines {START!r} and {END!r}")
    return f"{before}{START}\n{table}\n{END}{after}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into docs/methods.md")
    asked = parser.parse_args()
    table = methods_table()
    if asked.write:
        PAGE.write_text(page_with(table, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(table + "\n")


if __name__ == "__main__":
    main()
