"""TREC run and qrels files of a finished evaluation, for the tools of the retrieval field (trec_eval, ir-measures, ranx).

These tools sort a run again by its scores, as float32, and order equal ones by the id of the document, the last first, whatever its ranks
say; ours are ordered by id, the first first. So the scores of a run fall strictly. Shape letters: Q queries, q some of them, K depth.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from eval.atomic import replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.report.files import qrels_path, run_path
from eval.report.render import DIRECTION_WORDS
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS, Ranking
from eval.search.stage import Stage

DEFAULT_RUN_DEPTH = 1000
"""Items of each query's ranking that a run holds: trec_eval's own limit."""
_QUERIES_AT_ONCE = 256


def _lines(record: dict[str, Any], data: Any) -> list[str]:
    depths = ", ".join(
        f"{DIRECTION_WORDS[direction]} {one['depth']:,} of {one['gallery']:,}" for direction, one in record["directions"].items()
    )
    return [f"TREC runs: depth {depths}"]


TREC = SectionFormat(key="trec", lines=_lines)
"""What a report says of its runs: how deep they are."""


def write_trec(folder: str | os.PathLike[str], stages: Sequence[Stage], dataset: RetrievalSet) -> list[Path]:
    """Write STAGE.DIRECTION.run for every stage, and DIRECTION.qrels with the ground truth it was measured by. Returns the paths.

    A run holds all of each ranking that its stage stored, with the scores of `falling_scores`. The format parts fields by blanks: an id's
    blanks and % are percent-encoded.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    images, captions = [_field(name) for name in dataset.image_ids], [_field(name) for name in dataset.caption_ids]
    paths = []
    for direction in DIRECTIONS:
        queries, gallery = (images, captions) if direction == "image_to_text" else (captions, images)
        paths.append(_write(qrels_path(target, direction), _qrels_lines(dataset, direction, queries, gallery)))
        for stage in stages:
            lines = _run_lines(stage.rankings[direction], queries, gallery, _field(stage.name))
            paths.append(_write(run_path(target, stage.name, direction), lines))
    return paths


def trec_section(stages: Sequence[Stage], dataset: RetrievalSet) -> Section:
    """`trec` of report.json: of each direction the depth of its runs, and the size of its gallery."""
    sizes = {"image_to_text": dataset.num_captions, "text_to_image": dataset.num_images}
    found = {direction: {"depth": stages[0].rankings[direction].depth, "gallery": sizes[direction]} for direction in DIRECTIONS}
    return Section(TREC, {"directions": found})


def falling_scores(scores_qK: np.ndarray) -> np.ndarray:
    """The scores of rankings as float32 numbers that fall strictly, so that sorting by them gives back the ranking.

    What falls already stays as it is. A score equal to the one before becomes the next smaller float32 number, and so does what is not
    below that. Where scores rise within a ranking, at the border between a reranked head and its tail, which are on different scales,
    the rest is shifted by the rise, and keeps its differences.

    >>> falling_scores(np.float32([[0.5, 0.25, 0.25, -3.0, 0.125]])).tolist()
    [[0.5, 0.25, 0.2499999850988388, -3.0, -3.000000238418579]]
    """
    rise_qK = np.diff(scores_qK.astype(np.float64), axis=1, prepend=scores_qK[:, :1]).clip(min=0)
    shifted_qK = (scores_qK - rise_qK.cumsum(axis=1)).astype(np.float32)
    # The bits of a float32 order as the number does, below 0 by its magnitude: so whole numbers, -0 being 0, in which the next is one less.
    bits_qK, places_K = shifted_qK.view(np.int32).astype(np.int64), np.arange(scores_qK.shape[1])
    keys_qK = np.where(bits_qK < 0, -(bits_qK & 0x7FFFFFFF), bits_qK)
    keys_qK = np.minimum.accumulate(keys_qK + places_K, axis=1) - places_K
    return np.where(keys_qK < 0, -keys_qK | 0x80000000, keys_qK).astype(np.uint32).view(np.float32)


def _qrels_lines(dataset: RetrievalSet, direction: str, queries: Sequence[str], gallery: Sequence[str]) -> Iterator[str]:
    positives = dataset.positives(direction)
    for number, query in enumerate(queries):
        for item in positives.of(number):
            yield f"{query} 0 {gallery[item]} 1\n"


def _run_lines(ranking: Ranking, queries: Sequence[str], gallery: Sequence[str], tag: str) -> Iterator[str]:
    for start in range(0, ranking.num_queries, _QUERIES_AT_ONCE):
        some = slice(start, start + _QUERIES_AT_ONCE)
        scores_qK = falling_scores(ranking.top_scores_QK[some]).tolist()
        for query, items, scores in zip(queries[some], ranking.top_indices_QK[some].tolist(), scores_qK, strict=True):
            yield "".join(
                f"{query} Q0 {gallery[item]} {rank} {score:.9g} {tag}\n"
                for rank, (item, score) in enumerate(zip(items, scores, strict=True), 1)
            )


def _field(name: str) -> str:
    """A name without blanks; all else stays readable."""
    return name if not any(c.isspace() or c == "%" for c in name) else quote(name, safe="/#:+@,;=!$&'()*[]")


def _write(path: Path, lines: Iterator[str]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    replace_files({path: write})
    return path
