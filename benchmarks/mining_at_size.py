"""The search of a mining at size: ours next to faiss-cpu's IndexFlatIP and a plain blocked product with torch.topk.

    OMP_NUM_THREADS=2 python -m benchmarks.mining_at_size --repeats 3 --output results/mining-at-size.md
    python -m benchmarks.mining_at_size --device cuda --output OUTPUT.md

On a CPU 100,000 captions x 10,000 images; on a GPU 1,000,000 x 100,000, without FAISS, whose GPU build is another package. Random unit
vectors, D = 768, the best 64 of every image. Each system runs in a process of its own, in turn, and reports its seconds, its processor's
seconds and how far its memory rose above the embeddings. Ours reads them from disk (eval/encoder/embedding_files.py), as a mining does, so
it is charged for the reading and for every row it holds; the others have them in memory, or on the GPU, before the clock starts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.cost import measured
from eval.dataset.retrieval_set import PositivePairs
from eval.encoder.embedding_files import Shards
from eval.encoder.encoder import IMAGE_BLOCK, TEXT_BLOCK
from eval.execution import Execution
from eval.processes import Processes
from eval.search.streamed import stream_search

WIDTH, DEPTH = 768, 64
SIZES = {"cpu": (10_000, 100_000), "cuda": (100_000, 1_000_000)}
SYSTEMS = {"cpu": ("faiss", "plain", "ours"), "cuda": ("plain", "ours")}
TopK = tuple[np.ndarray, np.ndarray]


def blocks(seed: int, num_rows: int, block: int) -> Any:
    """Random unit vectors, float32, a block at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, num_rows, block):
        vectors = generator.standard_normal((min(block, num_rows - start), WIDTH), dtype=np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def on_disk(seed: int, num_rows: int, block: int, folder: Path) -> Shards:
    """The same, as a mining leaves them."""
    shards = Shards(folder, num_rows, block, Processes())
    for vectors in blocks(seed, num_rows, block):
        shards.append(vectors)
    shards.seal()
    return shards


def in_memory(seed: int, num_rows: int, block: int) -> np.ndarray:
    """The same, as one array."""
    vectors_ND = np.empty((num_rows, WIDTH), dtype=np.float32)
    for number, vectors in enumerate(blocks(seed, num_rows, block)):
        vectors_ND[number * block : number * block + len(vectors)] = vectors
    return vectors_ND


def plain(images_ID: np.ndarray, captions: torch.Tensor, device: str) -> TopK:
    """Blocks of images against blocks of captions, torch.topk of each, and of what those left."""
    images = torch.from_numpy(images_ID)
    found_scores, found_indices = [], []
    for rows in images.split(1024):
        scores, indices = torch.empty(len(rows), 0, device=device), torch.empty(len(rows), 0, dtype=torch.int64, device=device)
        rows = rows.to(device)
        for first in range(0, len(captions), 8192):
            best = torch.topk(rows @ captions[first : first + 8192].T, DEPTH, dim=1)
            scores, indices = torch.cat([scores, best.values], 1), torch.cat([indices, best.indices + first], 1)
            kept = torch.topk(scores, DEPTH, dim=1)
            scores, indices = kept.values, indices.gather(1, kept.indices)
        found_scores.append(scores.cpu())
        found_indices.append(indices.cpu())
    return torch.cat(found_indices).numpy(), torch.cat(found_scores).numpy()


def faiss_flat(captions_CD: np.ndarray) -> Any:
    """IndexFlatIP, with the threads torch has."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(WIDTH)
    index.add(captions_CD)
    return index


def run_system(system: str, size: tuple[int, int], device: str, output: Path) -> dict[str, float]:
    """One system in this process; its heads go to OUTPUT/SYSTEM.npz."""
    torch.backends.cuda.matmul.allow_tf32 = False
    warm = torch.ones(512, 512, device=device)
    torch.topk(warm @ warm, 3)  # what torch loads on its first call is nobody's memory
    num_images, num_captions = size
    if system == "ours":
        nothing = PositivePairs(np.zeros(num_images + 1, dtype=np.int64), np.zeros(0, dtype=np.int64))
        with on_disk(0, num_images, IMAGE_BLOCK, output) as images, on_disk(1, num_captions, TEXT_BLOCK, output) as captions:

            def search() -> TopK:
                result = stream_search(images, captions, nothing, DEPTH, execution=Execution(device=torch.device(device)))
                return result.indices_QK, result.scores_QK

            found, cost = measured(search, device)
    else:
        images_ID, captions_CD = in_memory(0, num_images, IMAGE_BLOCK), in_memory(1, num_captions, TEXT_BLOCK)
        if system == "faiss":
            index = faiss_flat(captions_CD)
            found, cost = measured(lambda: index.search(images_ID, DEPTH)[::-1], device)
        else:
            captions_there = torch.from_numpy(captions_CD).to(device)
            found, cost = measured(lambda: plain(images_ID, captions_there, device), device)
    np.savez(output / f"{system}.npz", indices=found[0], scores=found[1])
    return cost


def child(system: str, device: str, size: tuple[int, int], output: Path) -> dict[str, float]:
    """One system in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.mining_at_size", "--system", system, "--device", device, "--size", *map(str, size)]
    done = subprocess.run([*command, "--folder", str(output)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(system, size, f"{result['seconds']:.1f} s, {result['megabytes']:.0f} MB", flush=True)
    return result


def differences(output: Path, systems: tuple[str, ...]) -> str:
    """How far the systems' heads are from ours: rounding moves a score, and two that nearly tie may change places."""
    ours = np.load(output / "ours.npz")
    said = []
    for system in systems:
        theirs = np.load(output / f"{system}.npz")
        gap, same = np.abs(ours["scores"] - theirs["scores"]).max(), (ours["indices"] == theirs["indices"]).mean()
        said.append(f"{system}: largest difference of a score {gap:.1e}, {100 * same:.3f}% in the same place")
    return "Against ours, " + "; ".join(said) + "."


def report(rounds: list[dict[str, dict[str, float]]], device: str, size: tuple[int, int], said: str) -> str:
    """The page."""
    systems = SYSTEMS[device]
    place = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} thread(s) of a shared machine"
    flops = 2 * size[0] * size[1] * WIDTH
    command = f"python -m benchmarks.mining_at_size {' '.join(sys.argv[1:])}"
    columns = [("seconds", "s", 1), ("processor", "processor's s", 1), ("megabytes", "MB", 0)]
    lines = [
        *title_lines("mining-at-size", "The search of a mining at size"),
        f"`{command}`; {size[1]:,} captions x {size[0]:,} images, random unit vectors, D = {WIDTH}, the best {DEPTH};",
        f"torch {torch.__version__}, {place}: read the ratios. Memory is what was held beyond the embeddings; ours reads them",
        "from disk, and what it holds of them meanwhile is counted.",
        "",
        "| round | " + " | ".join(f"{system}, {unit}" for _, unit, _ in columns for system in systems) + " | ours, GFLOP/s |",
        "|" + "---|" * (len(columns) * len(systems) + 2),
    ]
    for number, one in enumerate(rounds, 1):
        cells = [f"{one[system][key]:.{digits}f}" for key, _, digits in columns for system in systems]
        lines.append(f"| {number} | " + " | ".join(cells) + f" | {flops / one['ours']['seconds'] / 1e9:.0f} |")
    ratios = {system: sorted(one[system]["seconds"] / one["ours"]["seconds"] for one in rounds) for system in systems[:-1]}
    medians = ", ".join(f"{system} {values[len(values) // 2]:.2f} times" for system, values in ratios.items())
    return "\n".join([*lines, "", f"Time over ours, median round: {medians}.", "", said]) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(SIZES), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, metavar=("IMAGES", "CAPTIONS"), help="other numbers than the device's own")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--system", choices=SYSTEMS["cpu"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    size = tuple(asked.size) if asked.size else SIZES[asked.device]
    if asked.system:
        print(json.dumps(run_system(asked.system, size, asked.device, asked.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {system: child(system, asked.device, size, Path(folder)) for system in SYSTEMS[asked.device]} for _ in range(asked.repeats)
        ]
        text = report(rounds, asked.device, size, differences(Path(folder), SYSTEMS[asked.device][:-1]))
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
