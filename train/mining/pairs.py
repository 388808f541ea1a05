"""Mine with a checkpoint and pairs alone: the rules, defaults and report of a run's mining, without a run.

mined = mine_pairs("google/siglip-base-patch16-224", "pairs.csv", "mined", rules={"negatives_per_image": 8, "margin": -3.0})
mined.table  # image_id, caption_id, caption, rank, score, margin, ...
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from eval.atomic import replace_files
from eval.dataset.caption_rule import as_read_by
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_inputs, load_siglip
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError, named
from eval.execution import ONE_PROCESS, Execution
from eval.files import read_text
from eval.manifest.manifest import read_manifest
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import PairScorer
from rerank.scoring.score_cache import ScoreCache
from train.config.load import fault_lines
from train.config.mining import MiningConfig, with_preset
from train.data.caption_pool import CaptionPool, read_additional_captions
from train.data.negatives import write_negatives
from train.mining.candidates import Retriever
from train.mining.cross_encoder import SETTINGS, MiningCrossEncoder
from train.mining.faiss_index import require_faiss
from train.mining.mine import mine
from train.mining.report import MiningReport
from train.mining.report_page import write_mining_report

ASKED = "pairs.json"
"""What of a folder says how each of its tables was mined: by the table's name model, data and rules."""
_OF_RUNS = ("mine_every_steps", "mine_every_epochs", "start_step", "scope", "weight", "mined_scope", "ranking")
"""Keys of `mining` that say when a run mines, or what its loss makes of it."""


@dataclass(frozen=True)
class MinedPairs:
    """What was mined.

    Attributes:
        path: OUTPUT/HASH.parquet; the mining report lies next to it, as .json and .html.
        report: its figures.
        table: the rows of the file with the text of each caption; a label of -1 is a negative.
    """

    path: Path
    report: MiningReport
    table: pa.Table


def mining_rules(rules: Mapping[str, Any] | str) -> MiningConfig:
    """The rules of a mining without a run: keys of a configuration's `mining` section, or the name of a preset.

    Raises:
        UserError: a key is unknown, of a run alone, or its value cannot be used.

    >>> mining_rules("gentle").negatives_per_image, mining_rules({"preset": "gentle", "rank_min": 5}).rank_min, mining_rules({}).rank_min
    (2, 5, 1)
    """
    record = with_preset(rules)
    if isinstance(record, str):
        record = {"preset": record}
    own = dict(rules) if not isinstance(rules, str) else {}
    if of_runs := [key for key in _OF_RUNS if key in own]:
        raise UserError(f"mining.{' and mining.'.join(of_runs)}: of a run's training, and nothing is trained here; leave out")
    try:
        config = MiningConfig.model_validate({**record, "mine_every_epochs": 1})
    except ValidationError as error:
        lines = "\n".join(line.replace("  ", "  mining.", 1) for line, _ in fault_lines(error, MiningConfig))
        raise UserError(f"{error.error_count()} fault(s) in what is asked of mining\n{lines}") from None
    if config.index == "faiss":
        require_faiss()
    return config


