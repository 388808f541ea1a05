"""TREC run and qrels files of a finished evaluation, for the tools of the retrieval field (trec_eval, ir-measures, ranx)."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from eval.atomic import replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.search.ranking import DIRECTIONS


def write_trec(folder: str | os.PathLike[str], queries: pa.Table, dataset: RetrievalSet) -> list[Path]:
    """Write STAGE.DIRECTION.run for every stage, and DIRECTION.qrels with the ground truth it was measured by. Returns the paths.

    A run holds the head of each ranking (queries.parquet's top_ids). Its score is 1 / rank, not the model's: these tools sort again, and a
    reranked head and its tail are scored on different scales. The format parts fields by blanks: an id's blanks and % are percent-encoded.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for direction in DIRECTIONS:
        paths.append(_write(target / f"{direction}.qrels", _qrels_lines(dataset, direction)))
        for stage in pc.unique(queries["stage"]).to_pylist():
            chosen = queries.filter(pc.and_(pc.equal(queries["stage"], stage), pc.equal(queries["direction"], direction)))
            paths.append(_write(target / f"{quote(stage, safe='+@')}.{direction}.run", _run_lines(chosen, stage)))
    return paths


def _qrels_lines(dataset: RetrievalSet, direction: str) -> Iterator[str]:
    images, captions = [_field(name) for name in dataset.image_ids], [_field(name) for name in dataset.caption_ids]
    queries, gallery = (images, captions) if direction == "image_to_text" else (captions, images)
    positives = dataset.positives(direction)
    for number, query in enumerate(queries):
        for item in positives.of(number):
            yield f"{query} 0 {gallery[item]} 1\n"


def _run_lines(rows: pa.Table, tag: str) -> Iterator[str]:
    for batch in rows.select(["query_id", "top_ids"]).to_batches(max_chunksize=4096):
        for query, items in zip(batch["query_id"].to_pylist(), batch["top_ids"].to_pylist(), strict=True):
            for rank, item in enumerate(items, 1):
                yield f"{_field(query)} Q0 {_field(item)} {rank} {1 / rank:.9f} {_field(tag)}\n"


def _field(name: str) -> str:
    """A name without blanks; all else stays readable."""
    return name if not any(c.isspace() or c == "%" for c in name) else quote(name, safe="/#:+@,;=!$&'()*[]")


def _write(path: Path, lines: Iterator[str]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    replace_files({path: write})
    return path
