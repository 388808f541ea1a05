"""One process of a mining of candidates, for test_candidates.py: python -m ... MANIFEST BASE OUTPUT [memory].

On a small grid, so that a few dozen rows are several blocks, tiles and bands for each of up to three processes.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from eval.dataset.retrieval_set import PositivePairs
from eval.encoder import encoder
from eval.encoder.checkpoint import load_siglip
from eval.encoder.embedding_files import InMemoryRows, Shards
from eval.execution import Execution
from eval.processes import Processes
from eval.search import streamed as streamed_search
from tests.small_job import load
from train.config.mining import MiningConfig
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.mining import candidates
from train.mining import faiss_index as approximate
from train.mining.candidates import Retriever
from train.mining.mine import Selector
from train.mining.refresh import Refresh

FURTHER = [f"a {colour} {thing} number {number}" for number in range(4) for colour in ("red", "grey") for thing in ("dog", "circle", "cat")]
SOME_IMAGES = np.array([0, 3, 4, 11, 17, 18, 19, 33, 38])
RULES = MiningConfig.model_validate(
    {"mine_every_steps": 1, "negatives_per_image": 3, "max_uses": 2, "selection": "softmax", "margin": None}
    | {"denoise": {"mode": "relabel", "threshold": 0.6, "relabel_threshold": 0.9}}
)
"""With what one query leaves to another, and what is drawn."""
SOME_CAPTIONS = np.array([70, 3, 4, 5, 30, 31, 1, 44])


def find_all(manifest: str, base: str, folder: Path, processes: Processes) -> dict[str, np.ndarray]:
    """Candidates of every kind, by name."""
    model, inputs = load_siglip(base)
    dataset = load(Path(manifest))
    common: Any = {"folder": folder, "execution": Execution(processes=processes)}
    retriever, pool = Retriever(model, inputs), CaptionPool(dataset, AdditionalCaptions(FURTHER, np.arange(len(FURTHER))))
    whole = candidates.find_candidates(retriever, pool, 30, **common)
    some = candidates.find_candidates(retriever, pool, 30, queries_Q=SOME_IMAGES, **common)
    images = candidates.find_candidates(retriever, pool, 25, mined_for="captions", **common)
    few = candidates.find_candidates(retriever, pool, 25, SOME_CAPTIONS, mined_for="captions", **common)
    records = {"whole": whole, "some": some, "images": images, "few": few}
    if approximate_is_here():
        records["approximate"] = candidates.find_candidates(retriever, pool, 30, num_probes=3, **common)
    assert list(folder.iterdir()) == []
    found: dict[str, Any] = {f"{name}.{key}": value for name, record in records.items() for key, value in vars(record).items()}
    for name, candidates_of in (("whole", whole), ("images", images)):
        mined = Selector(pool, np.float32(10), np.float32(-1), RULES, Refresh(3, 4), chance, processes).select("made", candidates_of)
        found |= {f"{name}.mined.{key}": value for key, value in vars(mined.negatives).items()}
        found |= {f"{name}.mined.outcomes": mined.outcome_QK, f"{name}.mined.judged": mined.num_judged}
    return {key: np.array(value) for key, value in found.items() if value is not None}


def chance(images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
    """Match probabilities of pairs, which are told apart by their hash."""
    return ((images_N * 7919 + captions_N * 104729) % 1000 / 999).astype(np.float32)


def approximate_is_here() -> bool:
    """Whether faiss is installed."""
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def growth_of_memory() -> dict[str, int]:
    """By how many bytes the most memory ever held rises with a pool of 50 MB and with a thousand queries; the small search comes first."""
    draws = np.random.default_rng(0)
    queries = InMemoryRows(draws.standard_normal((100, 64), dtype=np.float32))
    nothing = PositivePairs(np.zeros(101, dtype=np.int64), np.zeros(0, dtype=np.int64))
    peaks = []
    for num_rows in (4096, 200_000):
        with Shards(None, num_rows, 128, Processes()) as pool:
            for start in range(0, num_rows, 128):
                pool.append(draws.standard_normal((min(128, num_rows - start), 64), dtype=np.float32))
            pool.seal()
            streamed_search.stream_search(queries, pool, nothing, 10)
        peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return {"bytes": 200_000 * 64 * 4, "growth": peaks[1] - peaks[0]}


def main() -> None:
    """Each process writes OUTPUT/RANK.npz; embeddings lie in OUTPUT/negatives meanwhile."""
    manifest, base, output, *memory = sys.argv[1:]
    torch.set_num_threads(1)
    if memory:
        (Path(output) / "memory.json").write_text(json.dumps(growth_of_memory()), encoding="utf-8")
        return
    dist.init_process_group("gloo")
    streamed_search.QUERY_BLOCK, streamed_search.GALLERY_BLOCK, streamed_search.ROW_BLOCKS_AT_ONCE = 8, 20, 1
    encoder.IMAGE_BLOCK, encoder.TEXT_BLOCK = 6, 14
    approximate.QUERY_BLOCK, approximate.TEXT_BLOCK, approximate.SAMPLE = 8, 14, 20
    found = find_all(manifest, base, Path(output) / "negatives", Processes.current())
    np.savez(Path(output) / f"{dist.get_rank()}.npz", **found)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
