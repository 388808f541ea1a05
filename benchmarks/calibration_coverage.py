"""How often does the 95% interval of a calibrated threshold hold the true one? Twenty draws of the demo's scenes, whose truth is known.

    python -m benchmarks.calibration_coverage --folder runs/coverage --write     # 20 minutes on two cores; writes results/calibration.md

Each draw is a val split of its own: 200 other scenes with their captions, retrieved by the demo's base and reranked by its BLIP, and
calibrated by itself. The true threshold of a draw is that of the other nineteen together. A run that was killed goes on: scores are cached.
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conclusion import title_lines
from demo.manifest import build_manifest, write_parquet
from eval.atomic import replace_files
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.execution import ONE_PROCESS
from eval.manifest.manifest import read_manifest
from eval.metrics.calibration import NUM_RESAMPLES, CandidatePairs, calibrate, check_calibration, thresholds
from eval.metrics.significance import resample_weights
from eval.report.render import DIRECTION_WORDS
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.retrieve import retrieve
from rerank.calibration import Reranker, StagesOf
from rerank.scorers.load import load_scorer
from rerank.scoring.score_cache import ScoreCache

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "calibration.md"
NUM_DRAWS, NUM_SCENES, TOP_K, FIRST_SEED = 20, 200, 8, 1000


def drawn(folder: Path, seed: int) -> RetrievalSet:
    """A val split of other scenes, written to a folder once."""
    path = folder / f"scenes-{seed}.parquet"
    if not path.exists():
        rows = build_manifest({"test": 0, "val": NUM_SCENES, "train": 0}, seed=seed)
        replace_files({path: lambda temporary: write_parquet(rows, temporary)})
    return load_split(read_manifest(str(path), columns={"group": "scene"}), "val")


def reranked_pairs(folder: Path) -> list[dict[Direction, CandidatePairs]]:
    """The reranked candidates of every draw, by direction."""
    model, inputs = load_siglip(ROOT / "demo" / "models" / "siglip-base")
    reranker = Reranker(load_scorer(str(ROOT / "demo" / "models" / "blip-itm"), device="cpu"), ScoreCache(folder / "pair-scores"))
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_DRAWS):
        dataset = drawn(folder, seed)
        first = retrieve("base", model, inputs, dataset)
        scored = StagesOf.scored(dataset, first, reranker, TOP_K, None, ONE_PROCESS)
        found.append({direction: scored.pairs(1, TOP_K)[direction] for direction in DIRECTIONS})
    return found


def together(draws: list[CandidatePairs]) -> CandidatePairs:
    """The pairs of several draws as of one split."""
    starts = np.cumsum([0, *(len(one.image_Q) for one in draws)])
    images = np.cumsum([0, *(int(one.image_Q.max()) + 1 for one in draws)])
    return CandidatePairs(
        np.concatenate([one.scores_N for one in draws]),
        np.concatenate([one.relevant_N for one in draws]),
        np.concatenate([one.query_N + start for one, start in zip(draws, starts, strict=False)]),
        np.concatenate([one.image_Q + start for one, start in zip(draws, images, strict=False)]),
        np.concatenate([one.item_image_N + start for one, start in zip(draws, images, strict=False)]),
        sum(one.num_relevant for one in draws),
    )


def holds(row: dict[str, Any], score: float) -> bool:
    """Whether a threshold's interval holds a score; an end that is none lies above every score."""
    low, high = (end if end is not None else np.inf for end in row["ci95"])
    return bool(low <= score <= high)


def width(row: dict[str, Any]) -> float:
    """Of a threshold's interval; inf: it has no upper end."""
    return float("inf") if row["ci95"][1] is None else row["ci95"][1] - row["ci95"][0]


