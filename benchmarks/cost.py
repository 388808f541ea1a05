"""What a piece of work costs in this process: seconds, processor's seconds, and how far memory rose above what was held before."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psutil
import torch

Result = TypeVar("Result")


def measured(work: Callable[[], Result], device: str = "cpu") -> tuple[Result, dict[str, float]]:
    """(result, {"seconds", "processor", "megabytes"}) of one piece of work.

    Args:
        device: "cpu": memory is the process's, looked at every 5 ms; "cuda": what torch held of the GPU, and the work is waited for.
    """
    process, stop = psutil.Process(), threading.Event()
    before, peak = process.memory_info().rss, 0

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began, worked = time.perf_counter(), time.process_time()
    try:
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
    finally:
        stop.set()  # an error ends the process, which would wait for the watcher
        watcher.join()
    rise = torch.cuda.max_memory_allocated() - held if device == "cuda" else peak - before
    return result, {"seconds": seconds, "processor": processor, "megabytes": rise / 1e6}
