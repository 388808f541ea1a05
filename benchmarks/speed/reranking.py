"""Row `reranking`: BLIP base on one picture with its candidates of both directions, beside plain transformers calls."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.pictures import photographs

TOP_K, NUM_CAPTIONS = 32, 60


def prepare(row: str, place: Path) -> None:
    """Photographs with five captions each."""
    photographs(place / "reranking", 40)


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """Seconds for a picture's pairs. Ours scores one list of 60 different captions, what K = 32 asks of a picture with five captions in
    both directions; plain calls are one of 32 captions and 32 x 5 of a pair, of which three are timed."""
    from benchmarks.reranking_at_size import TopK, Ways, base_size_cross_encoder, operations
    from eval.dataset.retrieval_set import load_split
    from eval.manifest.manifest import read_manifest
    from rerank.scorers.blip.scorer import BlipScorer

    dataset = load_split(read_manifest(place / "reranking" / "captions.jsonl"), None)
    folder = place / f"reranking-{system}"
    folder.mkdir(exist_ok=True)
    with torch.inference_mode():
        checkpoint = base_size_cross_encoder(list(dataset.captions), folder)
        scorer = BlipScorer(checkpoint, device="cpu")
        ways = Ways(dataset, checkpoint, scorer, TopK.made_up(dataset, TOP_K), torch.device("cpu"), "float32")
        captions = np.arange(NUM_CAPTIONS)
        if system == "ours":
            ways.ours(0, captions[:8])
            seconds = _seconds(lambda: ways.ours(1, captions))
            flops = 1e9 * operations(lambda: ways.ours(1, captions))
        else:
            ways.broadcast(0, captions[:8])
            of_pairs = [_seconds(lambda pair=pair: ways.broadcast(1, captions[pair : pair + 1])) for pair in range(3)]  # type: ignore[misc]
            seconds = _seconds(lambda: ways.broadcast(1, captions[:TOP_K])) + 5 * TOP_K * float(np.mean(of_pairs))
            flops = 1e9 * operations(lambda: ways.ours(1, captions))
    return {"seconds": seconds, "amount": NUM_CAPTIONS, "work": {"float32": flops}}


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
