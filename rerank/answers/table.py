"""The answers as a file: one row per (direction, query, candidate), as .parquet, .csv or .jsonl.

Rows are written for some thousand queries at a time, so that memory never holds all of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from rerank.answers.answers import Answers
from rerank.answers.first_stage import FirstAnswers

QUERIES_AT_ONCE = 2048
FIRST_COLUMNS = (
    ("direction", pa.string()),
    ("query_id", pa.string()),
    ("query", pa.string()),
    ("candidate_id", pa.string()),
    ("candidate", pa.string()),
    ("first_cosine", pa.float32()),
    ("first_logit", pa.float32()),
    ("first_rank", pa.int32()),
)
RERANK_COLUMNS = (("rerank_score", pa.float32()), ("rank", pa.int32()))
CALIBRATED_COLUMNS = (("probability", pa.float32()),)


def schema(*, reranked: bool, calibrated: bool = False) -> Any:
    """The pyarrow schema; the last columns only with a reranker, or a calibration."""
    return pa.schema(FIRST_COLUMNS + (RERANK_COLUMNS if reranked else ()) + (CALIBRATED_COLUMNS if calibrated else ()))


def schema_of(answers: Answers) -> Any:
    """That of these answers."""
    return schema(reranked=answers.rerank_scores_QK is not None, calibrated=answers.probabilities_QK is not None)


def _tables(found: FirstAnswers, answers: Sequence[Answers]) -> Iterator[Any]:
    """Arrow tables of the rows: direction after direction, query after query, each query's candidates best first."""
    for one in answers:
        for start in range(0, one.num_queries, QUERIES_AT_ONCE):
            yield _table(found, one, np.arange(start, min(start + QUERIES_AT_ONCE, one.num_queries)))


def _table(found: FirstAnswers, answers: Answers, queries: np.ndarray) -> Any:
    """The rows of some queries; one that has no match is a row without a candidate."""
    shown_q = answers.shown_Q[queries]
    counts_q = np.maximum(shown_q, 1)
    query_N = np.repeat(queries, counts_q)
    place_N = np.arange(len(query_N)) - np.repeat(np.cumsum(counts_q) - counts_q, counts_q)
    none_N = np.repeat(shown_q == 0, counts_q)
    indices_N, cosines_N = answers.indices_QK[query_N, place_N], answers.cosines_QK[query_N, place_N]
    are_images = answers.direction == "image_to_text"
    candidates = _named(found, indices_N, not are_images, "candidate")
    values: dict[str, Any] = {
        "direction": [answers.direction] * len(indices_N),
        **_named(found, query_N, are_images, "query"),
        **{name: pa.array(texts, type=pa.string(), mask=none_N) for name, texts in candidates.items()},
        "first_cosine": pa.array(cosines_N, mask=none_N),
        "first_logit": pa.array(found.logits(cosines_N), mask=none_N),
        "first_rank": pa.array(answers.first_ranks_QK[query_N, place_N], mask=none_N),
    }
    if answers.rerank_scores_QK is not None:
        scores_N = answers.rerank_scores_QK[query_N, place_N]
        values["rerank_score"] = pa.array(scores_N, mask=none_N | np.isnan(scores_N))  # NaN: not scored
        values["rank"] = pa.array((place_N + 1).astype(np.int32), mask=none_N)
    if answers.probabilities_QK is not None:
        values["probability"] = pa.array(answers.probabilities_QK[query_N, place_N], mask=none_N)
    return pa.table(values, schema=schema_of(answers))


def _named(found: FirstAnswers, indices_N: np.ndarray, are_images: bool, column: str) -> dict[str, list[str | None]]:
    """Columns `X_id` and `X`: a picture's id and path (none where it is embedded), or a caption's id and text."""
    distinct, places_N = np.unique(indices_N, return_inverse=True)
    collection = found.collection
    known_ids = collection.image_ids if are_images else collection.caption_ids
    ids = [known_ids[index] for index in distinct]
    shown = [(collection.pictures.path(index) or None) if are_images else collection.captions[index] for index in distinct]
    return {f"{column}_id": [ids[place] for place in places_N], column: [shown[place] for place in places_N]}


def write_answers(path: Path, suffix: str, found: FirstAnswers, answers: Sequence[Answers], provenance: Mapping[str, Any]) -> None:
    """Write the rows in the form that `suffix` names, one of `SUFFIXES`.

    Args:
        provenance: settings of the run; in a .parquet file stored as JSON, in its schema's metadata under "siglip_tuner".

    Raises:
        OSError: they cannot be written.
    """
    columns = schema_of(answers[0])
    batches = _tables(found, answers)
    if suffix == ".jsonl":
        _write_jsonl(path, batches)
    elif suffix == ".csv":
        with pyarrow.csv.CSVWriter(path, columns, write_options=pyarrow.csv.WriteOptions(quoting_style="needed")) as writer:
            for table in batches:
                writer.write_table(_without_formulas(table))
    else:
        columns = columns.with_metadata({"siglip_tuner": json.dumps(dict(provenance), sort_keys=True)})
        with pq.ParquetWriter(path, columns) as writer:
            for table in batches:
                writer.write_table(table.cast(columns))


def _without_formulas(table: Any) -> Any:
    """The table with a ' before each text that a spreadsheet would take for a formula: one that begins with = + - @, a tab or a return."""
    for number, field in enumerate(table.schema):
        if field.type == pa.string():
            texts = pc.replace_substring_regex(table[field.name], r"^([=+\-@\t\r])", r"'\1")
            table = table.set_column(number, field, texts)
    return table


def _write_jsonl(path: Path, batches: Iterator[Any]) -> None:
    """UTF-8; numbers are the shortest that read back as the same float32."""
    with path.open("w", encoding="utf-8") as file:
        for table in batches:
            names = [field.name for field in table.schema if field.type == pa.float32()]
            floats = {name: [_shortest(value) for value in table[name].to_numpy()] for name in names}
            for number, record in enumerate(table.to_pylist()):
                record |= {name: values[number] for name, values in floats.items()}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _shortest(value: np.float32) -> float | None:
    """The shortest number that reads back as this one; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else float(str(value))
