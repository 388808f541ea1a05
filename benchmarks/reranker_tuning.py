"""Does tuning the reranker help? The demo as it is, where the cross-encoder is near its ceiling, and the demo as another camera sees it.

    python -m benchmarks.reranker_tuning --output results/reranker-tuning.md        # some ten minutes on two cores

The demo's BLIP was pre-trained on drawings like the demo's. `as they are`: those. `channels swapped`: every picture's red, green and
blue stand where another camera's blue, red and green would, so that "red" means what the cross-encoder knows as green: a domain it was not
trained on, as a user's pictures are to a released BLIP. For each, SigLIP is tuned first (configs/demo.yaml, --siglip-steps), then the
cross-encoder on what that SigLIP confuses (configs/reranker-demo.yaml, --steps); the best checkpoint is chosen on val, and both are
measured on test.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.conclusion import title_lines
from benchmarks.training_run import run_training
from eval.metrics.stage_metrics import mean_recall_at_1

SCENES = Path("demo/data/scenes.parquet")
DATA: dict[str, tuple[int, int, int] | None] = {"as they are": None, "channels swapped": (2, 0, 1)}


def swapped(source: Path, target: Path, order: tuple[int, int, int]) -> None:
    """The manifest with each picture's channels in another order."""
    table = pq.read_table(source)

    def repainted(embedded: dict[str, Any]) -> dict[str, Any]:
        channels = Image.open(io.BytesIO(embedded["bytes"])).convert("RGB").split()
        buffer = io.BytesIO()
        Image.merge("RGB", [channels[number] for number in order]).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": embedded["path"]}

    images = pa.array([repainted(image) for image in table["image"].to_pylist()], type=table.schema.field("image").type)
    place = table.schema.get_field_index("image")
    pq.write_table(table.set_column(place, table.schema.field("image"), images), target)


def study(name: str, source: Path, asked: argparse.Namespace, folder: Path) -> list[str]:
    """One row of the table."""
    bare = {"watch": [], "choices": None, "rerank": None, "data.truth": None, "mining": None}
    steps = {"train.max_steps": asked.siglip_steps, "train.eval_every_steps": asked.siglip_steps, "train.checkpoint_every_steps": 1000}
    siglip = run_training("configs/demo.yaml", {"name": "siglip", "runs_folder": str(folder), "data.source": str(source)} | bare | steps)
    every = max(1, asked.steps // 2)
    matcher = {
        "name": "matcher",
        "runs_folder": str(folder),
        "data.source": str(source),
        "miner": str(siglip / "export"),
        "train.max_steps": asked.steps,
    }
    matcher |= {"train.learning_rate": asked.rate, "train.eval_every_steps": every, "train.checkpoint_every_steps": every}
    report = json.loads((run_training("configs/reranker-demo.yaml", matcher) / "eval" / "test" / "report.json").read_text())
    means = {stage: mean_recall_at_1(figures) for stage, figures in report["stages"].items()}
    (row,) = [
        row
        for row in report["comparisons"]
        if (row["stage"], row["against"], row["direction"], row["metric"]) == ("miner+blip-tuned", "miner+blip", "both", "R@1")
    ]
    shown = [f"{100 * means[stage]:.2f}" for stage in ("miner", "miner+blip", "miner+blip-tuned")]
    low, high = row["ci95"]
    print(f"{name}: {shown}", flush=True)
    return [name, *shown, f"{100 * row['delta']:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}", row["verdict"]]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--siglip-steps", type=int, default=150)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    rows = []
    for name, order in DATA.items():
        with tempfile.TemporaryDirectory() as folder:
            source = SCENES
            if order is not None:
                source = Path(folder) / "scenes.parquet"
                swapped(SCENES, source, order)
            rows.append(study(name, source, asked, Path(folder)))
    text = [
        *title_lines("reranker-tuning", "Does tuning the reranker help?"),
        f"`python -m benchmarks.reranker_tuning --siglip-steps {asked.siglip_steps} --steps {asked.steps} --rate {asked.rate:g}`. "
        "Mean R@1 of both directions on the demo's test split, percent; K = 16; the difference is of tuned from untuned, "
        "in points.",
        "",
        "| pictures | tuned SigLIP | reranked, untuned | reranked, tuned | difference | paired 95% interval | verdict |",
        "|---|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    asked.output.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
