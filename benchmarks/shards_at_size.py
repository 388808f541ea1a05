"""Indexing webdataset shards: seconds of tarfile's own reading of the headers, of the first start and of the next ones.

    python -m benchmarks.shards_at_size --output results/shards-at-size.md

100,000 samples of .jpg, .txt and .json in 10 shards, with the headers that img2dataset and webdataset write (PAX, with a time in
fractions of a second) and with plain ones (ustar). The three are measured in turns, five times, in this one process; the table has the
medians and, in parentheses, the least and the most. `--samples 10000` is quick.
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants

from benchmarks.conclusion import title_lines
from eval.manifest.columns import asked_mapping
from eval.manifest.formats.shards import ShardRows

NUM_SHARDS, NUM_TURNS = 10, 5
HEADERS = {"PAX, as img2dataset writes": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}
PICTURE = b"\xff" * 800


def write_shards(folder: Path, num_samples: int, file_format: int) -> list[Path]:
    """The shards, with the times of files that were written a while ago."""
    folder.mkdir()
    shards = [folder / f"{number:05d}.tar" for number in range(NUM_SHARDS)]
    for number, shard in enumerate(shards):
        with tarfile.open(shard, "w", format=file_format) as tar:
            for sample in range(number, num_samples, NUM_SHARDS):
                caption = f"a dog number {sample}"
                record = json.dumps({"caption": caption, "url": f"http://host/{sample}", "status": "success", "width": 256}).encode()
                for suffix, content in (("jpg", PICTURE), ("txt", caption.encode()), ("json", record)):
                    member = tarfile.TarInfo(f"{sample:09d}.{suffix}")
                    member.size, member.mtime = len(content), 1.7e9 + 0.5  # type: ignore[assignment]
                    tar.addfile(member, io.BytesIO(content))
        os.utime(shard, (1.7e9, 1.7e9))
    return shards


def read_by_tarfile(shards: list[Path]) -> None:
    """Every header by the standard library, no member held."""
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            while tar.next() is not None:
                tar.members = []  # type: ignore[attr-defined]


def index(shards: list[Path]) -> None:
    """As a run does when it starts."""
    ShardRows([(shard, None) for shard in shards], asked_mapping({}))


def seconds_of(work: Callable[[list[Path]], None], shards: list[Path]) -> float:
    started = time.perf_counter()
    work(shards)
    return time.perf_counter() - started


def row(name: str, shards: list[Path], num_samples: int, cache: Path) -> str:
    """A row of the table: the three, in turns, each time with an empty cache."""
    turns = []
    for _ in range(NUM_TURNS):
        shutil.rmtree(cache, ignore_errors=True)
        turns.append([seconds_of(work, shards) for work in (read_by_tarfile, index, index)])
    num_bytes = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    columns = list(zip(*turns, strict=True))
    medians = [statistics.median(column) for column in columns]
    cells = [f"{median:.2f} ({min(column):.2f} to {max(column):.2f})" for median, column in zip(medians, columns, strict=True)]
    ratios = [f"{medians[0] / medians[1]:.1f}", f"{medians[0] / medians[2]:.0f}", f"{num_bytes / num_samples:.0f}"]
    return f"| {' | '.join([name, f'{num_samples:,}', *cells, *ratios])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    asked = parser.parse_args()
    head = ["headers", "samples", "tarfile, s", "first start, s", "next starts, s", "ratio, first", "ratio, next", "cache, bytes a sample"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        constants.HF_ASSETS_CACHE = f"{folder}/assets"
        for name, file_format in HEADERS.items():
            shards = write_shards(Path(folder, str(file_format)), asked.samples, file_format)
            lines.append(row(name, shards, asked.samples, Path(constants.HF_ASSETS_CACHE)))
    lines.append(f"\n{os.cpu_count()} processors, {platform.machine()}, Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}.")
    text = "\n".join([*title_lines("shards-at-size", "Indexing shards"), (__doc__ or "").strip(), "", *lines, ""])
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
