"""Finished reports compared query by query: found, checked, and each stage of the first against the same of every other.

The runs are called by letters, the first A, and a stage of one B:tuned.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from eval.atomic import hash_file
from eval.encoder.sealed import sealed_hashes
from eval.errors import UserError
from eval.files import require_plain
from eval.manifest.run_data import RunData
from eval.metrics.comparison import compare
from eval.metrics.significance import resample_weights
from eval.metrics.stage_metrics import StageMetrics
from eval.report.report import read_report
from eval.search.ranking import DIRECTIONS, Direction

_COLUMNS = {
    **dict.fromkeys(("stage", "direction", "query_id", "image_id"), lambda kind: kind in (pa.string(), pa.large_string())),
    **dict.fromkeys(("rank", "num_positives"), pa.types.is_integer),
    **dict.fromkeys(("ap_at_r", "r_precision"), pa.types.is_floating),
}
"""The columns that are read, and what each must hold."""


def find_report(run: Path) -> Path:
    """The folder that holds a run's report.json and queries.parquet.

    Raises:
        UserError: there is none, or there are several.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected a report's folder (report.json and queries.parquet) or that of a finished run")
    if (run / "report.json").is_file():
        return run
    found = sorted(path.parent for path in run.glob("eval/*/report.json"))
    if len(found) == 1:
        return found[0]
    reason = (
        f"several reports: {', '.join(map(str, found))}; name one" if found else "no report.json here or in eval/*/; is the run finished?"
    )
    raise UserError(f"{run}: {reason}")


def read_queries(folder: Path) -> pa.Table:
    """The table of a report.

    Raises:
        UserError: it is missing, damaged, or of another form.
    """
    path = folder / "queries.parquet"
    try:
        require_plain(path)
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]  # a missing column is told with the whole schema
        raise UserError(f"{path}: not a report's table of queries ({reason}); evaluate again") from error
    if fault := _table_fault(table):
        raise UserError(f"{path}: not a report's table of queries: {fault}; evaluate again")
    return table


def _table_fault(table: pa.Table) -> str:
    """What no evaluation writes, with up to five queries, or nothing."""
    for name, is_kind in _COLUMNS.items():
        if not is_kind(table[name].type):
            return f"column {name!r} holds {table[name].type}"
    missing = [name for name in _COLUMNS if table[name].null_count]
    if missing:
        return f"column(s) {missing} have empty cells"
    bad = pc.less(table["rank"], 1)
    for name in ("ap_at_r", "r_precision"):
        bad = pc.or_(bad, pc.invert(pc.is_finite(table[name])))
    names = table.filter(bad)["query_id"].to_pylist()
    return f"{len(names)} row(s) have a rank below 1 or a figure that is not a number, e.g. of queries {names[:5]}" if names else ""


def read_data(folder: Path) -> dict[str, Any]:
    """`data` of a report.json: what was measured, and with which ground truth.

    Raises:
        UserError: it is damaged, or of another version's form.
    """
    path, data = folder / "report.json", _read_record(folder).get("data")
    if not isinstance(data, dict) or not isinstance(data.get("sha256"), str):
        raise UserError(f"{path}: cannot be read as a report: it has no data.sha256 (of another version, perhaps); evaluate again")
    truth = data.get("truth")
    if truth is not None and not (isinstance(truth, dict) and isinstance(truth.get("protocol"), str)):
        raise UserError(f"{path}: cannot be read as a report: data.truth is {truth!r:.80} (of another version, perhaps); evaluate again")
    return data


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record: Any = read_report(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'report.json'}: cannot be read ({error}); evaluate again") from error
    return record if isinstance(record, dict) else {}


def check_belongs(folder: Path, table: pa.Table) -> None:
    """Refuse a queries.parquet that is not the one its report.json was written with.

    A report of an earlier version does not hold the file's hash: then the table's means must be those of the report, to 1e-9.

    Raises:
        UserError: it is another, or report.json cannot be read.
    """
    path, record = folder / "queries.parquet", _read_record(folder)
    if (expected := record.get("queries_sha256")) is not None:
        if hash_file(path) != expected:
            raise UserError(f"{path}: not the file that {folder / 'report.json'} was written with (another SHA-256); evaluate again")
        return
    images = {name: number for number, name in enumerate(pc.unique(table["image_id"]).to_pylist())}
    try:
        for stage, stated in record["stages"].items():
            for direction in DIRECTIONS:
                found = StageMetrics.of(table, stage, direction, images).values()
                if differing := [name for name in found if name in stated[direction] and abs(found[name] - stated[direction][name]) > 1e-9]:
                    name = differing[0]
                    raise UserError(
                        f"{path}: not the table of {folder / 'report.json'}: {name} of {stage}, {direction} is {found[name]:.6g} in the "
                        f"table and {stated[direction][name]:.6g} in the report; evaluate again"
                    )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path} and {folder / 'report.json'} cannot be compared ({error!r}); evaluate again") from error


def letter(number: int) -> str:
    """What the run of this number, from 0, is called.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'R27')
    """
    return chr(ord("A") + number) if number < 26 else f"R{number + 1}"


