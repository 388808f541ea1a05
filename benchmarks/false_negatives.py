"""How many of the mined negatives are true? Each rule of mining on the demo's scenes, where every true pair is known.

    python -m benchmarks.false_negatives --write          # three minutes; writes results/false-negatives.md

A caption is true of a drawing if it says nothing that the scene contradicts (demo/truth.py). demo/data/train.qrels holds the true pairs
that the manifest does not state; the manifest states the others: an image's own captions and, where groups are given, its scene's. "No
rules" is mined without the column of groups, so that only an image's own captions are known. Every system mines with the same model from
the same captions. Shape letters: N rows of a table.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.manifest.manifest import read_manifest
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import PairScorer, ScorerSettings
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.mining.candidates import Candidates, Retriever, find_candidates
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.mine import Selector
from train.mining.report import Mined, is_true, summarize

DATA, BLIP = Path("demo/data/scenes.parquet"), "demo/models/blip-itm"
SHORT = (
    "name=short train.max_steps=150 train.eval_every_steps=150 train.checkpoint_every_steps=150 mining=null rerank=null watch=[] "
    "choices=null data.val_split=null data.test_split=null data.truth=null"
)  # a minute of tuning, for the second model of the committed page
TABLE = Path(__file__).parents[1] / "results" / "false-negatives.md"
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9)
RULES: dict[str, dict[str, Any]] = {
    "margin 0": {"margin": 0.0},
    "margin 1": {"margin": 1.0},
    "TopK-PercPos 0.95": {"perc_pos": 0.95},
    "TopK-MarginPos 0.05": {"margin_pos": 0.05},
    "rank_min 8": {"rank_min": 8},
    "near-duplicates": {"near_duplicates": True},
    "BLIP denoising": {"denoise": {}},
    "all but denoising": {"margin": 0.0, "perc_pos": 0.95, "near_duplicates": True},
    "all": {"margin": 0.0, "perc_pos": 0.95, "near_duplicates": True, "denoise": {}},
}


@dataclass(frozen=True)
class Counts:
    """What one system mined.

    Attributes:
        mined, false: negatives, and those that are true after all.
        positives: negatives that the system's own data states as true; a promise says 0.
        short: negatives that were asked for and not found.
        scored: pairs the cross-encoder was asked about.
        estimated: the mining report's estimate of false / mined; None where no cross-encoder is asked.
    """

    mined: int
    false: int
    positives: int
    short: int
    judged: int
    estimated: float | None

    @property
    def true_negatives(self) -> int:
        """Negatives that are negatives."""
        return self.mined - self.false

    def row(self, name: str) -> str:
        """A line of the table."""
        share = f"{100 * self.false / self.mined:.2f}" if self.mined else "-"
        estimated = "-" if self.estimated is None else f"{100 * self.estimated:.2f}"
        cells = (name, f"{self.mined:,}", f"{self.short:,}", f"{self.false:,}", share, estimated)
        return "| " + " | ".join((*cells, f"{self.judged:,}", str(self.positives))) + " |"


class Study:
    """The demo's train split with and without its groups, retrieved once."""

    def __init__(self, model: str, data: str | Path = DATA, qrels: str = "demo/data/train.qrels", blip: str = BLIP) -> None:
        self.grouped, self.plain = (
            load_split(read_manifest(data, columns=columns), "train") for columns in ({"group": "scene"}, dict[str, str]())
        )
        siglip, inputs = load_siglip(model)
        self.scale, self.bias = (np.float32(float(value)) for value in (siglip.logit_scale.detach().exp(), siglip.logit_bias.detach()))
        self.found: dict[int, Candidates] = {}
        for dataset in (self.grouped, self.plain):
            with torch.no_grad():
                self.found[id(dataset)] = find_candidates(Retriever(siglip, inputs), CaptionPool(dataset), 64)
        self.truth = read_qrels(qrels)
        self.scorer: PairScorer = load_scorer(blip, device="cpu", settings=ScorerSettings(score_kind="margin"))
        self.matcher = MiningCrossEncoder(self.scorer, CaptionPool(self.grouped))
        self.known: dict[tuple[int, int], float] = {}

    def mine(self, dataset: RetrievalSet, keys: dict[str, Any]) -> tuple[Mined, Counts]:
        """Mine with these rules and count what is true."""
        config = MiningConfig.model_validate({"mine_every_steps": 1, "margin": None} | self._with_model(keys))
        pool = CaptionPool(dataset)
        judge = self.probabilities if config.denoise is not None else None
        mined = Selector(pool, self.scale, self.bias, config, match_probability=judge).select("study", self.found[id(dataset)])
        sheet = summarize(mined, pool, None, None)
        false = int(self.is_true(mined)[mined.negatives.is_negative_N].sum())
        return mined, Counts(sheet.num_mined, false, sheet.num_positives_mined, sheet.shortfall, sheet.num_judged, sheet.estimated_share)

    def probabilities(self, images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        """BLIP's match probability of each pair, float32 of shape (N,); what one system asked is not scored again for another.

        Both ways of reading the data have the same images and captions, in the same order.
        """
        pairs = list(zip(images_N.tolist(), captions_N.tolist(), strict=True))
        new_N = np.array([pair not in self.known for pair in pairs], dtype=bool)
        if new_N.any():
            scored = self.matcher.probabilities(images_N[new_N], captions_N[new_N]).tolist()
            new = [pair for pair, is_new in zip(pairs, new_N, strict=True) if is_new]
            self.known.update(zip(new, scored, strict=True))
        return np.array([self.known[pair] for pair in pairs], dtype=np.float32)

    def _with_model(self, keys: dict[str, Any]) -> dict[str, Any]:
        return keys | ({"denoise": keys["denoise"] | {"model": BLIP}} if "denoise" in keys else {})

    def is_true(self, mined: Mined) -> np.ndarray:
        """Which rows are true, bool of shape (N,): by the scene's captions or by the qrels."""
        table, dataset = mined.negatives, self.grouped
        stated_N = dataset.is_positive(table.image_N, dataset.caption_hash_C[table.captions_N])
        true_N: np.ndarray = stated_N | is_true(CaptionPool(dataset), table.image_N, table.captions_N, self.truth)
        return true_N

    def relabelled(self, dataset: RetrievalSet) -> tuple[int, int]:
        """(relabelled rows, those of them that are true) with mode relabel."""
        mined, _ = self.mine(dataset, {"denoise": {"mode": "relabel"}})
        rows_N = ~mined.negatives.is_negative_N
        return int(rows_N.sum()), int(self.is_true(mined)[rows_N].sum())

    def thresholds(self, dataset: RetrievalSet) -> dict[float, tuple[float, float, float]]:
        """By threshold: shares of false negatives left, of true negatives kept, of true pairs among the matches; without other rules."""
        mined, _ = self.mine(dataset, {})
        table, true_N = mined.negatives, self.is_true(mined)
        chance_N = self.probabilities(table.image_N, table.captions_N)
        return {
            value: (
                float((chance_N < value)[true_N].mean()),
                float((chance_N < value)[~true_N].mean()),
                float(true_N[chance_N >= value].mean()),
            )
            for value in THRESHOLDS
        }


def systems_of(study: Study) -> dict[str, tuple[RetrievalSet, dict[str, Any]]]:
    """Every system: the data it is given, and its rules."""
    systems: dict[str, tuple[RetrievalSet, dict[str, Any]]] = {
        "no rules, no groups": (study.plain, {}),
        "no groups, BLIP denoising": (study.plain, RULES["BLIP denoising"]),
        "group information": (study.grouped, {}),
    }
    return systems | {f"groups, {name}": (study.grouped, keys) for name, keys in RULES.items()}


def system_lines(study: Study) -> list[str]:
    """The tables of what each system mined, and of denoising against the same rules without it."""
    lines = [
        "| rules | mined | missing | false negatives | share, % | share estimated, % | pairs BLIP scored | known positives |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = {}
    for name, (dataset, keys) in systems_of(study).items():
        began = time.perf_counter()
        _, found[name] = study.mine(dataset, keys)
        lines.append(found[name].row(name))
        print(lines[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    lines += [
        "",
        "Denoising against the same rules without it, in percent:",
        "",
        "| other rules | false negatives left | true negatives mined |",
        "|---|---|---|",
    ]
    for without, with_ in (
        ("no rules, no groups", "no groups, BLIP denoising"),
        ("group information", "groups, BLIP denoising"),
        ("groups, all but denoising", "groups, all"),
    ):
        left = 100 * found[with_].false / max(1, found[without].false)
        lines.append(f"| {without} | {left:.1f} | {100 * found[with_].true_negatives / found[without].true_negatives:.1f} |")
    return [*lines, ""]


def threshold_lines(study: Study) -> list[str]:
    """What BLIP says of the pairs that are mined without denoising, by threshold; and what relabelling would take."""
    lines = [
        "By the threshold on BLIP's match probability, of the pairs mined without denoising: the false negatives it leaves, the true",
        "negatives it keeps, and how many of those it calls a match are true, in percent.",
        "",
        "| threshold | no groups: left | kept | true | groups: left | kept | true |",
        "|---|---|---|---|---|---|---|",
    ]
    sides = [study.thresholds(dataset) for dataset in (study.plain, study.grouped)]
    for value in THRESHOLDS:
        lines.append(f"| {value} | " + " | ".join(f"{100 * share:.1f}" for side in sides for share in side[value]) + " |")
    lines.append("")
    for name, dataset in (("no groups", study.plain), ("groups", study.grouped)):
        number, right = study.relabelled(dataset)
        lines += [f"`mode: relabel`, {name}: {number:,} pairs become positives, of which {100 * right / max(1, number):.1f}% are true.", ""]
    return lines


def main() -> None:
    """Run the study; print the tables, and write them when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo/models/siglip-base"], help="SigLIP folders that mine")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    command = f"python -m benchmarks.false_negatives --models {' '.join(asked.models)} --write"
    lines = [
        *title_lines("false-negatives", "How many of the mined negatives are true?"),
        f"`{command}`",
        "",
        "The demo's train split: 4 negatives per image among the image's best 64; a pair is a false negative if the drawing does not",
        "contradict the caption (demo/truth.py). Known positives: mined pairs that the data states as true. The mining report's",
        "estimate is BLIP's mean match probability of what is mined, where it is asked.",
        f"runs/short/export is the base after `python -m train configs/demo.yaml {SHORT}`.",
        "",
    ]
    for model in asked.models:
        study = Study(model)
        lines += [f"## {model}", "", *system_lines(study), *threshold_lines(study)]
    print("\n".join(lines))
    if asked.write:
        TABLE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
