"""Does nearest-neighbour normalisation help? On heads trained on frozen features (benchmarks/heads), and in finished reports.

    python -m benchmarks.nnn photographs=DATA/flickr8k fashion=DATA/fashion --work runs/heads --reports base=runs/nnn-base \
        --output results/nnn.md

Of each bed plain heads are trained with SEEDS; the stage itself (rerank/nnn.py) chooses k and alpha on val, with train as its bank, and is
measured on test. A report is one that `python -m eval --nnn train --choose-on val` wrote. What the page is made of lies next to it, as
.json: `python -m benchmarks.nnn --output results/nnn.md` writes the page again from that.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.heads.beds import BEDS
from benchmarks.heads.features import Split
from benchmarks.heads.forms import Heads, System, train_heads
from eval.atomic import replace_files
from eval.dataset.retrieval_set import GroupHashes, PositivePairs, matching_pairs
from eval.execution import ONE_PROCESS
from eval.metrics.metrics import recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.retrieve import Embedded, find
from rerank.nnn import NormalisedStage
from train.study.statistics import OverSeeds

SEEDS = (0, 1, 2, 3)
SIDES = (*DIRECTIONS, "both")
WORDS = {"image_to_text": "image to text", "text_to_image": "text to image", "both": "mean of both"}


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A split of frozen features as the stage reads a data set."""

    name: str
    features: Split

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.features.images_IF)

    @property
    def num_captions(self) -> int:
        """C."""
        return len(self.features.texts_CT)

    def sha256(self) -> str:
        """By which sets are told apart."""
        return self.name

    def record(self) -> dict[str, Any]:
        """Its name and size."""
        return {"split": self.name, "num_images": self.num_images, "num_captions": self.num_captions}

    def positives(self, direction: Direction) -> PositivePairs:
        """All true pairs, by query."""
        one = self.features
        images_P, captions_P = matching_pairs(one.group_I, one.text_C, GroupHashes(one.group_I[one.image_C], one.text_C))
        queries_P, items_P = (images_P, captions_P) if direction == "image_to_text" else (captions_P, images_P)
        size = self.num_images if direction == "image_to_text" else self.num_captions
        order = np.lexsort((items_P, queries_P))
        return PositivePairs(np.concatenate([[0], np.cumsum(np.bincount(queries_P, minlength=size))]).astype(np.int64), items_P[order])


@dataclass(frozen=True)
class EmbeddedSet:
    """What `NormalisedStage` asks of a set as a checkpoint embeds it."""

    embedded: Embedded


class HeadSets:
    """Sets as trained heads embed them, each once."""

    execution = ONE_PROCESS

    def __init__(self, heads: Heads) -> None:
        self._heads, self._read = heads, dict[str, EmbeddedSet]()

    def read(self, name: str, dataset: FeatureSet) -> EmbeddedSet:
        """Its unit vectors."""
        if dataset.name not in self._read:
            images_ID, captions_CD = (each.numpy() for each in self._heads.vectors(dataset.features))
            self._read[dataset.name] = EmbeddedSet(Embedded(images_ID, captions_CD, 10.0, -10.0, 0.0, 0.0, torch.device("cpu")))
        return self._read[dataset.name]


def measure(bed: str, source: Path, work: Path) -> dict[str, Any]:
    """One bed: of every seed what was chosen, R@1 of both stages, and of each image its part of the difference."""
    plan = BEDS[bed]
    splits = {name: FeatureSet(name, split) for name, split in plan.read(work / f"{bed}.npz", source).items()}
    seeds = []
    for seed in SEEDS:
        trained = train_heads(
            splits["train"].features, System(), seed=seed, steps=plan.steps, batch_size=plan.batch_size, rate=plan.learning_rate
        )
        sets: Any = HeadSets(trained.heads)
        train, val, test = (splits[name] for name in ("train", "val", "test"))
        normalised = NormalisedStage("heads", sets, train)  # type: ignore[arg-type]
        normalised.choose(val)  # type: ignore[arg-type]
        plain = find("heads", sets.read("heads", test).embedded, test)  # type: ignore[arg-type]
        other = normalised.stage(test, 10)  # type: ignore[arg-type]
        found: dict[str, Any] = {"seed": seed}
        for direction in DIRECTIONS:
            before, after = (recall_at_k(stage.rankings[direction].best_ranks(), 1) for stage in (plain, other))
            image_Q = np.arange(test.num_images) if direction == "image_to_text" else test.features.image_C
            sums = ImageSums.of((after - before)[:, None], image_Q, test.num_images)
            chosen = normalised.chosen[direction].setting
            found[direction] = {
                "k": chosen.number, "alpha": chosen.alpha, "plain": float(before.mean()), "nnn": float(after.mean()),
                "sums_I": sums.sums_IM[:, 0].tolist(), "counts_I": sums.counts_I.tolist(),
            }  # fmt: skip
        seeds.append(found)
        said = ", ".join(f"{direction} {found[direction]['plain']:.4f} -> {found[direction]['nnn']:.4f}" for direction in DIRECTIONS)
        print(f"{bed} seed {seed}: {said}", file=sys.stderr, flush=True)
    return {"sizes": {name: split.record() for name, split in splits.items()}, "seeds": seeds, "rows": rows_of(seeds)}