def mine_pairs(
    model: str,
    data: str,
    output: str | Path,
    *,
    split: str | None = None,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    rules: Mapping[str, Any] | str = {},  # noqa: B006  # read alone
    execution: Execution = ONE_PROCESS,
) -> MinedPairs:
    """Mine hard negatives for pairs with a SigLIP checkpoint, and write table and report. Call on every process.

    Args:
        model: a folder or hub id.
        data: labelled pairs, of any format of docs/data.md.
        output: folder to write to; made if need be.
        split: rows to mine for; None: "train" where the data have splits, else all.
        image_root: folder that image paths are relative to; None: that of `data`.
        columns: our column (image, caption, captions, id, split, group) -> the data's name for it.
        rules: keys of a configuration's `mining` section (docs/mining-rules.md), or a preset: gentle, standard, hard.

    Raises:
        UserError: model, data or a rule cannot be used.
        OSError: the files cannot be written.
    """
    config, processes = mining_rules(rules), execution.processes
    with processes.jointly():
        siglip, inputs = load_siglip(model)
        scorer = _cross_encoder(config, execution)
        read = {"split": split, "image_root": image_root, "columns": dict(columns or {})}
        pool, folder = _pool(inputs, data, config, **read), Path(output)
        folder.mkdir(parents=True, exist_ok=True)
    siglip.to(execution.device)  # type: ignore[arg-type]  # transformers wraps it
    cross_encoder = None
    if scorer is not None:
        cached = processes.together(lambda: ScoreCache(folder / "pair-scores"))
        cross_encoder = MiningCrossEncoder(scorer, pool, cache=cached, execution=execution)
    negatives, report = mine(Retriever(siglip, inputs), pool, config, cross_encoder=cross_encoder, folder=folder, execution=execution)
    path = folder / f"{negatives.name}.parquet"
    with processes.jointly():
        if processes.is_main:
            write_negatives(path, negatives, pool)
            rules_then = config.model_dump(mode="json") | {"pool": None if config.pool is None else _lasting(config.pool)}
            asked = {"model": _lasting(model), "data": _lasting(data), **read, "mining": rules_then}
            asked["image_root"] = None if image_root is None else os.path.abspath(image_root)
            tables = _asked_of(folder) | {negatives.name: asked}
            replace_files({folder / ASKED: json.dumps(tables, indent=1) + "\n"})
            write_mining_report(folder, report, negatives, pool)
    return MinedPairs(path, report, _with_texts(path, pool))


def _asked_of(folder: Path) -> dict[str, Any]:
    """What was asked of each table of a folder; empty: it cannot be read."""
    try:
        found = json.loads(read_text(folder / ASKED))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_mined_pairs(folder: Path, table: str) -> tuple[CaptionPool, MiningConfig, str]:
    """The pool that a table of a folder was mined in, by which rules, and its data as a person names them.

    Raises:
        UserError: the table was not mined there by `mine_pairs`, or model or data cannot be used any more.
    """
    path = folder / ASKED
    try:
        asked = json.loads(read_text(path))[table]
        config, model, data = MiningConfig.model_validate(asked["mining"]), str(asked["model"]), str(asked["data"])
        read = {key: asked[key] for key in ("split", "image_root", "columns")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as what was asked of a mining ({error}). Mine again") from error
    return _pool(load_inputs(model), data, config, **read), config, data


def _pool(inputs: SiglipInputs, data: str, config: MiningConfig, **read: Any) -> CaptionPool:
    """What is mined in: the captions of the split, and those of mining.pool."""
    additional = read_additional_captions(config.pool) if config.pool is not None else None
    (dataset,) = as_read_by([inputs], [_read(data, **read)], additional.texts if additional is not None else ())
    return CaptionPool(dataset, additional)


def _lasting(name: str) -> str:
    """A path as it is found from any folder; an id of the hub as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def _read(data: str, split: str | None, image_root: str | None, columns: Mapping[str, str] | None) -> RetrievalSet:
    """The split to mine for."""
    wanted = [split] if split is not None else []
    manifest = read_manifest(data, image_root=image_root, columns=columns or {}, require_splits=wanted)
    if split is None and manifest.splits != [None]:
        split = "train"
    return load_split(manifest, split)


def _cross_encoder(config: MiningConfig, execution: Execution) -> PairScorer | None:
    """That of denoise and distil; None: neither is asked for."""
    sections = {"denoise": config.denoise, "distil": config.distil}
    asked = {key: section.model for key, section in sections.items() if section is not None}
    models = list(dict.fromkeys(model for model in asked.values() if model is not None))
    if not asked:
        return None
    if len(models) != 1:
        raise UserError(
            f"mining.{' and mining.'.join(asked)}: expected the model of one cross-encoder, found {models or 'none'}; give model"
        )
    with named({"reranker": f"mining.{next(key for key, model in asked.items() if model is not None)}.model"}):
        return load_scorer(models[0], device=execution.device, settings=SETTINGS)


def _with_texts(path: Path, pool: CaptionPool) -> pa.Table:
    """The written rows with a column `caption`, after the caption's id."""
    table = pq.read_table(path)
    number = {image: index for index, image in enumerate(pool.dataset.image_ids)}
    texts = [pool.text(pool.index_of(name, number)) for name in table["caption_id"].to_pylist()]
    return table.add_column(table.column_names.index("caption_id") + 1, "caption", pa.array(texts, type=pa.string()))
