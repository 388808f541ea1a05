"""Rows of the loss, the search of a mining, a mining, and an evaluation, on made-up unit vectors."""

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH = 768
SEARCH = (4_000, 40_000)
MINING = (4_000, 5)
EVALUATION = (5_000, 25_010)


def prepare(row: str, place: Path) -> None:
    """Of the row `mining`: a manifest whose pictures are a few bytes each."""
    if row == "mining":
        from benchmarks.manifest_at_size import write_manifest, write_pictures

        folder = place / "mining"
        write_manifest(folder / "pairs.jsonl", write_pictures(folder, MINING[0]), MINING[1])


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """One measurement."""
    if row.startswith("loss"):
        return loss(int(row.removeprefix("loss-")), system)
    return {"search": search, "mining": mining, "evaluation": evaluation}[row](system, place)


def loss(batch: int, system: str) -> dict[str, Any]:
    """Forward and backward of the loss: three products of the matrix of pairs."""
    from benchmarks.loss_at_size import run_system

    found = run_system(system, batch, "cpu", None if system == "ours" else _folder_of("open_clip") / "loss.py")
    return {"seconds": found["seconds"], "megabytes": found["megabytes"], "work": {"float32": 3 * 2 * batch**2 * WIDTH}}


def _folder_of(package: str) -> Path:
    """Where an installed package lies; it is not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


def search(system: str, place: Path) -> dict[str, Any]:
    """The best 64 captions of every image."""
    from benchmarks.mining_at_size import run_system

    folder = place / f"search-{system}"
    folder.mkdir(exist_ok=True)
    found = run_system(system, SEARCH, "cpu", folder)
    return {"seconds": found["seconds"], "megabytes": found["megabytes"], "work": {"float32": 2 * SEARCH[0] * SEARCH[1] * WIDTH}}


def evaluation(system: str, place: Path) -> dict[str, Any]:
    """R@1, R@5 and R@10 of both directions."""
    from benchmarks.at_size import run_system

    checkout = None if system == "ours" else _folder_of("clip_benchmark").parent
    found = run_system("ours" if system == "ours" else "theirs", *EVALUATION, checkout)
    work = {"float32": 2 * EVALUATION[0] * EVALUATION[1] * WIDTH}
    return {"seconds": found["seconds"], "megabytes": found["megabytes"], "work": work}


def mining(system: str, place: Path) -> dict[str, Any]:
    """Three negatives of every image from vectors that are there: search, rules and selection. What equals a positive is never taken."""
    from eval.dataset.retrieval_set import load_split
    from eval.manifest.manifest import read_manifest

    dataset = load_split(read_manifest(place / "mining" / "pairs.jsonl"), "train")
    num_images, num_captions = dataset.num_images, dataset.num_captions
    draws = np.random.default_rng(0)
    images_ID, captions_CD = (draws.standard_normal((number, WIDTH), dtype=np.float32) for number in (num_images, num_captions))
    images_ID /= np.linalg.norm(images_ID, axis=1, keepdims=True)
    captions_CD = captions_CD / WIDTH**0.5 + images_ID[dataset.caption_image_C]
    captions_CD /= np.linalg.norm(captions_CD, axis=1, keepdims=True)
    torch.ones(512, 512) @ torch.ones(512, 512)
    work = (_mine if system == "ours" else _mine_hard_negatives)(dataset, images_ID, captions_CD)
    began = time.perf_counter()
    num_found = work()
    seconds = time.perf_counter() - began
    if num_found != 3 * num_images:
        raise RuntimeError(f"expected {3 * num_images} negatives, found {num_found}")
    return {"seconds": seconds, "work": {"float32": 2 * num_images * num_captions * WIDTH}}


def _mine(dataset: Any, images_ID: np.ndarray, captions_CD: np.ndarray) -> Any:
    """train/mining/mine.py, with both towers' vectors cached."""
    from train.config.mining import MiningConfig
    from train.data.cached_embeddings import FrozenEmbeddings, FrozenRows
    from train.data.caption_pool import CaptionPool
    from train.mining import mine as mining_module
    from train.mining.candidates import Retriever, find_candidates

    pool = CaptionPool(dataset)
    pool.compare_tokens(np.arange(len(pool)))
    retriever = Retriever(torch.nn.Linear(1, 1), None, FrozenEmbeddings(FrozenRows(images_ID), FrozenRows(captions_CD)))
    config = MiningConfig(mine_every_epochs=1, negatives_per_image=3, pool_top_k=64)

    def work() -> int:
        found = find_candidates(retriever, pool, config.pool_top_k)
        if (old := getattr(mining_module, "select", None)) is not None:  # an earlier commit's
            return len(old("made-up", pool, found, np.float32(10), np.float32(-10), config).negatives.captions_N)
        mined = mining_module.Selector(pool, np.float32(10), np.float32(-10), config).select("made-up", found)
        return len(mined.negatives.captions_N)

    return work


def _mine_hard_negatives(dataset: Any, images_ID: np.ndarray, captions_CD: np.ndarray) -> Any:
    """sentence-transformers' mine_hard_negatives by its own search, with a model that has the vectors already."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    names = [f"image {image}" for image in range(len(images_ID))]
    rows = dict(zip(names, images_ID, strict=True)) | dict(zip(dataset.captions, captions_CD, strict=True))

    class Vectors:
        device = "cpu"

        def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
            return np.stack([rows[text] for text in texts])

        encode_query = encode_document

        def get_embedding_dimension(self) -> int:
            return WIDTH

        def similarity(self, one: Any, other: Any) -> torch.Tensor:
            return torch.as_tensor(one) @ torch.as_tensor(other).T

        def similarity_pairwise(self, one: Any, other: Any) -> torch.Tensor:
            return (torch.as_tensor(one) * torch.as_tensor(other)).sum(-1)

    anchors = [names[image] for image in dataset.caption_image_C.tolist()]
    pairs = Dataset.from_dict({"anchor": anchors, "positive": list(dataset.captions)})

    def work() -> int:
        options = {"num_negatives": 3, "range_max": 64, "output_format": "n-tuple", "verbose": False}
        found = mine_hard_negatives(pairs, Vectors(), **options)
        return 3 * len(set(found["anchor"]))

    return work