def stage_pairs(names_a: Sequence[str], names_b: Sequence[str], asked: Sequence[str], other_letter: str = "B") -> list[tuple[str, str]]:
    """(stage of A, stage of the other) to compare: those asked for as A:B, else every stage both have, else the only one of each.

    Args:
        other_letter: what the other is called.

    Raises:
        UserError: a name is not there, or nothing is common.
    """
    have = f"A has {list(names_a)}, {other_letter} has {list(names_b)}"
    pairs = [(one, other or one) for one, _, other in (text.partition(":") for text in asked)]
    for one, other in pairs:
        if one not in names_a or other not in names_b:
            raise UserError(f"--stages {one}:{other}: {have}")
    pairs = pairs or [(name, name) for name in names_a if name in names_b]
    if not pairs and len(names_a) == len(names_b) == 1:
        pairs = [(names_a[0], names_b[0])]
    if not pairs:
        raise UserError(f"no stage is in both: {have}; say which with --stages STAGE_A:STAGE_B")
    return pairs


def compare_reports(folders: Sequence[Path], asked: Sequence[str] = ()) -> dict[str, Any]:
    """The record of a comparison: what each letter is, `stages` with their figures, `comparisons` as in report.json, stage "B:NAME" against
    "A:NAME", "C:NAME" against "A:NAME" and so on, p corrected within each; `weights`, the SHA-256 of each run's export where it has one;
    `precisions`, what the towers of each stage that is compared embedded in.

    Raises:
        UserError: a report cannot be read, or they asked different queries; the message names up to five.
    """
    tables = {letter(number): read_queries(folder) for number, folder in enumerate(folders)}
    named = dict(zip(tables, folders, strict=True))
    for name, table in tables.items():
        check_belongs(named[name], table)
    stages = {name: pc.unique(table["stage"]).to_pylist() for name, table in tables.items()}
    pairs = [(one, name, other) for name in list(tables)[1:] for one, other in stage_pairs(stages["A"], stages[name], asked, name)]
    images: dict[str, int] = {}
    measured: dict[tuple[str, Direction], StageMetrics] = {}
    for one, name, other in pairs:
        for direction in DIRECTIONS:
            rows_a, rows_b = (_rows(tables[key], stage, direction, named[key]) for key, stage in (("A", one), (name, other)))
            _check_same_queries(rows_a, rows_b, name)
            for image in rows_a["image_id"].to_pylist():
                images.setdefault(image, len(images))
            measured[f"A:{one}", direction] = StageMetrics.of(rows_a, one, direction, images)
            measured[f"{name}:{other}", direction] = StageMetrics.of(rows_b, other, direction, images)
    rows = compare(measured, [(f"{name}:{other}", f"A:{one}") for one, name, other in pairs], resample_weights(len(images)))
    figures: dict[str, dict[str, Any]] = {}
    for (stage, direction), metrics in measured.items():
        figures.setdefault(stage, {})[direction] = metrics.values()
    record: dict[str, Any] = {name: str(folder) for name, folder in named.items()}
    record |= {"num_images": len(images), "stages": figures, "comparisons": rows}
    precisions = {stage: precision_of(_read_record(named[name]), own) for stage in figures for name, own in (stage.split(":", 1),)}
    return record | {"weights": {name: weights_sha256(folder) for name, folder in named.items()}, "precisions": precisions}


def precision_of(report: Mapping[str, Any], stage: str) -> str:
    """What the towers embedded in for a stage of a report: as its `inputs` say, else as the whole report does, else float32.

    >>> precision_of({"precision": "bf16", "stages": {"base": {"inputs": {"precision": "fp16"}}, "base+blip": {}}}, "base")
    'fp16'
    """
    stages = report.get("stages")
    figures = stages.get(stage) if isinstance(stages, dict) else None
    inputs = figures.get("inputs") if isinstance(figures, dict) else None
    return str((inputs if isinstance(inputs, dict) and "precision" in inputs else report).get("precision", "fp32"))


def precision_lines(record: Mapping[str, Any]) -> list[str]:
    """A sentence on each stage that embedded in another precision than the one it is compared with.

    >>> rows = [{"stage": "B:tuned", "against": "A:tuned"}] * 2
    >>> precision_lines({"precisions": {"A:tuned": "fp32", "B:tuned": "bf16"}, "comparisons": rows})
    ['B:tuned embedded in bf16 and A:tuned in fp32: a few queries of a thousand may differ for that alone']
    """
    pairs = dict.fromkeys((row["stage"], row["against"]) for row in record["comparisons"])
    said = record["precisions"]
    return [
        f"{stage} embedded in {said[stage]} and {against} in {said[against]}: a few queries of a thousand may differ for that alone"
        for stage, against in pairs
        if said[stage] != said[against]
    ]


def weights_sha256(report: Path) -> str | None:
    """SHA-256, hex, of the weights that a run exports, as its manifest.json has it; None: the report is no run's, or has no export.

    Args:
        report: runs/NAME/eval/SPLIT.
    """
    run = RunData.of_report(report)
    if run is None or not (run.folder / "config.yaml").is_file():
        return None
    return sealed_hashes(run.folder / "export").get("model.safetensors")


