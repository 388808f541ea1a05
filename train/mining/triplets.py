"""python -m train.mining.triplets RUN_FOLDER --output FILE [--layout sentence-transformers] [--negatives N] [--table HASH]

What a run has mined, as triplets or tuples with paths and texts, for sentence-transformers, FlagEmbedding and ms-swift.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command import run_command
from eval.command_line import CommandParser, WholeNumber
from eval.errors import UserError
from eval.files import command_line

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from train.config.mining import MiningConfig
    from train.data.caption_pool import CaptionPool

_LAYOUTS, _SUFFIXES = ("sentence-transformers", "flagembedding", "ms-swift"), (".jsonl", ".parquet")
_ROWS_AT_ONCE = 4096


def make_parser() -> CommandParser:
    """The options."""
    description = "Write what a run has mined as triplets or tuples, with paths and texts, for other trainers."
    parser = CommandParser("train.mining.triplets", description, "triplets runs/mined --negatives 4 --output runs/mined/tuples.jsonl")
    add = parser.add_argument
    add(
        "run_folder",
        type=Path,
        metavar="RUN_FOLDER",
        help="folder of a run that mined, by ./launch.sh mine or in training; or that mine --model --data wrote",
    )
    add("--output", type=Path, required=True, metavar="FILE", help=f"file to write: *{' or *'.join(_SUFFIXES)}")
    add("--layout", choices=_LAYOUTS, default=_LAYOUTS[0], help="for whom, see docs/triplets.md (default sentence-transformers)")
    add(
        "--negatives",
        type=WholeNumber(1),
        metavar="N",
        help="negatives in a row, the hardest first, 1 or more; for sentence-transformers exactly so many, and rows with fewer are left "
        "out (default: 1 for sentence-transformers, all for the others)",
    )
    add("--table", metavar="HASH", help="name of a table of the folder (default: the newest)")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="new folder for pictures that are embedded in the data and have no path (default: OUTPUT without its ending, and -images)",
    )
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if asked.output.suffix not in _SUFFIXES:
        parser.error(f"--output {asked.output}: expected a name that ends in one of {', '.join(_SUFFIXES)}")
    return run_command(lambda: run(asked), writes=[asked.output])


def run(asked: argparse.Namespace) -> None:
    """Read the run's data and table, and write.

    Raises:
        UserError: the run, its data or its table cannot be used, or the file cannot be written.
    """
    from eval.errors import reading, writing
    from train.data.negatives import read_negatives
    from train.mining.layouts import RowMaker, mined_anchors
    from train.mining.pairs import ASKED, read_mined_pairs

    is_run = not (asked.run_folder / ASKED).is_file() or (asked.run_folder / "config.yaml").is_file()
    with reading():
        if is_run:
            path, pool, mining, source = _of_run(asked.run_folder, asked.table)
        else:
            path = _table(asked.run_folder, asked.table)
            pool, mining, source = read_mined_pairs(asked.run_folder, path.stem)
    try:
        negatives = read_negatives(path, path.stem, pool)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read as mined negatives of {source} ({error}). Mine again") from error
    images_mined = mining is not None and mining.form == "images"
    anchors = list(mined_anchors(negatives, pool, images_mined=images_mined))
    used = {anchor.anchor for anchor in anchors}
    if images_mined:
        used = {image for anchor in anchors for image in (*anchor.positives, *anchor.negatives)}
    with writing(asked.output):
        picture = _pictures(pool.dataset, used, asked.images or asked.output.with_name(f"{asked.output.stem}-images"))
        maker = RowMaker(layout=asked.layout, picture=picture, text=pool.text, images_mined=images_mined, num_negatives=asked.negatives)
        num_rows = _write(asked.output, (row for anchor in anchors for row in maker.rows(anchor)))
    noun = "captions" if images_mined else "images"
    print(f"written  {asked.output}: {num_rows:,} rows of {len(anchors):,} {noun}, from {path}")


def _of_run(folder: Path, table: str | None) -> "tuple[Path, CaptionPool, MiningConfig | None, str]":
    """A table of a run, the pool it was mined in, the rules, and the data as a person names them.

    Raises:
        UserError: the run, its base, its table or its data cannot be used.
    """
    from eval.encoder.checkpoint import load_inputs
    from train.config.load import read_run
    from train.data.caption_pool import CaptionPool
    from train.data.splits import load_data
    from train.engine.command import naming_all_inputs

    config = read_run(folder)
    with naming_all_inputs(config):
        inputs = load_inputs(config.base, strip_punctuation=config.model.strip_punctuation)
    path = _table(folder / "negatives", table)
    with naming_all_inputs(config):
        splits = load_data(config).as_read_by(inputs)
    return path, CaptionPool(splits.train, splits.additional), config.mining, config.data.source


def _table(folder: Path, name: str | None) -> Path:
    """The file of a table.

    Raises:
        UserError: there is none.
    """
    found = sorted(filter(_is_table, folder.glob("*.parquet")), key=lambda path: path.stat().st_mtime)
    if name is not None:
        found = [path for path in found if path.stem == name]
    if not found:
        what = f"no table {name!r}" if name is not None else "no table of mined negatives"
        raise UserError(f"{folder}: {what}; expected HASH.parquet, which ./launch.sh mine and runs with a section mining write")
    return found[-1]


def _is_table(path: Path) -> bool:
    """Whether a file is a table of mined negatives: it says its own name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return (pq.read_schema(path).metadata or {}).get(b"name") == path.stem.encode()
    except (OSError, pa.ArrowException):
        return True  # to be told when it is read


def _pictures(dataset: "RetrievalSet", used: Iterable[int], folder: Path) -> Callable[[int], str]:
    """Path of an image, absolute; those that are embedded in the data and used are written to the folder first.

    Raises:
        UserError, OSError: the folder cannot be written, or is not empty.
    """
    from io import BytesIO

    from PIL import Image

    from eval.atomic import new_folder

    embedded = {image: f"{image:08d}" for image in sorted(used) if not dataset.path(image)}
    if embedded:
        if folder.exists():
            raise UserError(f"{folder}: expected a folder that is not there yet, for the pictures; remove it, or name another by --images")
        with new_folder(folder) as temporary:
            for image in embedded:
                content = dataset.embedded_bytes(image)
                with Image.open(BytesIO(content)) as opened:
                    embedded[image] += f".{(opened.format or 'png').lower()}"
                (temporary / embedded[image]).write_bytes(content)
    place = folder.resolve()
    return lambda image: str(place / embedded[image]) if image in embedded else str(Path(dataset.path(image)).resolve())


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows, whole or not at all; returns their number."""
    import json
    from itertools import islice

    import pyarrow as pa
    import pyarrow.parquet as pq

    from eval.atomic import replace_files

    left, num_rows = iter(rows), 0

    def parts() -> Iterable[list[dict[str, Any]]]:
        nonlocal num_rows
        while part := list(islice(left, _ROWS_AT_ONCE)):
            num_rows += len(part)
            yield part

    def check_some() -> None:
        if not num_rows:
            raise UserError(f"{path}: not written, for nothing was mined that makes a row; ask for fewer --negatives")

    def write_jsonl(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for part in parts():
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        check_some()

    def write_parquet(temporary: Path) -> None:
        writer = None
        for part in parts():
            table = pa.Table.from_pylist(part)
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
        check_some()

    replace_files({path: write_jsonl if path.suffix == ".jsonl" else write_parquet})
    return num_rows


if __name__ == "__main__":
    sys.exit(main(command_line()))
