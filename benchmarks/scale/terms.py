"""The terms of a run whose cost grows with its data, each as a piece of work of a chosen size: synthetic rows and embeddings, no model.

A term is a function (size, folder) -> work: what it prepares is not measured, the work is. What the work returns is held while memory is
looked at. Shape letters: I images, C captions, D width, K depth.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import torch

from benchmarks.manifest_at_size import write_manifest
from eval.dataset.leakage import find_leakage
from eval.dataset.retrieval_set import GroupHashes, PositivePairs, RetrievalSet, load_split
from eval.encoder.embedding_files import Shards
from eval.encoder.encoder import TEXT_BLOCK
from eval.manifest import memory
from eval.manifest.made_split import SplitByHash
from eval.manifest.manifest import Manifest, read_manifest
from eval.metrics.evaluate import evaluate
from eval.processes import Processes
from eval.report.report import write_report
from eval.search.ranking import Direction, Ranking
from eval.search.stage import Stage
from eval.search.streamed import stream_search
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.hard_image_order import HardImages
from train.data.negatives import Negatives, write_negatives
from train.data.neighbour_order import Neighbours, gather_neighbours
from train.data.order import ORDER, BatchOrder, generator
from train.engine.checkpoint import Checkpoints, State
from train.mining.candidates import Candidates
from train.mining.faiss_index import approximate_search
from train.mining.mine import Selector

WIDTH, DEPTH, BATCH = 64, 32, 256
Work = Callable[[], Any]


@dataclass(frozen=True)
class Term:
    """One term.

    Attributes:
        name: as in the tables.
        grows_with: what 1x, 2x, 4x, 8x are of.
        base: their number at 1x.
        expected: the exponent that its algorithm has, up to a logarithm.
        prepare: (size, folder) -> the work.
    """

    name: str
    grows_with: str
    base: int
    expected: int
    prepare: Callable[[int, Path], Work]


def pictures(folder: Path, num_images: int) -> list[str]:
    """Paths below a folder, made once: files of one byte, a thousand a folder."""
    paths = [f"images/{image // 1000:04d}/{image:08d}.jpg" for image in range(num_images)]
    for path in paths:
        if not os.path.exists(folder / path):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(b"x")
    return paths


def _manifest(suffix: str, num_images: int, folder: Path) -> Path:
    path = folder / f"rows-{num_images}.{suffix}"
    if not path.exists():
        lines = write_manifest(folder / f"rows-{num_images}.jsonl", pictures(folder, num_images), 1)
        if suffix != "jsonl":
            table = pyarrow.json.read_json(lines)
            if suffix == "parquet":
                pq.write_table(table, path)
            else:
                pyarrow.csv.write_csv(table, path)
    return path


@cache
def _dataset(num_images: int, folder: Path) -> RetrievalSet:
    """A split of one caption an image."""
    manifest = read_manifest(_manifest("jsonl", num_images, folder))
    manifest.images = manifest.images.with_splits("train" for _ in range(num_images))
    return load_split(manifest, "train")


def reading(suffix: str, size: int, folder: Path) -> Work:
    """Read, check and split a manifest; columns are mapped from 16 kB on, as from half a million rows on by default."""
    path = _manifest(suffix, size, folder)

    def work() -> list[RetrievalSet]:
        memory.LEAST_MAPPED = 2**14
        manifest = read_manifest(path)
        sets = [load_split(manifest, split) for split in ("train", "val")]
        del manifest
        return sets

    return work


def splitting(size: int, folder: Path) -> Work:
    """Make splits by hash."""
    manifest = read_manifest(_manifest("jsonl", size, folder))
    undivided = manifest.images.with_splits(None for _ in range(size))
    rule = SplitByHash.of_names({"train": "train", "val": "val", "test": "test"}, {"val": 0.1, "test": 0.1}, 0)

    def work() -> Manifest:
        made = replace(manifest, images=undivided)
        assert not rule.divide(made)
        return made

    return work


def leakage(size: int, folder: Path) -> Work:
    """What two splits share; the other split grows too."""
    one, other = _dataset(size, folder), _dataset(size, folder)
    return lambda: find_leakage(one, other)


def positives(size: int, folder: Path) -> Work:
    """The sorted (group, caption hash) pairs, and the positives of every query."""
    dataset = _dataset(size, folder)
    groups_C, hashes_C = dataset.group_I[dataset.caption_image_C], dataset.caption_hash_C
    return lambda: (GroupHashes(groups_C, hashes_C), dataset.positives("image_to_text"))


def order(size: int, folder: Path) -> Work:
    """The permutation of an epoch."""
    epochs = count()  # one that was computed before is remembered
    return lambda: BatchOrder(size, BATCH, seed=0).permutation(next(epochs))


def _table(size: int) -> Negatives:
    """Two random captions mined for each image."""
    captions_N = np.random.default_rng(0).integers(0, size, 2 * size)
    numbers_N = np.zeros(2 * size, dtype=np.float32)
    return Negatives("0", np.arange(0, 2 * size + 1, 2), captions_N, np.tile([1, 2], size), numbers_N, numbers_N)


def hard_images(size: int, folder: Path) -> Work:
    """The hardest images of every caption, by caption."""
    table = _table(size)
    return lambda: HardImages.of_table(table, size)


def neighbours(size: int, folder: Path) -> Work:
    """The neighbours of every image, and an epoch's batches of them."""
    table, dataset = _table(size), _dataset(size, folder)
    due_N = generator(0, ORDER, 0).permutation(size)[: size // BATCH * BATCH]

    def work() -> tuple[Neighbours, np.ndarray]:
        found = Neighbours.of_table(table, dataset)
        return found, gather_neighbours(due_N, found, BATCH)

    return work


def _shards(seed: int, num_rows: int, folder: Path) -> Shards:
    draws, shards = np.random.default_rng(seed), Shards(folder, num_rows, TEXT_BLOCK, Processes())
    for start in range(0, num_rows, TEXT_BLOCK):
        vectors = draws.standard_normal((min(TEXT_BLOCK, num_rows - start), WIDTH), dtype=np.float32)
        shards.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    shards.seal()
    return shards


def embedding_file(size: int, folder: Path) -> Work:
    """Embeddings written, and read once."""

    def work() -> Shards:
        shards = _shards(0, size, folder)
        for start in range(0, size, 8192):
            shards.rows(start, min(start + 8192, size)).sum()
        return shards

    return work


def _nothing(num_queries: int) -> PositivePairs:
    return PositivePairs(np.zeros(num_queries + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))


def exact_search(queries: int | None, gallery: int | None, size: int, folder: Path) -> Work:
    """The exact search of a mining; a side whose number is given stays as it is."""
    num_queries, num_items = queries or size, gallery or size
    images, captions = _shards(0, num_queries, folder), _shards(1, num_items, folder)
    return lambda: stream_search(images, captions, _nothing(num_queries), DEPTH)


def faiss_search(size: int, folder: Path) -> Work:
    """The approximate search of a mining: both sides grow, with the square root of the captions as lists."""
    images, captions = _shards(0, size, folder), _shards(1, size, folder)
    return lambda: approximate_search(images, captions, _nothing(size), DEPTH, 8)


def rules(size: int, folder: Path) -> Work:
    """The rules of mining on DEPTH candidates of every image, the table, and its file."""
    dataset, draws = _dataset(size, folder), np.random.default_rng(0)
    pool = CaptionPool(dataset)
    pool.compare_tokens(np.arange(size))
    cosines_QK = -np.sort(-draws.random((size, DEPTH), dtype=np.float32), axis=1)
    whole, best = np.ones(size, dtype=bool), np.ones(size, dtype=np.float32)
    found = Candidates(np.arange(size), draws.integers(0, size, (size, DEPTH)), cosines_QK, best, whole)
    config = MiningConfig(negatives_per_image=2, margin=0.0, pool_top_k=DEPTH, mine_every_steps=1)

    def work() -> Any:
        mined = Selector(pool, np.float32(10), np.float32(-10), config).select("0", found)
        write_negatives(folder / "table.parquet", mined.negatives, pool)
        return mined

    return work


def _stages(dataset: RetrievalSet) -> list[Stage]:
    """Two stages of random ranks, ten stored items a query."""
    found, size, draws = [], dataset.num_images, np.random.default_rng(0)
    offsets, own = np.arange(size + 1), np.arange(size)
    for name in ("base", "tuned"):
        rankings: dict[Direction, Ranking] = {}
        for direction in ("image_to_text", "text_to_image"):
            ranks_P = draws.integers(11, size, size)
            top_QK = (own[:, None] + 1 + np.arange(10)) % size  # never the own item, which is further down
            rankings[direction] = Ranking(direction, top_QK, np.tile(np.linspace(1, 0, 10), (size, 1)), offsets, own, ranks_P)
        found.append(Stage(name, rankings, {"seconds": 1.0, "pairs_scored": 0}))
    return found


def evaluation(size: int, folder: Path) -> Work:
    """Figures of two stages with their intervals and comparisons (2,000 resamples of the images)."""
    dataset = _dataset(size, folder)
    return lambda: evaluate(dataset, _stages(dataset))


def report(size: int, folder: Path) -> Work:
    """report.json, queries.parquet and the page."""
    dataset = _dataset(size, folder)
    figures = evaluate(dataset, _stages(dataset))
    return lambda: write_report(folder / f"report-{size}", figures)


class _Weights:
    """What a checkpoint needs of a model: named weights."""

    def __init__(self, size: int) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(size))

    def trainable(self) -> Any:
        """Names and parameters."""
        return iter([("weight", self.parameter)])


