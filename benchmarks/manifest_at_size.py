"""Reading a manifest of a million captions: seconds, and what the process holds afterwards.

    python -m benchmarks.manifest_at_size --output results/manifest-at-size.md

Two shapes of a .jsonl with a split column, next to files of 1 to 7 bytes: an image a row with one caption, and an image a row with five.
Each size is read by a process of its own, after a manifest of a hundred rows (what is imported late is no cost of a row): read, split into
train and val, leakage found, hashed. Held is the process's own memory above that before (anonymous); mapped is what lies in files that it
maps (the text of captions, ids and paths among it: the system drops it as it needs); peak is the most of both. The exponent is the slope
of the processor's seconds over the rows, in logarithms. `--rows 100000` is quick.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conclusion import title_lines
from eval.dataset.leakage import find_leakage
from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest
from eval.manifest.memory import release_unused

WORDS = (
    "dog",
    "cat",
    "runs",
    "through",
    "green",
    "grass",
    "near",
    "old",
    "house",
    "red",
    "door",
    "two",
    "children",
    "under",
    "bright",
    "sun",
)
SHAPES = {"one caption an image": 1, "five captions an image": 5}
IMAGES_A_FOLDER = 1000


def write_pictures(root: Path, num_images: int) -> list[str]:
    """Files of 1 to 7 bytes, a thousand a folder; their paths."""
    paths = []
    for image in range(num_images):
        path = f"images/{image // IMAGES_A_FOLDER:04d}/{image:08d}.jpg"
        if image % IMAGES_A_FOLDER == 0:
            (root / path).parent.mkdir(parents=True)
        with open(root / path, "wb") as file:
            file.write(b"x" * (image % 7 + 1))
        paths.append(path)
    return paths


def write_manifest(path: Path, pictures: list[str], captions_an_image: int) -> Path:
    """A row a picture; every fiftieth is of val."""
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for image, picture in enumerate(pictures):
            chosen = generator.integers(len(WORDS), size=(captions_an_image, 9))
            texts = [" ".join(WORDS[word] for word in words) + f" {image} {place}." for place, words in enumerate(chosen.tolist())]
            captions: dict[str, Any] = {"caption": texts[0]} if captions_an_image == 1 else {"captions": texts}
            file.write(json.dumps({"image": picture, **captions, "split": "val" if image % 50 == 0 else "train"}) + "\n")
    return path


def measured(manifest: Path, warm_up: Path) -> dict[str, float]:
    """Seconds and bytes of reading one manifest, in this process."""
    _read(warm_up)
    release_unused()
    before, mapped_before = own_bytes("RssAnon"), own_bytes("RssFile") + own_bytes("RssShmem")
    started, used = time.perf_counter(), time.process_time()
    datasets = _read(manifest)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    release_unused()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    num_captions = sum(dataset.num_captions for dataset in datasets)
    held, mapped = own_bytes("RssAnon") - before, own_bytes("RssFile") + own_bytes("RssShmem") - mapped_before
    costs = {"seconds": seconds, "used": used, "held": held, "mapped": mapped, "peak": peak - before - mapped_before}
    return {"captions": num_captions} | costs


def _read(manifest: Path) -> list[Any]:
    read = read_manifest(manifest)
    datasets = [load_split(read, split) for split in ("train", "val")]
    del read
    find_leakage(*datasets)
    for dataset in datasets:
        dataset.sha256()
    return datasets


def own_bytes(field: str) -> int:
    """A field of this process's memory, in bytes: RssAnon, RssFile, RssShmem, or VmHWM, the most so far."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def of_own_process(manifest: Path, warm_up: Path) -> dict[str, float]:
    """`measured` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.manifest_at_size", "--measure", str(manifest), str(warm_up)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def table(num_rows: int, folder: Path) -> list[str]:
    """The lines of the report."""
    pictures = write_pictures(folder, num_rows)
    warm_up = write_manifest(folder / "warm-up.jsonl", pictures[:100], 1)
    heads = ["manifest", "rows", "captions", "seconds", "processor's", "held, bytes a caption", "mapped", "peak, bytes a caption"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    notes = []
    for shape, captions_an_image in SHAPES.items():
        found = []
        for part in (8, 4, 2, 1):
            chosen = pictures[: num_rows // part // captions_an_image]
            found.append(of_own_process(write_manifest(folder / "m.jsonl", chosen, captions_an_image), warm_up))
            one, count = found[-1], found[-1]["captions"]
            bytes_a_caption = " | ".join(f"{one[name] / count:.0f}" for name in ("held", "mapped", "peak"))
            figures = f"{one['seconds']:.1f} | {one['used']:.1f} | {bytes_a_caption}"
            lines.append(f"| {shape} | {len(chosen):,} | {count:,.0f} | {figures} |")
        slope = np.polyfit(np.log([one["captions"] for one in found]), np.log([one["used"] for one in found]), 1)[0]
        notes.append(f"Seconds grow with the rows to the power of {slope:.2f} ({shape}).")
    return [*lines, "", *notes]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="captions of the largest manifest (default 1,000,000)")
    parser.add_argument("--folder", help="where the pictures are made (default: the system's temporary folder)")
    parser.add_argument("--output", help="file to write the table to (default: print it)")
    parser.add_argument("--measure", nargs=2, metavar="MANIFEST", help="read one manifest, after another, and print its figures")
    asked = parser.parse_args()
    if asked.measure is not None:
        print(json.dumps(measured(*map(Path, asked.measure))))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        lines, load = table(asked.rows, Path(folder)), os.getloadavg()[0]
        machine = f"{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}; load {load:.1f}."
        title = title_lines("manifest-at-size", "Reading a manifest at size")
        text = "\n".join([*title, (__doc__ or "").strip(), "", *lines, "", machine, ""])
        if asked.output:  # before a million files are removed
            Path(asked.output).write_text(text, encoding="utf-8")
        else:
            print(text, flush=True)


if __name__ == "__main__":
    main()