def coverage(draws: list[CandidatePairs]) -> list[dict[str, Any]]:
    """Of each precision: how many draws' intervals hold the threshold of the others, how wide they are, what precision is found there."""
    weights_SI = resample_weights(NUM_SCENES, num_resamples=NUM_RESAMPLES)
    empty: dict[str, Any] = {"held": 0, "of_queries": 0, "none": 0, "widths": [], "found": [], "true": [], "scores": []}
    rows: dict[float, dict[str, Any]] = {}
    for number, own in enumerate(draws):
        others = together(draws[:number] + draws[number + 1 :])
        truth = thresholds(others, np.ones((1, int(others.image_Q.max()) + 1), dtype=np.uint16))
        found = calibrate(own, weights_SI)
        checked = check_calibration(found, others, np.ones((1, int(others.image_Q.max()) + 1), dtype=np.uint16))
        of_queries = thresholds(replace(own, item_image_N=own.image_N), weights_SI)  # a candidate counts as often as its query alone
        for row, shorter, true in zip(found["thresholds"], of_queries, truth, strict=True):
            into = rows.setdefault(row["precision"], copy.deepcopy(empty))
            if row["score"] is None or true["score"] is None:
                into["none"] += 1
                continue
            into["held"] += holds(row, true["score"])
            into["of_queries"] += holds(shorter, true["score"])
            into["widths"].append(width(row))
            into["true"].append(true["score"])
            into["scores"].append(row["score"])
            into["found"].append(next(one["found"] for one in checked["thresholds"] if one["precision"] == row["precision"]))
        into = rows.setdefault(0.0, {"errors": []})
        into["errors"].append(checked["error"])
    return [{"precision": precision} | row for precision, row in rows.items()]


def table(draws: list[dict[Direction, CandidatePairs]]) -> str:
    """The page."""
    lines = [
        *title_lines("calibration", "How often the interval of a calibrated threshold holds the true one"),
        f"`python -m benchmarks.calibration_coverage --folder FOLDER --write`: {NUM_DRAWS} draws of {NUM_SCENES} other scenes of the demo "
        f"(seeds {FIRST_SEED} to {FIRST_SEED + NUM_DRAWS - 1}), retrieved by",
        f"demo/models/siglip-base, the first {TOP_K} of each query reranked by demo/models/blip-itm. Each draw is calibrated by itself; "
        "the true threshold is that of the other draws together.",
        "",
        "| direction | precision wanted | true threshold | interval holds it | were queries alone drawn | median width "
        "| threshold found, mean | precision it gives elsewhere, mean (least to most) | no threshold |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    errors, counts = {}, np.zeros(3, dtype=np.int64)
    for direction in DIRECTIONS:
        for row in coverage([draw[direction] for draw in draws]):
            if row["precision"] == 0:
                errors[direction] = row["errors"]
                continue
            num = len(row["found"])
            counts += [row["held"], row["of_queries"], num]
            shown = ["-"] * 6
            if num:
                found = 100 * np.array(row["found"])
                shown = [
                    f"{np.mean(row['true']):.2f}",
                    f"{row['held']} of {num}",
                    f"{row['of_queries']} of {num}",
                    f"{np.median(row['widths']):.2f}",
                    f"{np.mean(row['scores']):.2f}",
                    f"{found.mean():.1f} ({found.min():.1f} to {found.max():.1f})",
                ]
            lines.append(f"| {DIRECTION_WORDS[direction]} | {100 * row['precision']:g}% | {' | '.join(shown)} | {row['none']} |")
    said = "; ".join(f"{DIRECTION_WORDS[d]} {100 * np.mean(one):.1f} points" for d, one in errors.items())
    together_line = (
        f"In all {counts[0]} of {counts[2]} intervals ({100 * counts[0] / counts[2]:.0f}%) hold it; {counts[1]} "
        f"({100 * counts[1] / counts[2]:.0f}%) were queries alone drawn."
    )
    error_line = f"Expected calibration error of a draw's probabilities on the others, mean: {said}."
    return "\n".join([*lines, "", together_line, "", error_line, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder for the scenes and the score cache")
    parser.add_argument("--write", action="store_true", help="write results/calibration.md (default: print it)")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    text = table(reranked_pairs(asked.folder))
    if asked.write:
        replace_files({TABLE: text})
    print(text)


if __name__ == "__main__":
    main()
