"""One loaded checkpoint measured on one split: embed and search, check, and keep the per-query rows."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from transformers import SiglipModel

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.inputs import SiglipInputs
from eval.metrics.evaluate import check_stages, query_table
from eval.processes import Processes
from eval.search.retrieve import retrieve


def measure_checkpoint(
    stage: str,
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> pa.Table:
    """The rows of queries.parquet without the retrieved items, of both directions; the same on every process.

    Args:
        stage: the checkpoint's name in the rows.
        on_progress: called with each number of rows embedded on this process; images + captions in all.

    Raises:
        UserError: a picture does not decode, or something is not finite.
    """
    found = retrieve(stage, model, inputs, dataset, processes=processes, num_workers=num_workers, on_progress=on_progress)
    check_stages(dataset, [found], ())
    return query_table(dataset, [found]).drop_columns(["top_ids", "top_scores"])
