"""Golden files: what three short commands gave, digit for digit; a refactor that changes none of it has proved itself.

    python -m tests.golden.record --write          # some three minutes on one core; only with the reason in the commit

training.json    the demo's first 40 steps with mining on: losses, gradient norms, mined tables, figures, ranks, exported weights
evaluation.json  a report of base, an ensemble, expanded captions, chosen on val and reranked: figures, comparisons, ranks, scores
reranker.json    four steps of tuning the demo's reranker: losses, figures
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DIRECTIONS = ("image_to_text", "text_to_image")
SHOWN = ("R@1", "R@10", "mean_rank", "mAP@R")
TRAINING = """train.max_steps=40 train.eval_every_steps=20 train.checkpoint_every_steps=20 mining.start_step=10 mining.mine_every_steps=10
    rerank.top_k=4"""
EVALUATION = """--model demo/models/siglip-base --data demo/data/scenes.parquet --column group=scene --split test
    --ensemble demo/models/siglip-large --combine logits,reciprocal-rank --expand synonyms:demo/data/synonyms.txt
    --choose-on val --choose ensemble,expansion,fusion,skipping --rerank demo/models/blip-itm --top-k 4 --no-pair-scores"""
RERANKER = """miner=demo/models/siglip-base train.max_steps=4 train.eval_every_steps=2 train.checkpoint_every_steps=2 evaluation.top_k=4"""


def run(folder: Path, *command: str) -> None:
    """A command of the project, on one thread, from the root, with runs/ below folder.

    Raises:
        RuntimeError: it failed, with the end of what it printed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    streams: Any = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, **streams)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-3000:]}")


Runner = Callable[..., None]
"""What runs a command, e.g. `run`."""


def machine() -> dict[str, Any]:
    """What the last bits depend on; equal machines give equal bits."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
        "numpy": np.__version__,
    }


def training(folder: Path, run: Runner) -> dict[str, Any]:
    """The demo's first 40 steps, and what a run leaves."""
    run(folder, "train", str(ROOT / "configs/demo.yaml"), *TRAINING.split())
    run_folder = folder / "runs" / "demo"
    lines = [json.loads(line) for line in _lines(run_folder / "metrics.jsonl")]
    steps = [line for line in lines if line["event"] == "step"]
    return {
        "loss": [line["loss"] for line in steps],
        "grad_norm": [line["grad_norm"] for line in steps],
        "evaluations": [[line[direction]["R@1"] for direction in DIRECTIONS] for line in lines if line["event"] == "eval"],
        "retention": [line["mean_R@1"] for line in lines if line["event"] == "watch"],
        "mined": [_mined(run_folder, line) for line in lines if line["event"] == "mining"],
        "final": _report(run_folder / "eval" / "test"),
        "export": _hash((run_folder / "export" / "model.safetensors").read_bytes()),
    }


def evaluation(folder: Path, run: Runner) -> dict[str, Any]:
    """A report with all that an evaluation can combine."""
    run(folder, "eval", *EVALUATION.split(), "--output", str(folder / "report"))
    return _report(folder / "report") | {"expansions": _table(folder / "report" / "expansions.parquet")}


def reranker(folder: Path, run: Runner) -> dict[str, Any]:
    """Four steps of tuning the demo's reranker."""
    run(folder, "train.reranker", str(ROOT / "configs/reranker-demo.yaml"), *RERANKER.split())
    run_folder = folder / "runs" / "reranker-demo"
    lines = [json.loads(line) for line in _lines(run_folder / "metrics.jsonl")]
    return {
        "loss": [line["loss"] for line in lines if line["event"] == "step"],
        "grad_norm": [line["grad_norm"] for line in lines if line["event"] == "step"],
        "final": _report(next((run_folder / "eval").glob("*/report.json")).parent),
        "export": _hash((run_folder / "export" / "model.safetensors").read_bytes()),
    }


RECORDS: Mapping[str, Callable[[Path, Runner], dict[str, Any]]] = {"training": training, "evaluation": evaluation, "reranker": reranker}


def _lines(path: Path | str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").split("\n")[:-1] if Path(path).exists() else []


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    """The metrics of both directions, intervals included."""
    return {direction: record[direction] for direction in DIRECTIONS}


def _mined(run_folder: Path, line: dict[str, Any]) -> dict[str, Any]:
    """A mined table: its name, its rows' hash (image, caption, rank) and the sum of its scores."""
    table = pq.read_table(run_folder / "negatives" / f"{line['name']}.parquet")
    rows = list(zip(*(table[name].to_pylist() for name in ("image_id", "caption_id", "rank")), strict=True))
    found = {"rows": _hash(repr(rows).encode()), "scores": sum(table["score"].to_pylist())}
    return {"num_mined": line["num_mined"], "name": line["name"]} | found


def _table(path: Path) -> dict[str, Any]:
    """A Parquet file: rows, and the hash of every cell but numbers with a fraction, which are summed."""
    columns = pq.read_table(path).to_pydict()
    sums = {name: sum(values) for name, values in columns.items() if values and isinstance(values[0], float)}
    exact = {name: values for name, values in columns.items() if name not in sums}
    return {"num_rows": len(next(iter(columns.values()))), "rows": _hash(repr(exact).encode()), "sums": sums}


def _report(folder: Path) -> dict[str, Any]:
    """report.json without seconds; of queries.parquet, by stage and direction, hashes of ranks and ids, and the sum of scores."""
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    queries: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(folder / "queries.parquet").to_pylist():
        found = queries.setdefault(f"{row['stage']} {row['direction']}", {"ranks": [], "ids": [], "scores": []})
        found["ranks"].append(row["rank"])
        found["ids"].append(row["top_ids"])
        found["scores"].append(sum(row["top_scores"]))
    hashed = {
        name: {"ranks": _hash(repr(found["ranks"]).encode()), "ids": _hash(repr(found["ids"]).encode()), "scores": sum(found["scores"])}
        for name, found in queries.items()
    }
    stages = {
        name: {"pairs_scored": stage["cost"]["pairs_scored"]}
        | {direction: {metric: stage[direction][metric] for metric in SHOWN} for direction in DIRECTIONS}
        for name, stage in record["stages"].items()
    }
    shown = [row for row in record["comparisons"] if row["metric"] == "R@1"]
    everything = {"stages": [_figures(stage) for stage in record["stages"].values()], "comparisons": record["comparisons"]}
    return {"stages": stages, "comparisons": shown, "everything": _hash(json.dumps(everything).encode()), "queries": hashed}


def made(name: str, run: Runner = run) -> dict[str, Any]:
    """The record of one golden file, made anew."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(ROOT / "demo", Path(folder) / "demo")
        return RECORDS[name](Path(folder), run)


def read(name: str) -> dict[str, Any]:
    """The committed golden file: "machine" and "record"."""
    return dict(json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.record", description="Make the golden files anew.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all of {', '.join(RECORDS)})")
    parser.add_argument("--write", action="store_true", required=True, help="replace the committed files")
    asked = parser.parse_args()
    for name in asked.names or RECORDS:
        text = json.dumps({"machine": machine(), "record": made(name)}, indent=1, ensure_ascii=False)
        (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(f"{HERE / name}.json")


if __name__ == "__main__":
    main()
