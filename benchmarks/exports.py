"""An export read by other tools, each in a new process with its own packages alone: is the ranking the run's?

    python -m benchmarks.exports runs/demo --export EXPORT [--packages open_clip=FOLDER ...]   # measure, keep under results/export
    python -m benchmarks.exports                                                                 # write results/export.md again

EXPORT has every form: ./launch.sh export runs/demo --output EXPORT --dtypes bfloat16 float16 --onnx --openvino --open-clip
FOLDER holds packages that only this tool uses (pip install --no-deps --target FOLDER ...). A tool that cannot read it gets a row too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.conclusion import title_lines
from benchmarks.kept_report import comparison, keep_figures, points, ranks_of, read_kept
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.metrics.evaluate import evaluate
from eval.search.retrieve import Embedded, embed, find
from train.config.load import read_run
from train.data.splits import load_data
from train.siglip.stages import as_evaluated

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "results" / "export", ROOT / "results" / "export.md"
RUN = "run"
READERS = {
    "sentence-transformers": "sentence_transformers",
    "transformers-5": "transformers",
    "transformers-5-bfloat16": "transformers_bfloat16",
    "transformers-5-float16": "transformers_float16",
    "transformers-4.57": "transformers",
    "pipeline": "pipeline",
    "onnxruntime-fp32": "onnxruntime",
    "onnxruntime-fp16": "onnxruntime_fp16",
    "onnxruntime-int8": "onnxruntime_int8",
    "openvino": "openvino",
    "open_clip": "open_clip",
}
"""Row of the table -> function of benchmarks/export_readers.py."""


def write_pairs(dataset: RetrievalSet, folder: Path) -> None:
    """A split as any tool can read it: captions.json and numbered pictures."""
    (folder / "captions.json").write_text(json.dumps(list(dataset.captions)), encoding="utf-8")
    for number in range(dataset.num_images):
        dataset.load_image(number).save(folder / f"{number}.png")


def read_with(reader: str, export: Path, pairs: Path, packages: str | None = None) -> dict[str, Any]:
    """What a tool makes of an export, in a new process: `images` and `captions`, or `scores`; `versions` and `seconds`. Or `fault`."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.npz"
        paths = {"PYTHONPATH": packages} if packages else {}
        command = [
            sys.executable,
            "-P",
            str(ROOT / "benchmarks" / "export_readers.py"),
            reader,
            *map(str, (export.resolve(), pairs.resolve(), out)),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | paths | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"fault": done.stderr.strip().splitlines()[-1]}
        return {**np.load(out), "seconds": time.perf_counter() - started}


def as_embedded(found: Mapping[str, np.ndarray]) -> Embedded:
    """What a tool gave, ready to be ranked; scores as the products of their rows with unit vectors."""
    if "scores" in found:
        images, captions = found["scores"].astype(np.float32), np.eye(found["scores"].shape[1], dtype=np.float32)
    else:
        images, captions = found["images"], found["captions"]
    return Embedded(images, captions, 1.0, 0.0, 0.0, 0.0, torch.device("cpu"))


def measure(dataset: RetrievalSet, export: Path, readers: Mapping[str, str], packages: Mapping[str, str], folder: Path) -> None:
    """Read an export with each tool, and keep the rows and what else the table shows in a folder.

    Args:
        readers: name of a row -> function of benchmarks/export_readers.py.
        packages: name of a row -> folder of packages that it uses first.
    """
    run = embed(*load_siglip(export), dataset)
    stages, rows = [find(RUN, run, dataset)], list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as pairs:
        write_pairs(dataset, Path(pairs))
        for name, reader in readers.items():
            found = read_with(reader, export, Path(pairs), packages.get(name))
            row: dict[str, Any] = {"name": name, "fault": found.get("fault")}
            if "fault" not in found:
                embedded = as_embedded(found)
                stages.append(find(name, embedded, dataset))
                row |= {"versions": [str(one) for one in found["versions"]], "seconds": found["seconds"]}
                if "images" in found:
                    pairs_of = ((embedded.images_ID, run.images_ID), (embedded.captions_CD, run.captions_CD))
                    row["max_difference"] = max(float(np.abs(one - other).max()) for one, other in pairs_of)
            rows.append(row)
            print(json.dumps(row), flush=True)
    keep_figures(evaluate(dataset, stages, [(stage.name, RUN) for stage in stages[1:]]), folder)
    (folder / "tools.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def table(folder: Path) -> list[str]:
    """The table of what is kept in a folder; recalls are computed from queries.parquet, intervals are the report's."""
    record, queries = read_kept(folder)
    rows = json.loads((folder / "tools.json").read_text(encoding="utf-8"))
    lines = [
        "| read by | packages | R@1 image to text | text to image | mean against the run's | paired 95% interval | vectors differ by |",
        "|---|---|---|---|---|---|---|",
        f"| the run's own evaluation | this repository | {recalls(queries, RUN)} | | | |",
    ]
    for row in rows:
        name = row["name"]
        if row["fault"] is not None:
            lines.append(f"| {name} | | cannot read it: `{row['fault']}` | | | | |")
            continue
        both = comparison(record["comparisons"], name, RUN)
        difference = f"{row['max_difference']:.0e}" if "max_difference" in row else "scores alone"
        delta = f"{round(100 * both['delta'], 2) + 0.0:+.2f}"
        lines.append(
            f"| {name} | {', '.join(row['versions'])} | {recalls(queries, name)} | {delta} | {points(both['ci95'])} | {difference} |"
        )
    return lines


def recalls(queries: Any, stage: str) -> str:
    """R@1 of both directions, two cells."""
    return " | ".join(f"{100 * np.mean(ranks_of(queries, stage, way) <= 1):.1f}" for way in ("image_to_text", "text_to_image"))


def page(folder: Path = KEPT) -> str:
    """results/export.md."""
    record, _ = read_kept(folder)
    data = record["data"]
    intro = [
        *title_lines("export", "The export, read by other tools"),
        f"`python -m benchmarks.exports`. The demo's export on {data['split']} ({data['num_images']} images, {data['num_captions']} "
        "captions). Each row is a new process that",
        "imports the tool's own packages and none of this repository (benchmarks/export_readers.py). R@1 in percent, differences in "
        "points. The last column",
        "is the largest absolute difference of an element of a unit vector from the run's. transformers-5-bfloat16 and -float16 also "
        "compute in that precision; int8 is",
        "onnxruntime's dynamic quantization; the pipeline is called step by step, for called whole it pads to 64 tokens, and the demo's "
        "text tower has 24.",
        "",
    ]
    return "\n".join([*intro, *table(folder), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", type=Path, help="folder of the run, whose final split is measured; without it the page is written"
    )
    parser.add_argument("--export", type=Path, help="the export with every form")
    parser.add_argument("--tool", action="append", choices=list(READERS), help="read with these alone (default: all)")
    parser.add_argument("--packages", action="append", default=[], metavar="TOOL=FOLDER", help="packages that a tool uses first")
    asked = parser.parse_args(arguments)
    if asked.run is not None:
        config = read_run(asked.run)
        splits = load_data(config)
        dataset = as_evaluated(splits.test or splits.val, config.evaluation)
        readers = {name: READERS[name] for name in asked.tool or READERS}
        measure(dataset, asked.export or asked.run / "export", readers, dict(one.split("=", 1) for one in asked.packages), KEPT)
    PAGE.write_text(page(), encoding="utf-8")
    print(page())


if __name__ == "__main__":
    main()
