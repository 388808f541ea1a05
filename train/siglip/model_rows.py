"""Per-query rows of models made by hand, from the weights of others (train/soup, train/wise): computed and written."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eval.atomic import Content, replace_files
from eval.dataset.retrieval_set import RetrievalSet
from eval.execution import Execution
from eval.metrics.measurement import measure_checkpoint
from eval.processes import Processes
from eval.search.retrieve import progress_bar
from train.model.siglip import TunedModel


def measure_model(stage: str, tuned: TunedModel, dataset: RetrievalSet, num_workers: int, text: str = "") -> pa.Table:
    """Per-query rows without the retrieved ids, computed on a GPU if there is one.

    Args:
        text: of the progress bar; empty: the stage.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tuned.siglip.to(device)  # type: ignore[arg-type]  # transformers wraps it
    with progress_bar(text or stage, dataset, Processes()) as bar:
        execution = Execution(device=device, num_workers=num_workers, on_progress=bar.update)
        return measure_checkpoint(stage, tuned.siglip, tuned.inputs, dataset, execution=execution)


def write_results(path: Path, record: Mapping[str, Any], tables: Mapping[str, pa.Table]) -> None:
    """Write a JSON file and, next to it, per-query rows as NAME.parquet, all committed together by renames; raises OSError."""
    files: dict[Path, Content] = {path.with_name(f"{name}.parquet"): partial(pq.write_table, table) for name, table in tables.items()}
    replace_files(files | {path: json.dumps(record, indent=1, allow_nan=False) + "\n"})
