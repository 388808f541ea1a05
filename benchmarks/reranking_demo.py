"""Reranking on the demo: what it gains at each K, what both scores together add, and how many pairs need not be scored.

    ./launch.sh && python -m benchmarks.reranking_demo --output results/reranking-demo.md       # a few minutes
    python -m benchmarks.reranking_demo RUN_FOLDER [--rerank MATCHER] [--top-k 32] [--max-loss 0.001]

The export of a finished run of configs/demo.yaml is the first stage. Weight and margin are chosen on val and measured on test. Next to them
stand the ways not taken: each query in units of its own spread, whole queries skipped or none of their pairs, and a margin chosen by what
skipping loses less what it happens to gain. The report with its rows goes to RUN_FOLDER/eval/reranking.
Shape letters: Q queries, T candidates.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conclusion import title_lines
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.manifest.manifest import read_manifest
from eval.metrics.evaluate import Figures, evaluate
from eval.metrics.metrics import recall_at_k
from eval.report.report import report_record, write_report
from eval.report.section import Section
from eval.search.ranking import DIRECTIONS
from eval.search.retrieve import retrieve
from eval.search.stage import Stage
from rerank.reorder.fusion import WEIGHTS
from rerank.reorder.plan import Plan, Tuning
from rerank.reorder.reorder import reordered
from rerank.reorder.reranking import Reranked, rerank_stages
from rerank.reorder.skipping import pair_trails, rerank_within, saving, trails
from rerank.reorder.stages import TuningResult
from rerank.scorers.load import load_scorer
from rerank.scoring.candidates import CandidateLists, candidate_lists, head_pairs
from rerank.scoring.pair_scores import PairScores

DATA, COLUMNS = "demo/data/scenes.parquet", {"group": "scene"}


def percent(share: float) -> str:
    """In percent with two decimals."""
    return f"{100 * share:.2f}"


def interval(bounds: list[float]) -> str:
    """In points."""
    return f"{100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f}"


def mean_recall(ranks: dict[Any, np.ndarray]) -> float:
    """R@1, mean of both directions."""
    return float(np.mean([recall_at_k(ranks[direction], 1).mean() for direction in DIRECTIONS]))


def gain_lines(figures: Figures, reranked: str) -> list[str]:
    """Reranked against not, each direction and both."""
    lines = ["| R@1 | tuned | reranked | difference | paired 95% interval | verdict |", "|---|---|---|---|---|---|"]
    for row in figures.comparisons:
        if (row["stage"], row["metric"]) == (reranked, "R@1") and row["against"] == "tuned":
            sides = DIRECTIONS if row["direction"] == "both" else [row["direction"]]
            before, after = (np.mean([figures.stages[stage][side]["R@1"] for side in sides]) for stage in ("tuned", reranked))
            lines.append(
                f"| {row['direction'].replace('_', ' ')} | {percent(before)} | {percent(after)} | {100 * row['delta']:+.2f} | "
                f"{interval(row['ci95'])} | {row['verdict']} |"
            )
    return lines


def sweep_lines(figures: Figures, first: Stage, reranked: str) -> list[str]:
    """R@1 at each K next to the first stage's R@K."""
    lines = ["| K | " + " | ".join(f"{d.replace('_', ' ')} | 95% interval | ceiling" for d in DIRECTIONS) + " |", "|---" * 7 + "|"]
    rows = figures.stages[reranked]["k_sweep"]
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = [str(k)]
        for direction in DIRECTIONS:
            row = next(row for row in rows if (row["k"], row["direction"]) == (k, direction))
            ceiling = recall_at_k(first.rankings[direction].best_ranks(), k).mean()
            cells += [percent(row["R@1"]), f"{percent(row['ci95'][0])} to {percent(row['ci95'][1])}", percent(ceiling)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def per_query_recall(first: Stage, scores: PairScores, top_k: int, weight: float) -> float:
    """Mean R@1 were each query's scores divided by their own deviation."""
    ranks = {}
    for direction in DIRECTIONS:
        ranking = first.rankings[direction]
        parts = [scores.lookup(*head_pairs(ranking, top_k)).astype(np.float64), ranking.top_scores_QK[:, :top_k].astype(np.float64)]
        pair_QT, first_QT = (part / np.maximum(part.std(axis=1, keepdims=True), 1e-12) for part in parts)
        ranks[direction] = reordered(ranking, pair_QT + weight * first_QT).best_ranks()
    return mean_recall(ranks)


def fusion_lines(record: dict[str, Any], chosen: TuningResult) -> list[str]:
    """Weights on val, and what is measured on test."""
    assert chosen.fusion is not None
    lines = ["| weight | val, mean R@1 | val, each query by its own spread |", "|---|---|---|"]
    for weight in WEIGHTS:
        own = per_query_recall(chosen.first, chosen.scores, chosen.top_k, weight)
        mark = " (chosen)" if weight == chosen.fusion.fusion.weight else ""
        lines.append(f"| {weight:g}{mark} | {percent(mean_recall(dict(chosen.fusion.ranks[weight])))} | {percent(own)} |")
    alone = {direction: chosen.first.rankings[direction].best_ranks() for direction in DIRECTIONS}
    lines += [f"| first stage alone | {percent(mean_recall(alone))} | |", ""]
    lines += ["| test | weight | mean R@1 | difference from weight 0 | paired 95% interval |", "|---|---|---|---|---|"]
    for row in record["fusion"][0]["measured"]:
        difference = f"{100 * row['delta']:+.2f} | {interval(row['ci95'])}"
        lines.append(f"| {row['stage']} | {row['weight']:g} | {percent(row['R@1']['both'])} | {difference} |")
    return lines


def whole_query_saving(first: Stage, scores: PairScores, top_k: int, margin: float) -> tuple[float, float, float]:
    """(share of pairs saved, answers lost, fall of mean R@1) were queries skipped whole and all other pairs scored."""
    needed, lost, loss = CandidateLists.of_pairs(np.empty(0, np.int64), np.empty(0, np.int64)), [], []
    for direction in DIRECTIONS:
        ranking = first.rankings[direction]
        asks_Q = trails(ranking, top_k)[:, 1] < margin
        images_QT, captions_QT = head_pairs(ranking, top_k)
        needed = needed.union(CandidateLists.of_pairs(images_QT[asks_Q].ravel(), captions_QT[asks_Q].ravel()))
        full_Q = rerank_within(ranking, scores, top_k, np.inf).best_ranks() == 1
        found_Q = np.where(asks_Q, full_Q, ranking.best_ranks() == 1)
        lost.append((full_Q & ~found_Q).mean())
        loss.append(full_Q.mean() - found_Q.mean())
    everything = candidate_lists([first.rankings[direction] for direction in DIRECTIONS], top_k).num_pairs
    return 1 - needed.num_pairs / everything, float(np.mean(lost)), float(np.mean(loss))


def whole_query_margin(first: Stage, scores: PairScores, top_k: int, max_loss: float) -> float:
    """The smallest margin between ranks 1 and 2 at which, as at every larger one, the answers lost are at most `max_loss`."""
    margins = np.unique(np.concatenate([trails(first.rankings[direction], top_k)[:, 1] for direction in DIRECTIONS]))[::-1]
    best = float("inf")
    for margin in margins.tolist():
        if whole_query_saving(first, scores, top_k, margin)[1] > max_loss + 1e-9:
            return best
        best = margin
    return best


def offset_margin(first: Stage, scores: PairScores, top_k: int, max_loss: float) -> float:
    """The smallest margin at which, as at every larger one, lost answers less gained ones are at most `max_loss`, of 400 quantiles."""
    trails_N = pair_trails([first.rankings[direction] for direction in DIRECTIONS], top_k)
    best = float("inf")
    for margin in np.unique(np.quantile(trails_N, np.linspace(0, 1, 400), method="lower"))[::-1].tolist():
        if saving(first.rankings, scores, top_k, margin).loss > max_loss + 1e-9:
            return best
        best = margin
    return best


def adaptive_lines(record: dict[str, Any], chosen: TuningResult, first: Stage, scores: PairScores) -> list[str]:
    """The margin and the two ways not taken, where they are chosen and where they are measured."""
    assert chosen.margin is not None and chosen.max_loss is not None
    asked = (chosen.first, chosen.scores, chosen.top_k, chosen.max_loss)
    lines = ["| skipped | margin | val: pairs saved | lost | loss | test: pairs saved | loss |", "|---" * 7 + "|"]
    margins = {"what trails by the margin, by answers lost": chosen.margin, "the same, by the fall of R@1": offset_margin(*asked)}
    for name, margin in margins.items():
        there, here = (saving(s.rankings, p, chosen.top_k, margin) for s, p in ((chosen.first, chosen.scores), (first, scores)))
        lines.append(
            f"| {name} | {margin:.4f} | {100 * there.share_saved:.1f}% | {percent(there.lost)} | {100 * there.loss:+.2f} | "
            f"{100 * here.share_saved:.1f}% | {100 * here.loss:+.2f} |"
        )
    margin = whole_query_margin(*asked)
    (saved, lost, loss), there = whole_query_saving(*asked[:3], margin), whole_query_saving(first, scores, chosen.top_k, margin)
    lines.append(
        f"| whole queries, by answers lost | {margin:.4f} | {100 * saved:.1f}% | {percent(lost)} | {100 * loss:+.2f} | "
        f"{100 * there[0]:.1f}% | {100 * there[2]:+.2f} |"
    )
    measured = record["adaptive"][0]["measured"]
    return [
        *lines,
        "",
        f"Measured on test, the first row: {measured['saved']:,} of {measured['pairs']:,} pairs saved; mean R@1 falls by "
        f"{100 * measured['loss']:+.2f} points (below 0: it rises), paired 95% interval {interval(measured['ci95'])}. "
        "The margin comes from val; the rule it serves was picked by halving this test split (results/skip-rules.md).",
    ]


def page(figures: Figures, sections: Sequence[Section], reranked: Reranked, first: Stage, command: str) -> str:
    """The whole page."""
    record, chosen, scores = report_record(figures, sections), reranked.tuned[0], reranked.scores
    limit = f"{100 * (chosen.max_loss or 0):g}"
    on = f"{chosen.dataset.num_images} images and {chosen.dataset.num_captions} captions"
    parts = [
        title_lines("reranking-demo", "Reranking on the demo"),
        [f"`{command}`. First stage: the run's export. Chosen on val ({on}), measured on test"],
        [f"({figures.data['num_images']} images and {figures.data['num_captions']} captions). Recalls in percent, differences in points."],
        ["", "## Gain of reranking", "", *gain_lines(figures, chosen.stage)],
        ["", "## R@1 at every K", "", "The ceiling is the first stage's R@K.", "", *sweep_lines(figures, first, chosen.stage)],
        ["", "## Score interpolation", "", *fusion_lines(record, chosen)],
        ["", f"## Adaptive reranking, for at most {limit} points", "", *adaptive_lines(record, chosen, first, scores)],
    ]
    return "\n".join(line for part in parts for line in part) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--rerank", default="demo/models/blip-itm")
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--max-loss", type=float, default=0.001)
    parser.add_argument("--output", type=Path, help="write the page here")
    asked = parser.parse_args()
    began = time.perf_counter()
    manifest, scorer = read_manifest(DATA, columns=COLUMNS), load_scorer(asked.rerank)
    model, inputs = load_siglip(str(asked.run_folder / "export"))

    def retrieved(dataset: RetrievalSet) -> list[Stage]:
        return [retrieve("tuned", model, inputs, dataset, depth=asked.top_k)]

    test_set, val_set = (load_split(manifest, split) for split in ("test", "val"))
    plan = Plan(top_k=asked.top_k, tuning=Tuning(fusion=True, max_loss=asked.max_loss))
    firsts = retrieved(test_set)
    reranked = rerank_stages(plan, test_set, firsts, scorer, tune_on=(val_set, retrieved))
    pairs = plan.pairs(["tuned"], scorer.name) + plan.tuned_pairs(["tuned"], scorer.name)
    figures = evaluate(test_set, firsts + reranked.stages, pairs)
    sections = reranked.sections(figures, test_set)
    write_report(asked.run_folder / "eval" / "reranking", figures, sections)
    options = f"{asked.run_folder} --rerank {asked.rerank} --top-k {asked.top_k} --max-loss {asked.max_loss:g}"
    text = page(figures, sections, reranked, firsts[0], f"python -m benchmarks.reranking_demo {options}")
    print(text, f"{time.perf_counter() - began:.0f} s", sep="\n")
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
