"""Can a text-text reranker rerank image-text retrieval? The demo's top 16, re-ordered by one, in both directions.

    python -m benchmarks.text_text_demo runs/demo --model runs/text-cross-encoder --output results/text-text

A picture has no words of its own, so a text-text reranker needs a stand-in for it: here the first caption that the first stage retrieves
for the picture. The score of (picture, caption) is the text model's of (stand-in, caption). Text models: `tower`, the first stage's
own text tower, by the cosine of both vectors; and each --model, a folder or a hub id (benchmarks/text_models.py). What each is worth at its
own task, telling captions of one scene from others, is measured on val. And `truth`, no model: it knows which captions are of one scene, so
what it reaches is what stand-ins are worth at most.
The product itself refuses such a reranker (rerank/scorers/supported.py); so this study has its own scoring.
Writes OUTPUT.md, and OUTPUT/report.json and queries.parquet behind its tables.
Shape letters: N pairs, I images.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.conclusion import title_lines
from benchmarks.kept_report import comparison_lines, keep_report, read_kept, recall_lines
from benchmarks.text_cross_encoder import CaptionPairs, share_told_apart
from benchmarks.text_models import PairsToScores, cosines_of, load_text_model
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from eval.metrics.evaluate import evaluate
from eval.process_group import use_exact_float32
from eval.report.report import report_record
from eval.search.retrieve import retrieve
from eval.search.stage import Stage
from rerank.reorder.stages import reranked
from rerank.scorers.supported import check_cross_encoder
from rerank.scoring.candidates import candidate_lists
from rerank.scoring.pair_scores import PairScores, ScoringCost

DATA, COLUMNS, TOP_K = "demo/data/scenes.parquet", {"group": "scene"}, 16
BASE = "demo/models/siglip-base"


def text_scores(stage: Stage, dataset: RetrievalSet, score: PairsToScores) -> PairScores:
    """What a text-text model says of every pair that reranking the stage's first TOP_K needs.

    Each picture stands as the first caption that the stage retrieved for it.
    """
    lists = candidate_lists(stage.rankings.values(), TOP_K)
    first_I = stage.rankings["image_to_text"].top_indices_QK[:, 0]
    began = time.perf_counter()
    stand_ins = [dataset.captions[caption] for caption in first_I[lists.image_of_pair_N]]
    scores_N = score(stand_ins, [dataset.captions[caption] for caption in lists.caption_indices_N])
    return PairScores(lists, scores_N, ScoringCost(lists.num_pairs, 0, time.perf_counter() - began))


def truth_of(dataset: RetrievalSet) -> PairsToScores:
    """A text model that never errs: 1 where both captions are said of one group of the data, else 0."""
    groups: dict[str, set[int]] = {}
    for text, group in zip(dataset.captions, dataset.group_I[dataset.caption_image_C].tolist(), strict=True):
        groups.setdefault(text, set()).add(group)
    return lambda first, second: np.array(
        [bool(groups[one] & groups[two]) for one, two in zip(first, second, strict=True)], dtype=np.float32
    )


def share_right(stage: Stage) -> float:
    """How many pictures have a stand-in that is true of them: R@1 of image to text."""
    return float(np.mean(stage.rankings["image_to_text"].best_ranks() == 1))


def why_refused(models: Sequence[str]) -> list[str]:
    """What `--rerank` answers to each model.

    Raises:
        ValueError: it takes one.
    """
    found = []
    for model in models:
        try:
            check_cross_encoder(model)
        except UserError as error:
            found.append(str(error))
        else:
            raise ValueError(f"{model}: rerank/scorers/supported.py takes it for an image-text matcher")
    return found


def told_lines(told: Mapping[str, dict[str, float]]) -> list[str]:
    """What each text model is worth at its own task."""
    return [
        "| text model | scores another caption of the scene above the nearest in words of another scene | above a random one |",
        "|---|---|---|",
        *(f"| {name} | {100 * shares['near']:.1f} | {100 * shares['random']:.1f} |" for name, shares in told.items()),
    ]


def page(record: Mapping[str, Any], queries: pa.Table) -> str:
    """The page of the study, from what is kept of it: report.json with the section `text_text`, and its rows."""
    study = record["text_text"]
    reranked_stages = [(f"{first}+{text}", first) for first in study["right"] for text in study["models"]]
    stages = [stage for first in study["right"] for stage in (first, *(name for name, of in reranked_stages if of == first))]
    shares = ", ".join(f"{100 * share:.1f}% ({first})" for first, share in study["right"].items())
    lines = [
        *title_lines("text-text", "A text-text reranker on pictures"),
        f"`{study['command']}`. The demo's test split: {record['data']['num_images']} images, {record['data']['num_captions']} captions;",
        f"the first {study['top_k']} of every query re-ordered, in both directions. A picture is represented by the first "
        "caption that the first",
        f"stage retrieved for it, which is true of the picture in {shares}. Recalls in percent.",
        "",
        *study["notes"],
        "",
        *recall_lines(queries, stages),
        "",
        *comparison_lines(record["comparisons"], reranked_stages, ("image_to_text", "text_to_image", "both"), ("R@1", "R@5")),
        "",
        "Intervals: bootstrap over images. Verdicts are corrected for all metrics and directions of a pair of stages.",
        "In image to text the stand-in is itself a candidate, and nothing matches it better than itself: where a text model sees",
        "that, its first place stays and R@1 cannot rise.",
        "",
        "## At their own task",
        "",
        "On val, in percent of the captions (50: a coin):",
        "",
        *told_lines(study["told_apart"]),
        "",
        "## In the product",
        "",
        "`--rerank` and `rerank.model` refuse such a checkpoint before anything is scored "
        "(rerank/scorers/supported.py). What it says to the first:",
        "",
        *(f"> {reason}" for reason in study["refusals"][:1]),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path, help="the demo's run, for its export")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR_OR_HUB_ID", help="a text-text model, as stage FIRST+NAME")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the page, on a model")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    use_exact_float32()
    named = dict(text.split("=", 1) for text in asked.model)
    refusals = why_refused(list(named.values()))
    others = {name: load_text_model(path) for name, path in named.items()}
    manifest = read_manifest(DATA, columns=COLUMNS)
    dataset, val = load_split(manifest, "test"), CaptionPairs.of(load_split(manifest, "val"))
    told = {name: share_told_apart(score, val) for name, score in others.items()}
    stages, right = [], {}
    for name, path in (("base", BASE), ("tuned", str(asked.run_folder / "export"))):
        siglip, inputs = load_siglip(path)
        first = retrieve(name, siglip, inputs, dataset, depth=TOP_K)
        tower = cosines_of(partial(embed_captions, siglip, inputs))
        stages.append(first)
        right[name], told[f"{name}'s tower"] = share_right(first), share_told_apart(tower, val)
        for text, score in {"tower": tower, **others, "truth": truth_of(dataset)}.items():
            stages += reranked([first], text_scores(first, dataset, score), text, TOP_K)
    models = ["tower", *others, "truth"]
    figures = evaluate(dataset, stages, [(f"{first}+{text}", first) for first in right for text in models])
    words = " ".join(f"'{word}'" if " " in word else word for word in sys.argv[1:] if word not in asked.note and word != "--note")
    study = {
        "command": f"python -m benchmarks.text_text_demo {words}", "top_k": TOP_K, "models": models, "right": right, "told_apart": told,
        "refusals": refusals, "notes": asked.note,
    }  # fmt: skip
    keep_report(report_record(figures) | {"text_text": study}, figures.queries, asked.output)
    text = page(*read_kept(asked.output))
    asked.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