def checkpoint(size: int, folder: Path) -> Work:
    """Weights and Adam's state, written and hashed."""
    weights: Any = _Weights(size)
    optimizer = torch.optim.AdamW([weights.parameter], lr=1e-4)
    weights.parameter.grad = torch.ones(size)
    optimizer.step()
    checkpoints, state = Checkpoints(folder / "checkpoints"), State(step=size, base_sha256="0", data_sha256="0")
    return lambda: checkpoints.save(state, weights, optimizer, None)


TERMS = [
    *(Term(f"manifest, .{suffix}", "rows", 6_250, 1, partial(reading, suffix)) for suffix in ("jsonl", "csv", "parquet")),
    Term("splits made", "images", 6_250, 1, splitting),
    Term("leakage", "captions of both", 6_250, 1, leakage),
    Term("positives", "captions", 6_250, 1, positives),
    Term("order of an epoch", "images", 250_000, 1, order),
    Term("hard-image order", "images", 100_000, 1, hard_images),
    Term("neighbour order", "images", 6_250, 1, neighbours),
    Term("embedding files", "rows", 50_000, 1, embedding_file),
    Term("exact search", "both sides", 4_096, 2, partial(exact_search, None, None)),
    Term("exact search, images", "images", 4_096, 1, partial(exact_search, None, 16_384)),
    Term("exact search, captions", "captions", 32_768, 1, partial(exact_search, 1_024, None)),
    Term("FAISS search", "both sides", 4_096, 2, faiss_search),
    Term("rules and table", "images", 6_250, 1, rules),
    Term("evaluation", "images", 1_250, 1, evaluation),
    Term("report", "images", 1_250, 1, report),
    Term("checkpoint", "parameters", 4_000_000, 1, checkpoint),
]
