"""A paraphrase of the query, or an additional caption of the image: the same true caption used both ways, on the demo.

    python -m benchmarks.own_words_demo runs/demo/export --output results/own-words          # a few minutes on two cores

Of each image of val and test the first caption is held out. The others are the queries. The one held out is once a paraphrase of each query
of its image (--expand FILE), once as an additional caption of its image (--expand captions:FILE); how it pools is chosen on val, and what
it gains is measured on test, text to image. It is a true caption of that image, so this is the best case:
a paraphraser may write worse, and a user's additional captions may say other things. Writes OUTPUT.md, and OUTPUT/base and OUTPUT/tuned.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.conclusion import title_lines
from benchmarks.kept_report import comparison_lines, keep_report, read_kept, recall_lines
from eval.report.report import read_report
from eval.report.section import section_lines
from rerank.evaluation import FORMATS

SCENES = Path("demo/data/scenes.parquet")
BASE = "demo/models/siglip-base"
STAGES = ("model", "model+paraphrases", "model+captions")
SPLITS = ("val", "test")


def held_out(table: pa.Table) -> tuple[pa.Table, list[dict[str, Any]], list[dict[str, Any]]]:
    """(manifest, paraphrases, additional captions): each image's first caption is gone from the manifest, and stands in the other two.

    Args:
        table: a manifest with the columns id and captions, at least two captions in each row.
    """
    captions = table["captions"].to_pylist()
    kept = table.set_column(table.column_names.index("captions"), "captions", pa.array([own[1:] for own in captions]))
    paraphrases = [{"caption": other, "expansion": own[0]} for own in captions for other in own[1:]]
    additional = [{"image": name, "caption": own[0]} for name, own in zip(table["id"].to_pylist(), captions, strict=True)]
    return kept, paraphrases, additional


def write_held_out(folder: Path) -> None:
    """Write manifest.parquet, paraphrases.jsonl and additional.jsonl of the demo's val and test."""
    table = pq.read_table(SCENES)
    table = table.filter(pa.array([split in SPLITS for split in table["split"].to_pylist()]))
    kept, paraphrases, additional = held_out(table)
    pq.write_table(kept, folder / "manifest.parquet")
    for name, rows in (("paraphrases", paraphrases), ("additional", additional)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def measured(model: str, folder: Path, output: Path) -> dict[str, Any]:
    """The report of one checkpoint with both kinds of additional words; its record.

    Raises:
        SystemExit: the evaluation failed.
    """
    words = ["-m", "eval", "--model", model, "--data", str(folder / "manifest.parquet"), "--column", "group=scene", "--split", "test"]
    words += ["--expand", str(folder / "paraphrases.jsonl"), "--expand", f"captions:{folder / 'additional.jsonl'}", "--choose-on", "val"]
    if code := subprocess.run([sys.executable, *words, "--num-workers", "0", "--output", str(output)], check=False).returncode:
        raise SystemExit(f"python {' '.join(words)} ended with {code}")
    return read_report(output)


def page(output: Path) -> str:
    """The Markdown page of the kept reports."""
    lines = [
        *title_lines("own-words", "A paraphrase of the query or an additional caption of the image, on the demo"),
        "`python -m benchmarks.own_words_demo runs/demo/export --output results/own-words`. Of each image of val and test the first "
        "caption is held out; the others ask, text to image.",
        "The one held out is a paraphrase of each query of its image (`model+paraphrases`), or an additional caption of its image "
        "(`model+captions`). It is a true caption of",
        "that image, the best case. How it pools is chosen on val. Recalls in percent.",
    ]
    for name in ("base", "tuned"):
        record, queries = read_kept(output / name)
        data = record["data"]
        lines += ["", f"## {name}", "", f"Test: {data['num_images']} images, {data['num_captions']} captions.", ""]
        lines += [*recall_lines(queries, STAGES), ""]
        pairs = [(stage, STAGES[0]) for stage in STAGES[1:]]
        lines += comparison_lines(record["comparisons"], pairs, ("text_to_image",), ("R@1", "R@5", "R@10"))
        lines += ["", *(f"- {line}" for line in section_lines(record, FORMATS))]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tuned", help="checkpoint folder of a tuned model, e.g. runs/demo/export")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_held_out(folder)
        for kept, model in (("base", BASE), ("tuned", asked.tuned)):
            record = measured(model, folder, folder / kept)
            record["data"]["source"] = f"{SCENES} without each image's first caption"
            keep_report(record, pq.read_table(folder / kept / "queries.parquet"), asked.output / kept)
    asked.output.with_suffix(".md").write_text(page(asked.output), encoding="utf-8")


if __name__ == "__main__":
    main()
