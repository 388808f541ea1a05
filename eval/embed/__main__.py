"""python -m eval.embed --model DIR_OR_RUN --data MANIFEST [--split test] --output FOLDER [--dtype float16] [--format npy]

Writes the ids and unit vectors of the images and captions of a manifest, for FAISS, Qdrant, LanceDB and others, and vectors.json, which
says what made them. Over several processes: torchrun --nproc-per-node N -m eval.embed ..., with the same vectors to the last bit.
Exit codes: 0 done · 2 bad arguments or data · 4 could not write · 5 not finite · 6 out of memory.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command import run_evaluation
from eval.command_line import CommandParser, add_num_workers, add_strip_punctuation
from eval.files import command_line
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault

if TYPE_CHECKING:
    import numpy as np
    import torch

    from eval.dataset.retrieval_set import RetrievalSet
    from eval.embed.vectors import Side
    from eval.execution import Execution
    from eval.processes import Processes

_EXAMPLE = "embed --model runs/demo --data demo/data/scenes.parquet --column group=scene --split test --dtype float16 --output runs/vectors"
_DTYPES, _FORMATS = ("float32", "float16", "int8"), ("parquet", "npy")


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser("eval.embed", "Write ids and unit vectors of the images and captions of a manifest.", _EXAMPLE)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="SigLIP checkpoint: the folder of a run, whose export is taken, an export such as runs/demo/export, or OWNER/NAME[@REVISION] "
        "of the hub",
    )
    add("--data", required=True, metavar="MANIFEST", help=f"images and captions: {MANIFEST}")
    add("--split", help="rows to embed; splits that the run of --model made of the same data count too (default: all rows)")
    add_manifest_options(parser)
    add("--output", required=True, metavar="FOLDER", help="folder for vectors.json and the vectors of images and captions")
    add("--dtype", choices=_DTYPES, default="float32", help="of the stored vectors; docs/vectors.md says what is lost (default float32)")
    add("--format", choices=_FORMATS, default="parquet", help="parquet: ids and vectors together; npy: apart (default parquet)")
    add("--skip-missing", action="store_true", help="leave out rows whose picture is not there (default: they are refused)")
    add("--skip-broken", action="store_true", help="leave out pictures that do not decode (default: they are refused)")
    add("--nnn-bank", metavar="SPLIT", help="reference queries of nearest-neighbour normalisation, such as train (default: none)")
    for side in ("images", "captions"):
        add(
            f"--nnn-{side}",
            type=number_and_weight,
            metavar="K:ALPHA",
            help=f"write ALPHA, above 0, times the mean of the K best cosines, 1 or more, of each of the {side} with --nnn-bank as its "
            "correction (default: none)",
        )
    add_strip_punctuation(parser)
    add_num_workers(parser)
    return parser


def number_and_weight(text: str) -> tuple[int, float]:
    """K and alpha of K:ALPHA; the type of an argument."""
    number, _, weight = text.partition(":")
    try:
        found = int(number), float(weight)
    except ValueError:
        found = 0, 0.0
    if found[0] < 1 or not 0 < found[1] < float("inf"):
        raise argparse.ArgumentTypeError(f"expected K:ALPHA, a whole number from 1 and a number above 0, e.g. 8:0.75; found {text!r}")
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = make_parser()
    asked = parser.parse_args(arguments)
    if fault := column_fault(asked):
        parser.error(fault)
    corrects = asked.nnn_images is not None or asked.nnn_captions is not None
    if corrects != (asked.nnn_bank is not None):
        parser.error("--nnn-bank names the reference queries of --nnn-images and --nnn-captions: give it with one of them, or neither")
    if asked.nnn_bank is not None and asked.split in (None, asked.nnn_bank):
        parser.error(f"--nnn-bank {asked.nnn_bank} is among what is embedded: name another split with --split")
    return asked


def run(asked: argparse.Namespace, processes: "Processes", device: "torch.device") -> None:
    """Embed and write; call on every process. What goes wrong on one is raised on all.

    Raises:
        UserError: model or data cannot be used, or the files cannot be written.
    """
    from contextlib import ExitStack

    from eval.dataset.broken import without_broken
    from eval.dataset.retrieval_set import RetrievalSet, load_split
    from eval.embed.vectors import RECORD, write_vectors
    from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
    from eval.errors import named, reading
    from eval.execution import Execution
    from eval.manifest.names import OPTIONS, calling
    from eval.manifest.run_data import exported
    from eval.process_group import use_exact_float32
    from rerank.asked import read_data

    use_exact_float32()
    with processes.jointly():
        name = exported(asked.model)
    execution = Execution(processes=processes, device=device, num_workers=asked.num_workers)
    as_evaluated = {"model": name, "split_file": None, "choose_on": None, "calibrate_on": None, "nnn": asked.nnn_bank, "slice_by": []}
    with processes.jointly(), reading(), named({"model": "--model"}), calling(OPTIONS):
        load_siglip_config(name)
        manifest = read_data(argparse.Namespace(**vars(asked) | as_evaluated), [])
    if asked.skip_broken:
        splits = list(manifest.splits) if asked.split is None else [asked.split, *([asked.nnn_bank] if asked.nnn_bank else [])]
        manifest = without_broken(manifest, splits, execution)
    if processes.is_main:
        print("".join(f"{line}\n" for line in manifest.lines()), end="", flush=True)
    with processes.jointly(), reading(), named({"model": "--model"}):
        if asked.split is None:  # rows of every split
            dataset = RetrievalSet(manifest.images, manifest, source=manifest.source, split=None)
        else:
            dataset = load_split(manifest, asked.split)
        bank = load_split(manifest, asked.nnn_bank) if asked.nnn_bank is not None else None
        model, inputs = load_siglip(name, strip_punctuation=asked.strip_punctuation)
        model.to(device)  # type: ignore[arg-type]  # transformers wraps it
    with ExitStack() as files:
        embedder = _Embedder(model, inputs, Path(asked.output), execution, files)
        rows = {side: embedder.side(dataset, side) for side in ("images", "captions")}
        asked_of = {"images": asked.nnn_images, "captions": asked.nnn_captions}
        corrections = {side: embedder.correction(rows[side], bank, side, one) for side, one in asked_of.items() if one is not None and bank}
        record = {
            "model": _model_record(name, model, inputs, hash_weights(model)),
            "data": {"source": dataset.source} | dataset.record(),
            "nnn": {"bank": bank.record(), **{side: {"k": one[0], "alpha": one[1]} for side, one in asked_of.items() if one is not None}}
            if bank is not None
            else None,
        }
        del model, embedder
        write_vectors(Path(asked.output), _sides(dataset, rows, corrections), record, asked.dtype, asked.format, processes)
    if processes.is_main:
        counts = f"{dataset.num_images:,} images, {dataset.num_captions:,} captions"
        print(f"vectors  {asked.output}: {counts}, {asked.dtype} of width {rows['images'].width} ({RECORD} says what they are)")


class _Embedder:
    """Embeds sides to files of no name, which are gone when `files` closes."""

    def __init__(self, model: Any, inputs: Any, folder: Path, execution: "Execution", files: Any) -> None:
        self._model, self._inputs, self._folder, self._execution, self._files = model, inputs, folder, execution, files

    def side(self, dataset: "RetrievalSet", side: str) -> Any:
        """The vectors of one side of a set, on disk."""
        from dataclasses import replace

        from eval.encoder.embedding_files import Shards
        from eval.encoder.encoder import block_of, stream_captions, stream_images
        from eval.progress import bar

        processes, images = self._execution.processes, side == "images"
        num_rows = dataset.num_images if images else dataset.num_captions
        with processes.jointly():
            self._folder.mkdir(parents=True, exist_ok=True)
            block = block_of(self._model, "image" if images else "text")
            rows = self._files.enter_context(Shards(self._folder, num_rows, block, processes))
        text = f"{side} ({dataset.split or 'all rows'})"
        with bar(num_rows // processes.world_size, text, "row", show=processes.is_main, leave=False) as shown:
            execution = replace(self._execution, on_progress=shown.update)
            if images:
                stream_images(self._model, self._inputs, dataset, rows.append, execution=execution, names=dataset.image_ids)
            else:
                stream_captions(self._model, self._inputs, dataset.captions, rows.append, execution=execution)
        rows.seal()
        return rows

    def correction(self, rows: Any, bank: "RetrievalSet", side: str, asked: tuple[int, float]) -> "np.ndarray":
        """Of each row the number that nearest-neighbour normalisation takes off its scores, float64 of shape (N,)."""
        from eval.search.nnn import nearest_means

        number, alpha = asked
        queries = self.side(bank, "captions" if side == "images" else "images")
        return alpha * nearest_means(rows, queries, [number], execution=self._execution)[0]


def _model_record(name: str, model: Any, inputs: Any, weights_sha256: str) -> dict[str, Any]:
    from eval.encoder.hub import revision_in_use
    from eval.encoder.identity import identity_of, identity_sha256

    return {
        "name": name,
        "revision": revision_in_use(name),
        "weights_sha256": weights_sha256,
        "identity_sha256": identity_sha256(identity_of(model.config, inputs.image_processor, inputs.tokenizer, name)),
        "logit_scale": float(model.logit_scale.detach().exp()),
        "logit_bias": float(model.logit_bias.detach()),
        "inputs": dict(inputs.contract),
    }


def _sides(dataset: "RetrievalSet", rows: dict[str, Any], corrections: "dict[str, np.ndarray]") -> "dict[str, Side]":
    from eval.dataset.retrieval_set import StringColumn
    from eval.embed.vectors import Side

    image_ids = dataset.image_ids
    columns: dict[str, dict[str, Sequence[Any]]] = {
        "images": {"id": image_ids},
        "captions": {
            "id": dataset.caption_ids,
            "image_id": StringColumn(image_ids.array.take(dataset.caption_image_C)),
            "text": dataset.captions,
        },
    }
    return {
        side: Side(rows=one, columns=columns[side] | ({"correction": corrections[side]} if side in corrections else {}))
        for side, one in rows.items()
    }


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    return run_evaluation(lambda processes, device: run(asked, processes, device), writes=[Path(asked.output) / "vectors.json"])


if __name__ == "__main__":
    sys.exit(main(command_line()))
