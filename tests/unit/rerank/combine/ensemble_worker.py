"""One process of a job of one or two: ranks every ensemble and writes a digest of each. Run by test_combine.py."""

import hashlib
import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from eval.processes import Processes
from eval.search import exact as search
from eval.search.ranking import DIRECTIONS
from rerank.combine import combined_tiles
from rerank.combine.combine import rank_ensemble
from tests.unit.rerank.combine.ensemble_oracle import as_set, made_up, mixtures, pool


def main(folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    search.QUERY_BLOCK, search.GALLERY_BLOCK, combined_tiles.ROW_BYTES = 7, 16, 4 * 37 * 7
    members = [made_up(1, 19, 37, width=48), made_up(2, 19, 37, width=24)]
    found = {}
    for combination, asks, ranked in mixtures(2):
        pools = dict.fromkeys(DIRECTIONS, (pool(asks, 3, 0.75), pool(ranked, 2, 0.5)))
        rankings = rank_ensemble(
            members, as_set(19, 37), weights=[1, 2], combination=combination, pools=pools, depth=9, processes=Processes(rank, world_size)
        )
        digest = hashlib.sha256()
        for direction in DIRECTIONS:
            one = rankings[direction]
            for array in (one.top_indices_QK, one.top_scores_QK, one.positive_ranks_P):
                digest.update(array.tobytes())
        found[f"{combination} {asks} {ranked}"] = digest.hexdigest()
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    if dist.is_initialized():
        dist.destroy_process_group()
