"""Mine hard-negative captions: what the model itself ranks highest for an image and what is known not to be true of it.

Mining is retrieval (eval/search), so what is mined and what is measured cannot disagree. Every caption that is passed over is counted
by its reason; where fewer than asked for remain, the shortfall stays and is counted. Shape letters: I images, K pool, N rows of the
table, D width.
`python -m train.mining CONFIG.yaml` mines only, with the base model (train/mining_command.py).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.checkpoint import hash_weights
from eval.dataset import RetrievalSet
from eval.inputs import SiglipInputs
from eval.processes import Processes
from train.approximate import Approximate
from train.candidates import find_candidates
from train.config import MiningConfig
from train.negatives import Negatives, table_name


@dataclass(frozen=True)
class MiningSheet:
    """What a mining did, in numbers a person can check.

    Attributes:
        num_images: images mined for.
        num_mined: rows of the table.
        num_looked_at: candidates looked at, over all images, until each had enough.
        num_known_positives: candidates passed over because the data says they are true.
        num_within_margin: passed over because they score too close to, or above, the image's best true caption.
        num_same_text: passed over because the same text was already taken for the image.
        num_short_images: images with fewer negatives than asked for.
        shortfall: negatives missing over all images.
        num_undecodable: images without a picture that decodes; nothing is mined for them.
        num_positives_mined: mined pairs that the data says are true: always 0, counted all the same.
        num_false_negatives: mined pairs that data.truth says are true; None without one.
        median_rank, median_margin: of the mined rows (margin in logits); None when nothing was mined.
        index_recall: share of the exact candidates an approximate search found, on a sample of images; None where the search was exact.
    """

    name: str
    num_images: int
    num_mined: int
    num_looked_at: int
    num_known_positives: int
    num_within_margin: int
    num_same_text: int
    num_short_images: int
    shortfall: int
    num_undecodable: int
    num_positives_mined: int
    num_false_negatives: int | None
    median_rank: float | None
    median_margin: float | None
    index_recall: float | None = None

    @property
    def false_negative_share(self) -> float | None:
        """Share of mined pairs that are true by data.truth; None without one or without rows."""
        return None if self.num_false_negatives is None or not self.num_mined else self.num_false_negatives / self.num_mined

    def as_record(self) -> dict[str, Any]:
        """The fields and the share, for a line of metrics.jsonl."""
        return asdict(self) | {"false_negative_share": self.false_negative_share}

    def __str__(self) -> str:
        text = (
            f"mined {self.num_mined:,} negatives for {self.num_images:,} images (table {self.name}); passed over: "
            f"{self.num_known_positives:,} known positives, {self.num_within_margin:,} within the margin, "
            f"{self.num_same_text:,} of the same text; "
            f"{self.num_short_images:,} images fall short by {self.shortfall:,} in all; known positives mined: {self.num_positives_mined}"
        )
        if self.false_negative_share is not None:
            text += f"; false negatives by the known truth: {self.num_false_negatives:,} ({100 * self.false_negative_share:.2f}%)"
        if self.index_recall is not None:
            text += f"; the index finds {100 * self.index_recall:.2f}% of the exact candidates (measured on a sample)"
        return text


def rules_of(config: MiningConfig) -> dict[str, Any]:
    """What of the configuration decides which captions are mined (the weight in the loss does not)."""
    rules = config.model_dump(include={"negatives_per_image", "margin", "pool_top_k"})
    return rules | (Approximate(config.index_probes).rules() if config.index == "faiss" else {})


def mine(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    config: MiningConfig,
    *,
    data_sha256: str,
    folder: Path | None = None,
    processes: Processes = Processes(),
    num_workers: int = 0,
    truth: set[tuple[str, str]] | None = None,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> tuple[Negatives, MiningSheet]:
    """Mine negatives for every image of a split among all its captions; the same on every process.

    Args:
        data_sha256: dataset.sha256(), which is slow to compute again and again.
        folder: where embeddings lie meanwhile; None: the system's temporary folder.
        truth: (image id, caption id) pairs known to be true beyond the data; used to count false negatives only.
        on_progress: called with the number of rows embedded.
    """
    name = table_name(hash_weights(model), data_sha256, rules_of(config) | inputs.contract)
    found = find_candidates(
        model,
        inputs,
        dataset,
        config.pool_top_k,
        folder=folder,
        approximate=Approximate(config.index_probes) if config.index == "faiss" else None,
        processes=processes,
        num_workers=num_workers,
        on_progress=on_progress,
    )
    scale, bias = np.float32(float(model.logit_scale.detach().exp())), np.float32(float(model.logit_bias.detach()))
    logits_IK, best_I = found.cosines_IK * scale + bias, found.best_positive_I * scale + bias
    negatives, sheet = select(name, dataset, found.captions_IK, logits_IK, best_I, config, decodable_I=found.decodable_I, truth=truth)
    return negatives, replace(sheet, index_recall=found.recall)


def select(
    name: str,
    dataset: RetrievalSet,
    candidates_IK: np.ndarray,
    logits_IK: np.ndarray,
    best_positive_I: np.ndarray,
    config: MiningConfig,
    *,
    decodable_I: np.ndarray,
    truth: set[tuple[str, str]] | None = None,
) -> tuple[Negatives, MiningSheet]:
    """Apply the rules to every image's candidates, best first, and take the first negatives_per_image that pass.

    Args:
        candidates_IK: int64, caption indices, best first; -1 at the end of a list that is short: not a candidate.
        logits_IK: float32, their logits.
        best_positive_I: float32, logit of the image's best true caption.
        decodable_I: bool; nothing is mined for images that are False.
    """
    here_IK = (candidates_IK >= 0) & decodable_I[:, None]
    hashes_IK = dataset.caption_hash_C[candidates_IK]
    known_IK = dataset.is_positive(np.arange(len(candidates_IK))[:, None], hashes_IK)
    margins_IK = best_positive_I[:, None] - logits_IK
    close_IK = ~known_IK & (margins_IK < config.margin) if config.margin is not None else np.zeros_like(known_IK)
    same_IK = ~known_IK & ~close_IK & _repeats(hashes_IK, known_IK | close_IK)
    passes_IK = ~(known_IK | close_IK | same_IK) & here_IK
    taken_IK = passes_IK & (np.cumsum(passes_IK, axis=1) <= config.negatives_per_image)
    # Candidates after an image has enough were never looked at, so they are not counted as passed over.
    looked_IK = (np.cumsum(taken_IK, axis=1) - taken_IK < config.negatives_per_image) & here_IK
    counts_I = taken_IK.sum(axis=1)
    image_N, place_N = np.nonzero(taken_IK)
    offsets = np.concatenate([[0], np.cumsum(counts_I)]).astype(np.int64)
    negatives = Negatives(
        name, offsets, candidates_IK[taken_IK], (place_N + 1).astype(np.int64), logits_IK[taken_IK], margins_IK[taken_IK].astype(np.float32)
    )
    short_I = np.where(decodable_I, config.negatives_per_image - counts_I, 0)
    sheet = MiningSheet(
        name=name,
        num_images=int(decodable_I.sum()),
        num_mined=len(negatives),
        num_looked_at=int(looked_IK.sum()),
        num_known_positives=int((known_IK & looked_IK).sum()),
        num_within_margin=int((close_IK & looked_IK).sum()),
        num_same_text=int((same_IK & looked_IK).sum()),
        num_short_images=int((short_I > 0).sum()),
        shortfall=int(short_I.sum()),
        num_undecodable=int((~decodable_I).sum()),
        num_positives_mined=int(dataset.is_positive(image_N, dataset.caption_hash_C[negatives.captions_N]).sum()),
        num_false_negatives=_count_true(dataset, image_N, negatives.captions_N, truth),
        median_rank=float(np.median(negatives.ranks_N)) if len(negatives) else None,
        median_margin=float(np.median(negatives.margins_N)) if len(negatives) else None,
    )
    return negatives, sheet


def _repeats(hashes_IK: np.ndarray, skipped_IK: np.ndarray) -> np.ndarray:
    """True where an earlier candidate of the same image, itself not skipped, has the same text."""
    order_IK = np.argsort(hashes_IK, axis=1, kind="stable")
    sorted_IK = np.take_along_axis(hashes_IK, order_IK, axis=1)
    # Equal texts pass or fail together but for their scores, so the first of a run that is not skipped is the one kept.
    kept_IK = ~np.take_along_axis(skipped_IK, order_IK, axis=1)
    starts_IK = np.ones_like(kept_IK)
    starts_IK[:, 1:] = sorted_IK[:, 1:] != sorted_IK[:, :-1]
    run_start_IK = np.maximum.accumulate(np.where(starts_IK, np.arange(hashes_IK.shape[1]), 0), axis=1)
    before_IK = np.cumsum(kept_IK, axis=1) - kept_IK
    repeats_sorted_IK = before_IK - np.take_along_axis(before_IK, run_start_IK, axis=1) > 0
    repeats_IK = np.empty_like(repeats_sorted_IK)
    np.put_along_axis(repeats_IK, order_IK, repeats_sorted_IK, axis=1)
    return repeats_IK


def _count_true(dataset: RetrievalSet, image_N: np.ndarray, caption_N: np.ndarray, truth: set[tuple[str, str]] | None) -> int | None:
    if truth is None:
        return None
    pairs = zip(image_N.tolist(), caption_N.tolist(), strict=True)
    return sum((dataset.image_ids[image], dataset.caption_id(caption)) in truth for image, caption in pairs)


if __name__ == "__main__":
    import sys

    from train.mining_command import main

    sys.exit(main(sys.argv[1:]))
