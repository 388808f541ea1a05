"""One step of a matcher on several processes, for test_step.py: python -m ... MANIFEST BLIP OUTPUT writes OUTPUT.npz."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist

from eval.processes import Processes
from tests.unit.train.reranker.match_bench import Bench


def main() -> None:
    """Loss and gradients, whole on every process."""
    manifest, blip, output = sys.argv[1:4]
    dist.init_process_group("gloo")
    processes = Processes.current()
    bench = Bench.make(Path(manifest), blip, processes=processes)
    result = bench.step(contextlib.nullcontext)
    if processes.is_main:
        np.savez(f"{output}.npz", loss=result.loss, gap=result.gap, num=result.num_false, **bench.gradients())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
