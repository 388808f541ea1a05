"""Metrics at the size of COCO's test set, ours next to CLIP_benchmark's own metric code, and memory at twenty times that size.

    git clone https://github.com/LAION-AI/CLIP_benchmark /tmp/CLIP_benchmark
    python -m benchmarks.at_size --clip-benchmark /tmp/CLIP_benchmark --repeats 3 --output results/at-size.md
    python -m benchmarks.at_size --large --output results/at-size-large.md

Random unit vectors, D = 768, five captions an image (10 images have six), one noise level that gives medium recalls. Each system runs in a
process of its own, in turn, and reports its seconds and how far its memory rose above the embeddings. CLIP_benchmark computes R@1, 5 and
10 of both directions (its functions recall_at_k and batchify, as its own evaluate calls them, batch 64); ours computes them, the exact rank
of every relevant item, and the ten best of every query.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.cost import measured
from eval.dataset.retrieval_set import PositivePairs
from eval.metrics.metrics import RECALL_AT, recall_at_k
from eval.search.exact import search_both

WIDTH, NOISE, DEPTH = 768, 8.0, 10


def embeddings(num_images: int, num_captions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images_ID, captions_CD, caption_image_C): float32 unit vectors; a caption is its image plus noise."""
    generator = np.random.default_rng(0)
    image_C = np.sort(np.arange(num_captions) % num_images)
    images_ID = _unit(generator.standard_normal((num_images, WIDTH), dtype=np.float32))
    captions_CD = np.empty((num_captions, WIDTH), dtype=np.float32)
    for start in range(0, num_captions, 10_000):
        chosen = images_ID[image_C[start : start + 10_000]]
        captions_CD[start : start + 10_000] = chosen + NOISE / WIDTH**0.5 * generator.standard_normal(chosen.shape, dtype=np.float32)
        _unit(captions_CD[start : start + 10_000])
    return images_ID, captions_CD, image_C


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND


def ours(images_ID: np.ndarray, captions_CD: np.ndarray, image_C: np.ndarray) -> dict[str, float]:
    """Recalls of both directions by eval/search/exact.py."""
    to_text = PositivePairs(np.searchsorted(image_C, np.arange(len(images_ID) + 1)), np.arange(len(captions_CD)))
    to_image = PositivePairs(np.arange(len(captions_CD) + 1), image_C)
    rankings = search_both(images_ID, captions_CD, to_text, to_image, DEPTH)
    ranks = {"text_retrieval": rankings["image_to_text"].best_ranks(), "image_retrieval": rankings["text_to_image"].best_ranks()}
    return {f"{name}_recall@{k}": float(recall_at_k(ranks_Q, k).mean()) for k in RECALL_AT for name, ranks_Q in ranks.items()}


def theirs(images_ID: np.ndarray, captions_CD: np.ndarray, image_C: np.ndarray, checkout: Path) -> dict[str, float]:
    """The same recalls as CLIP_benchmark's evaluate computes them from embeddings."""
    sys.path.insert(0, str(checkout))
    from clip_benchmark.metrics.zeroshot_retrieval import batchify
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as their_recall

    scores = torch.from_numpy(captions_CD) @ torch.from_numpy(images_ID).t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), torch.from_numpy(image_C)] = True
    found = {}
    for k in RECALL_AT:
        for name, one, other in (("image_retrieval", scores, positive), ("text_retrieval", scores.T, positive.T)):
            hits = batchify(their_recall, one, other, 64, "cpu", k=k) > 0
            found[f"{name}_recall@{k}"] = float(hits.double().mean())
    return found


def costed(work: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """The recalls with what they cost."""
    recalls, cost = measured(work)
    return cost | {"recalls": recalls}


def run_system(system: str, num_images: int, num_captions: int, checkout: Path | None) -> dict[str, Any]:
    """One system in this process."""
    vectors = embeddings(num_images, num_captions)
    warm = torch.ones(512, 512)
    torch.topk(warm @ warm, 3)  # what torch loads on its first call is nobody's memory
    if system == "ours":
        return costed(lambda: ours(*vectors))
    assert checkout is not None
    return costed(lambda: theirs(*vectors, checkout))


def child(system: str, asked: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """One system in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.at_size", "--system", system, "--size", *map(str, size)]
    command += ["--clip-benchmark", str(asked.clip_benchmark)] if asked.clip_benchmark else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(system, size, f"{result['seconds']:.1f} s, {result['megabytes']:.0f} MB", flush=True)
    return result


def heading(page: str) -> list[str]:
    """Title, conclusion, command and machine of a page."""
    return [
        *title_lines(page, "Metrics at size"),
        f"`python -m benchmarks.at_size {' '.join(sys.argv[1:])}`; random unit vectors, D = {WIDTH}, torch {torch.__version__},",
        f"{torch.get_num_threads()} thread(s) of a shared machine: read the ratios. Memory is what was held beyond the embeddings.",
        "",
    ]


def side_by_side(rounds: list[dict[str, dict[str, Any]]]) -> list[str]:
    """The table of both systems."""
    lines = [
        "5,000 images x 25,010 captions, R@1, R@5, R@10 of both directions:",
        "",
        "| round | CLIP_benchmark, s | ours, s | times as fast | CLIP_benchmark, MB | ours, MB | share of its memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for number, both in enumerate(rounds, 1):
        them, us = both["theirs"], both["ours"]
        lines.append(
            f"| {number} | {them['seconds']:.1f} | {us['seconds']:.1f} | {them['seconds'] / us['seconds']:.1f} "
            f"| {them['megabytes']:.0f} | {us['megabytes']:.0f} | 1/{them['megabytes'] / us['megabytes']:.0f} |"
        )
    gaps = [abs(both["ours"]["recalls"][name] - both["theirs"]["recalls"][name]) for both in rounds for name in both["ours"]["recalls"]]
    return [*lines, "", f"Largest difference of a recall: {max(gaps):.1e}. Ours: {shown(rounds[0]['ours']['recalls'])}."]


def shown(recalls: dict[str, float]) -> str:
    """Recalls in words."""
    return ", ".join(f"{name} {100 * value:.2f}" for name, value in recalls.items())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip-benchmark", type=Path, help="a checkout of CLIP_benchmark")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="100,000 images x 500,000 captions, ours alone")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--system", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, default=(5000, 25_010), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.system:
        print(json.dumps(run_system(asked.system, *asked.size, asked.clip_benchmark)))
        return
    if asked.large:
        large = child("ours", asked, (100_000, 500_000))
        lines = [
            f"100,000 images x 500,000 captions, both directions, whole: {large['megabytes']:.0f} MB beyond the embeddings (1,843 MB),",
            f"{large['seconds'] / 60:.1f} minutes here. {shown(large['recalls'])}.",
        ]
    else:
        lines = side_by_side(
            [{system: child(system, asked, (5000, 25_010)) for system in ("theirs", "ours")} for _ in range(asked.repeats)]
        )
    text = "\n".join([*heading("at-size-large" if asked.large else "at-size"), *lines]) + "\n"
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
