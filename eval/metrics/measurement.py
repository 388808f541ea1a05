"""One loaded checkpoint measured on one split: embed and search, check, and keep the per-query rows."""

import pyarrow as pa
from transformers import SiglipModel

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.inputs import SiglipInputs
from eval.execution import ONE_PROCESS, Execution
from eval.metrics.evaluate import query_table
from eval.search.retrieve import retrieve


def measure_checkpoint(
    stage: str, model: SiglipModel, inputs: SiglipInputs, dataset: RetrievalSet, *, execution: Execution = ONE_PROCESS
) -> pa.Table:
    """The rows of queries.parquet without the retrieved items, of both directions; the same on every process.

    Raises:
        UserError: a picture does not decode, or something is not finite.
    """
    found = retrieve(stage, model, inputs, dataset, execution=execution)
    return query_table(dataset, [found]).drop_columns(["top_ids", "top_scores"])