def letters_of(record: Mapping[str, Any]) -> list[str]:
    """The letters of the runs that a record compares, the first before all."""
    return list(record["weights"])


def same_weights_lines(record: Mapping[str, Any], tuned: str = "tuned") -> list[str]:
    """A sentence on each set of runs that export the same weights, where the stage that has them was compared: it cannot differ.

    That is the stage `tuned`, or of a tuned reranker the one whose name ends so.

    >>> rows = [{"stage": "B:tuned", "against": "A:tuned", "wins": 0, "losses": 0}]
    >>> same_weights_lines({"weights": {"A": "ac6508c4f0", "B": "ac6508c4f0"}, "comparisons": rows})
    ['A and B hold the same weights (SHA-256 ac6508c4): as tuned they cannot differ']
    """
    sharing: dict[str, list[str]] = {}
    for name, sha256 in record["weights"].items():
        if sha256 is not None:
            sharing.setdefault(sha256, []).append(name)
    lines = []
    for sha256, names in sharing.items():
        if len(names) > 1:
            rows = [row for row in record["comparisons"] if _is_of(row, names) and row["stage"].endswith(tuned)]
            if not rows and any(_is_of(row, names) for row in record["comparisons"]):
                continue  # stages of those runs that do not have the weights
            differs = any(row["wins"] or row["losses"] for row in rows)
            said = f"yet {tuned} differs: they were read or measured otherwise" if differs else f"as {tuned} they cannot differ"
            lines.append(f"{' and '.join(names)} hold the same weights (SHA-256 {sha256[:8]}): {said}")
    return lines


def _is_of(row: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a comparison is of two of these runs."""
    return all(row[side].split(":", 1)[0] in names for side in ("stage", "against"))


def main_pairs(record: Mapping[str, Any], tuned: str = "tuned") -> list[tuple[str, str]]:
    """(stage, against) of each run but the first that its one line is about: `tuned` where it was compared, of tuned rerankers the stage
    whose name ends so, else the first pair."""
    found: dict[str, tuple[str, str]] = {}
    for row in record["comparisons"]:
        name, stage = row["stage"].split(":", 1)
        if name not in found or (stage.endswith(tuned) and not found[name][0].endswith(tuned)):
            found[name] = row["stage"], row["against"]
    return list(found.values())


def _rows(table: pa.Table, stage: str, direction: str, folder: Path) -> pa.Table:
    """Rows of one stage in one direction, in order of their queries; each query once."""
    rows = table.filter(pc.and_(pc.equal(table["stage"], stage), pc.equal(table["direction"], direction))).sort_by("query_id")
    counts = pc.value_counts(rows["query_id"]).to_pylist()
    twice = [count["values"] for count in counts if count["counts"] > 1]
    if twice or not counts:
        told = f"{len(twice)} queries are there twice, e.g. {twice[:5]}" if twice else "it has no rows"
        raise UserError(f"{folder}: stage {stage!r}, {direction}: {told}; evaluate again")
    return rows


def _check_same_queries(rows_a: pa.Table, rows_b: pa.Table, name: str) -> None:
    """Refuse to compare what is not paired: other queries, or other relevant items of the same ones."""
    ids_a, ids_b = rows_a["query_id"].to_pylist(), rows_b["query_id"].to_pylist()
    if ids_a != ids_b:
        only_a, only_b = sorted(set(ids_a) - set(ids_b)), sorted(set(ids_b) - set(ids_a))
        raise UserError(
            f"the reports asked different queries: {len(only_a)} only in A, e.g. {only_a[:5]}; {len(only_b)} only in {name}, e.g. "
            f"{only_b[:5]}. Evaluate both on the same manifest and split"
        )
    differing = pc.not_equal(rows_a["num_positives"].combine_chunks(), rows_b["num_positives"].combine_chunks())
    if pc.any(differing).as_py():
        names = rows_a.filter(differing)["query_id"].to_pylist()
        raise UserError(
            f"{len(names)} queries have another number of relevant items in {name} than in A, e.g. {names[:5]}: the reports have "
            "different ground truths (groups, --protocol, --qrels or captions). Evaluate both with the same"
        )


def check_same_ground_truth(one: dict[str, Any] | None, other: dict[str, Any] | None, name: str = "B") -> None:
    """Refuse reports with different ground truths; one that does not say (of an older version) is taken as it is."""
    if one is None or other is None:
        return
    words = [_in_words(truth) for truth in (one, other)]
    if words[0] != words[1]:
        raise UserError(f"the reports have different ground truths: A: {words[0]}; {name}: {words[1]}. Evaluate both with the same")


def _in_words(truth: dict[str, Any]) -> str:
    """What a report's ground truth follows from."""
    near = "" if truth.get("near_duplicates", {}).get("counted_as_right", False) else "not "
    return (
        f"protocol {truth['protocol']}, near-duplicates {near}relevant, qrels {truth.get('qrels', {}).get('sha256')}, "
        f"gallery {truth.get('gallery', 'every')}, punctuation between digits {truth.get('digit_marks', 'stripped')}"
    )
