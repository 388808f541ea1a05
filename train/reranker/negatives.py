"""The two tables a cross-encoder is tuned on: hard captions of every image and hard images of every caption, mined once by one SigLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from eval.errors import UserError
from rerank.scorers.load import load_scorer
from rerank.scorers.scorer import ScorerSettings
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.hard_image_order import HardImages
from train.data.negatives import Negatives, read_negatives, write_negatives
from train.mining.candidates import Retriever
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.mine import mine
from train.mining.refresh import Refresh
from train.mining.report_page import write_mining_report
from train.model.frozen_tower import FrozenStore
from train.reranker.batches import HardTables

if TYPE_CHECKING:
    from train.mining.report import MiningReport
    from train.reranker.job import RerankerJob

Form = Literal["columns", "images"]


def forms_of(job: RerankerJob) -> list[Form]:
    """The tables that are asked for."""
    asked: dict[Form, int] = {"columns": job.config.negatives.captions_per_image, "images": job.config.negatives.images_per_caption}
    return [form for form, count in asked.items() if count]


def mine_tables(job: RerankerJob, on_progress: Callable[[int], Any]) -> dict[Form, tuple[Negatives, MiningReport]]:
    """Mine, and write runs/NAME/negatives/FORM.parquet with its report (main process). Call on every process.

    Raises:
        UserError: an embedding is not finite.
        OSError: something cannot be written.
    """
    model, inputs = job.retriever.siglip, job.retriever.inputs
    folder, forms = job.folder / "negatives", forms_of(job)
    model.to(job.accelerator.device)  # type: ignore[arg-type]  # transformers wraps it
    frozen = NOTHING_FROZEN
    if len(forms) > 1:  # both read the retriever's embeddings, which are made once
        store = FrozenStore(job.folder / "frozen", job.retriever, job.pool, job.processes)
        frozen = FrozenEmbeddings(store.rows("image", job.execution(on_progress)), store.rows("text", job.execution(on_progress)))
    execution = job.execution(on_progress if frozen is NOTHING_FROZEN else lambda rows: on_progress(0))  # 0: to look for a signal
    scorer = None
    if job.config.negatives.drop_matches_at is not None:  # the cross-encoder before it is tuned
        scorer = load_scorer(job.base, device=job.accelerator.device, settings=ScorerSettings(score_kind="margin"))
    found: dict[Form, tuple[Negatives, MiningReport]] = {}
    for form in forms:
        table, report = mine(
            Retriever(model, inputs, frozen),
            job.pool,
            job.config.negatives.mining(form),
            refresh=Refresh(job.config.seed),
            cross_encoder=None if scorer is None else MiningCrossEncoder(scorer, job.pool, execution=execution),
            folder=folder,
            truth=job.truth,
            execution=execution,
        )
        with job.processes.jointly():
            if job.processes.is_main:
                write_negatives(folder / f"{form}.parquet", table, job.pool)
                write_mining_report(folder, report, table, job.pool, job.truth, step=0)
        found[form] = table, report
    model.to("cpu")  # type: ignore[arg-type]
    return found


def read_tables(job: RerankerJob, names: str) -> dict[Form, Negatives]:
    """The tables that were mined when the run began. Call on every process.

    Args:
        names: what they were called then, in the order of their forms.

    Raises:
        UserError: one is missing or is not the one that was mined.
    """
    folder = job.shared.bring(job.folder / "negatives")

    def read() -> dict[Form, Negatives]:
        found: dict[Form, Negatives] = {}
        for form, name in zip(forms_of(job), names.split(), strict=True):
            path = folder / f"{form}.parquet"
            try:
                found[form] = read_negatives(path, name, job.pool)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path}: the hard negatives that this run was begun with cannot be read ({error}). Restore the file, or start again "
                    "under another name="
                ) from error
        return found

    return job.processes.together(read)


def as_hard_tables(job: RerankerJob, tables: dict[Form, Negatives]) -> HardTables:
    """The tables as batches read them."""
    images = HardImages.of_table(tables["images"], job.train_set.num_captions) if "images" in tables else None
    return HardTables(tables.get("columns"), images)
