"""One process of a job of several: embeds and searches what it is told, and writes what it found. Run by test_processes.py."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from eval.dataset.retrieval_set import load_split
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.manifest import read_manifest
from eval.processes import Processes
from eval.search import exact as search
from tests.unit.eval import one_direction


def main(job: dict[str, str], rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    folder = Path(job["folder"])
    if world_size > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=60))
    processes = Processes.current()
    assert (processes.rank, processes.world_size) == (rank, world_size)
    gathered = processes.gather(np.full((rank, 2), rank, dtype=np.int16))  # uneven: the first process brings nothing
    assert [part.shape for part in gathered] == [(each, 2) for each in range(world_size)] and gathered[-1].dtype == np.int16
    blocks = [np.full((number + 1, 3), number, dtype=np.float64) for number in processes.share_of(2)]
    assert [block.tolist() for block in processes.gather_blocks(blocks, 2)] == [[[0.0] * 3], [[1.0] * 3] * 2]
    model, inputs = load_siglip(job["model"])
    dataset = load_split(read_manifest(job["manifest"]), None)
    block, execution = int(job["block"]), Execution(processes=processes)
    try:
        images = embed_images(model, inputs, dataset, execution=execution, block=block)
    except UserError as error:
        (folder / f"{rank}.error").write_text(str(error))
        return
    captions = embed_captions(model, inputs, dataset.captions, execution=execution, block=block)
    search.QUERY_BLOCK, search.GALLERY_BLOCK = 16, 32  # several blocks for each process
    to_text, to_image = dataset.positives("image_to_text"), dataset.positives("text_to_image")
    both = search.search_both(images, captions, to_text, to_image, 7, execution=execution)
    alone = one_direction.search("image_to_text", images, captions, to_text, 7, processes)
    assert np.array_equal(alone.top_indices_QK, both["image_to_text"].top_indices_QK)
    assert np.array_equal(alone.positive_ranks_P, both["image_to_text"].positive_ranks_P)
    found = both["text_to_image"]
    np.savez(
        folder / f"{rank}.npz",
        images=images,
        captions=captions,
        top=found.top_indices_QK,
        scores=found.top_scores_QK,
        ranks=found.positive_ranks_P,
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    if dist.is_initialized():
        dist.destroy_process_group()