def rows_of(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By direction R@1 of both stages, and their difference with its intervals over seeds (Student's t) and images (bootstrap).

    The resamples are of the mean over seeds: the images are the same in all.
    """
    num_images, rows, drawn = len(seeds[0]["image_to_text"]["sums_I"]), {}, []
    weights_SI = resample_weights(num_images)
    for direction in DIRECTIONS:
        own = [seed[direction] for seed in seeds]
        sums = ImageSums(np.mean([one["sums_I"] for one in own], axis=0)[:, None], np.array(own[0]["counts_I"]))
        drawn.append(sums.resampled_means(weights_SI))
        rows[direction] = _row(own, [one["nnn"] - one["plain"] for one in own], drawn[-1])
    differences = np.mean([[seed[d]["nnn"] - seed[d]["plain"] for d in DIRECTIONS] for seed in seeds], axis=1)
    both = [{key: np.mean([seed[d][key] for d in DIRECTIONS]) for key in ("plain", "nnn")} for seed in seeds]
    return rows | {"both": _row(both, differences.tolist(), np.mean(drawn, axis=0))}


def _row(own: Sequence[Mapping[str, Any]], differences: Sequence[float], drawn_S1: np.ndarray) -> dict[str, Any]:
    over_seeds = OverSeeds.of(differences)
    return {
        "plain": float(np.mean([one["plain"] for one in own])), "nnn": float(np.mean([one["nnn"] for one in own])),
        "delta": over_seeds.mean, "ci95_seeds": over_seeds.ci95, "ci95_images": interval(drawn_S1)[:, 0].tolist(),
    }  # fmt: skip


def read_report(folder: Path) -> dict[str, Any]:
    """What the page needs of a report."""
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    one = record["nnn"]
    rows = [row for row in record["comparisons"] if (row["stage"], row["against"], row["metric"]) == (one["stage"], one["against"], "R@1")]
    recalls = {stage: {d: record["stages"][stage][d]["R@1"] for d in DIRECTIONS} for stage in (one["against"], one["stage"])}
    plain, nnn = ({**each, "both": float(np.mean(list(each.values())))} for each in recalls.values())
    found = {
        row["direction"]: {
            "plain": plain[row["direction"]],
            "nnn": nnn[row["direction"]],
            "delta": row["delta"],
            "ci95_images": row["ci95"],
        }
        for row in rows
    }
    chosen = {direction: {key: one["directions"][direction][key] for key in ("k", "alpha")} for direction in DIRECTIONS}
    return {"num_images": record["data"]["num_images"], "chosen": chosen, "rows": found}


def page(found: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        *title_lines("nnn", "Nearest-neighbour normalisation, measured"),
        "A score less alpha times the mean of the gallery item's k best scores with the train split's queries (Chowdhury et al. 2024,",
        "EMNLP, [arXiv 2410.24114](https://arxiv.org/abs/2410.24114)); k of 1, 8, 32, 128 and alpha of 0, 0.25, 0.5, 0.75, 1 chosen on",
        "val, for each direction. R@1 on test and differences in points with 95% intervals: over images (bootstrap of the mean over seeds)",
        f"and over {len(SEEDS)} training seeds (Student's t). Intervals are not corrected for the number of rows.",
        "",
        *conclusion(found),
        "",
        "Photographs and fashion are plain heads on frozen features of other networks (benchmarks/heads), not released SigLIP weights,",
        "whose similarities are of another kind. The bank is what the heads were trained on; k and alpha differ from seed to seed.",
        "",
        f"Command: `{found['command']}`. The reports are of `./launch.sh eval --model MODEL --data demo/data/scenes.parquet --column "
        "group=scene --split test --choose-on val --nnn train`, of demo/models/siglip-base and of a run's export.",
        "",
        "| data | direction | plain | normalised | difference | over images | over seeds | chosen k, alpha |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for bed, one in found["beds"].items():
        for side in SIDES:
            chosen = "" if side == "both" else "; ".join(chosen_point(seed[side]) for seed in one["seeds"])
            lines.append(f"| {bed}, heads on frozen features | {cells(side, one['rows'][side])} | {chosen} |")
    for name, one in found["reports"].items():
        for side in SIDES:
            chosen = "" if side == "both" else chosen_point(one["chosen"][side])
            lines.append(f"| {name} | {cells(side, one['rows'][side])} | {chosen} |")
    sizes = [
        f"{bed} {one['sizes']['test']['num_images']:,} test images, bank {one['sizes']['train']['num_captions']:,} captions and "
        f"{one['sizes']['train']['num_images']:,} images"
        for bed, one in found["beds"].items()
    ]
    sizes += [f"{name} {one['num_images']:,} test images" for name, one in found["reports"].items()]
    return "\n".join([*lines, "", f"Sizes: {'; '.join(sizes)}.", ""])


def conclusion(found: Mapping[str, Any]) -> list[str]:
    """A sentence for each kind of data, on the mean of both directions; a difference counts where every interval leaves out 0."""
    lines = []
    for name, one in (found["beds"] | found["reports"]).items():
        row = one["rows"]["both"]
        bounds = [row["ci95_images"], *([row["ci95_seeds"]] if "ci95_seeds" in row else [])]
        side = "it gains" if all(low > 0 for low, _ in bounds) else "it loses" if all(high < 0 for _, high in bounds) else "no evidence"
        lines.append(f"- **{name}**: {side}, {100 * row['delta']:+.1f} points of mean R@1.")
    return lines


def chosen_point(setting: Mapping[str, Any]) -> str:
    """k and alpha, or off."""
    return f"{setting['k']}, {setting['alpha']:g}" if setting["alpha"] else "off"


def cells(side: str, row: Mapping[str, Any]) -> str:
    """Direction, figures and intervals of a row."""
    over_seeds = span(row["ci95_seeds"]) if "ci95_seeds" in row else ""
    figures = f"{100 * row['plain']:.1f} | {100 * row['nnn']:.1f} | {100 * row['delta']:+.1f}"
    return f"{WORDS[side]} | {figures} | {span(row['ci95_images'])} | {over_seeds}"


def span(bounds: Sequence[float]) -> str:
    """An interval in points."""
    return f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"


def main() -> None:
    """Parse arguments, measure what is asked, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beds", nargs="*", metavar="BED=FOLDER")
    parser.add_argument("--work", type=Path, default=Path("runs/heads"), help="cached features (default runs/heads)")
    parser.add_argument(
        "--reports", nargs="*", default=[], metavar="NAME=FOLDER", help="finished reports with a section nnn (default: none)"
    )
    parser.add_argument("--output", type=Path, default=Path("results/nnn.md"), help="the page (default results/nnn.md)")
    args = parser.parse_args()
    stored = args.output.with_suffix(".json")
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {"beds": {}, "reports": {}}
    for bed, source in (each.split("=", 1) for each in args.beds):
        found["beds"][bed] = measure(bed, Path(source), args.work)
        for seed in found["beds"][bed]["seeds"]:
            for direction in DIRECTIONS:
                del seed[direction]["sums_I"], seed[direction]["counts_I"]
    found["reports"] |= {name: read_report(Path(folder)) for name, folder in (each.split("=", 1) for each in args.reports)}
    found["command"] = (
        "python -m benchmarks.nnn photographs=DATA/flickr8k fashion=DATA/fashion --work runs/heads --reports NAME=FOLDER ... "
        "--output results/nnn.md"
    )
    replace_files({stored: json.dumps(found, indent=1) + "\n", args.output: page(found)})


if __name__ == "__main__":
    main()
