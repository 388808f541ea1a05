"""One refresh of the negatives, and the name of the table that it makes: a hash of all that decides what is mined."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.encoder.checkpoint import hash_weights
from eval.execution import Precision
from rerank.scorers.scorer import PairScorer
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives, table_name
from train.mining.candidates import Retriever
from train.mining.cross_encoder import MiningCrossEncoder
from train.mining.faiss_index import require_faiss

_RULES = (
    "negatives_per_image", "margin", "pool_top_k", "near_duplicates", "rank_min", "rank_max", "max_score", "perc_pos", "margin_pos",
    "max_uses", "selection",
)  # fmt: skip


@dataclass(frozen=True)
class Refresh:
    """One refresh of the negatives: at which step, for which images, and after which table.

    Attributes:
        seed, step: of the run; random numbers are keyed by them and the query.
        images_I: int64, the images to mine for, ascending; None: all.
        before: the table that this one takes the place of; None for the first.
    """

    seed: int = 0
    step: int = 0
    images_I: np.ndarray | None = None
    before: Negatives | None = None


def rules_of(
    config: MiningConfig, refresh: Refresh = Refresh(), cross_encoder: PairScorer | None = None, pool: CaptionPool | None = None
) -> dict[str, Any]:
    """What decides which captions are mined, next to weights and data (the weight in the loss does not); part of the table's name."""
    rules: dict[str, Any] = config.model_dump(include=set(_RULES))
    if config.selection == "softmax":
        rules["temperature"] = config.temperature or 1.0
    if config.selection != "top":
        rules["draws"] = [refresh.seed, refresh.step]
    if refresh.images_I is not None:
        rules["images"] = hashlib.sha256(refresh.images_I.astype(np.int64).tobytes()).hexdigest()
    if pool is not None and len(pool) > pool.num_captions:
        rules["pool"] = pool.additional.sha256
    if pool is not None:  # where these are none, what is mined is as before there was a rule on them
        rules |= {"equal_tokens": "never"} if pool.has_equal_tokens else {}
        rules |= {"digit_marks": "kept"} if pool.dataset.keeps_marks else {}
        rules |= {"invisible": "dropped"} if pool.has_invisible else {}
    if config.index == "faiss":
        rules |= {"index": "faiss", "index_probes": config.index_probes, "faiss": require_faiss().__version__}
    if cross_encoder is not None and config.denoise is not None:
        rules["denoise"] = [cross_encoder.fingerprint, config.denoise.threshold, config.denoise.relabel_at]
    if cross_encoder is not None and config.distil is not None:
        rules["distil"] = [cross_encoder.fingerprint, config.distil.form]
    return rules


def table_name_of(
    retriever: Retriever,
    pool: CaptionPool,
    config: MiningConfig,
    refresh: Refresh,
    cross_encoder: MiningCrossEncoder | None,
    precision: Precision = "fp32",
) -> str:
    """The name of a table to be mined.

    Args:
        precision: what the towers embed in.

    Raises:
        ValueError: a cross-encoder is given and neither config.denoise nor config.distil asks for one, or the other way round.
    """
    if (config.denoise is None and config.distil is None) != (cross_encoder is None):
        raise ValueError("a cross-encoder is given if and only if config.denoise or config.distil asks for one")
    rules = rules_of(config, refresh, cross_encoder.scorer if cross_encoder is not None else None, pool)
    rules |= ({"form": "images"} if config.form == "images" else {}) | retriever.inputs.contract
    rules |= {"precision": precision} if precision != "fp32" else {}
    return table_name(hash_weights(retriever.model), pool.data_sha256, rules)
