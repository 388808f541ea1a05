"""Mine hard-negative images: for every caption what the model itself ranks highest and what is not known to be right for it.

The other direction of train/mining.py, with its rules turned round: no known positive, none within the margin of the caption's best true
image, and of a group (pictures of one scene, say, which share their captions) only the best. Shape letters: I images, C captions, K depth,
N rows of the table, D width, P true pairs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from transformers import SiglipModel

from eval.checkpoint import hash_weights
from eval.dataset import RetrievalSet
from eval.encoder import embed_captions, embed_images
from eval.inputs import SiglipInputs
from eval.processes import Processes
from eval.search import search
from train.config import MiningConfig
from train.mining import rules_of
from train.negatives import Negatives, table_name


@dataclass(frozen=True)
class ImageSheet:
    """What a mining of images did, in numbers a person can check.

    Attributes:
        num_captions: captions mined for.
        num_mined: rows of the table.
        num_looked_at: candidates looked at, over all captions, until each had enough.
        num_known_positives: images passed over because the data says the caption is true of them.
        num_within_margin: passed over because they score too close to, or above, the caption's best true image.
        num_same_group: passed over because an image of the same group was already taken for the caption.
        num_undecodable: images without a picture that decodes: never mined. Captions of such images alone are not mined for.
        num_short_captions: captions with fewer hard images than asked for.
        shortfall: hard images missing over all captions.
        num_positives_mined: mined pairs that the data says are true: always 0, counted all the same.
        num_false_negatives: mined pairs that data.truth says are true; None without one.
        median_rank, median_margin: of the mined rows (margin in logits); None when nothing was mined.
    """

    name: str
    num_captions: int
    num_mined: int
    num_looked_at: int
    num_known_positives: int
    num_within_margin: int
    num_same_group: int
    num_undecodable: int
    num_short_captions: int
    shortfall: int
    num_positives_mined: int
    num_false_negatives: int | None
    median_rank: float | None
    median_margin: float | None

    @property
    def false_negative_share(self) -> float | None:
        """Share of mined pairs that are true by data.truth; None without one or without rows."""
        return None if self.num_false_negatives is None or not self.num_mined else self.num_false_negatives / self.num_mined

    def as_record(self) -> dict[str, Any]:
        """The fields and the share, for a line of metrics.jsonl."""
        return asdict(self) | {"false_negative_share": self.false_negative_share}

    def __str__(self) -> str:
        text = (
            f"mined {self.num_mined:,} hard images for {self.num_captions:,} captions (table {self.name}); passed over: "
            f"{self.num_known_positives:,} known positives, {self.num_within_margin:,} within the margin, "
            f"{self.num_same_group:,} of a group taken already; "
            f"{self.num_short_captions:,} captions fall short by {self.shortfall:,} in all; "
            f"known positives mined: {self.num_positives_mined}"
        )
        if self.false_negative_share is not None:
            text += f"; false negatives by the known truth: {self.num_false_negatives:,} ({100 * self.false_negative_share:.2f}%)"
        return text


@dataclass(frozen=True)
class ImageCandidates:
    """The head of each caption's own retrieval over all images; the same on every process.

    Attributes:
        images_CK: int64, image indices, best first.
        cosines_CK: float32, their cosines.
        best_positive_C: float32, cosine of the caption's best true image that decodes; -inf where none does.
        decodable_I: bool; False where the image's picture does not decode.
    """

    images_CK: np.ndarray
    cosines_CK: np.ndarray
    best_positive_C: np.ndarray
    decodable_I: np.ndarray


def mine_images(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    config: MiningConfig,
    *,
    data_sha256: str,
    processes: Processes = Processes(),
    num_workers: int = 0,
    truth: set[tuple[str, str]] | None = None,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> tuple[Negatives, ImageSheet]:
    """Mine hard images for every caption of a split among all its images; the same on every process.

    The table holds pairs of an image and a caption as ever, by image: here the image was mined for the caption, and the rank is the image's
    among all images for that caption.

    Args:
        data_sha256: dataset.sha256(), which is slow to compute again and again.
        truth: (image id, caption id) pairs known to be true beyond the data; used to count false negatives only.
        on_progress: called with the number of rows embedded.
    """
    name = table_name(hash_weights(model), data_sha256, rules_of(config) | {"form": "images"} | inputs.contract)
    found = find_image_candidates(
        model, inputs, dataset, config.pool_top_k, processes=processes, num_workers=num_workers, on_progress=on_progress
    )
    scale, bias = np.float32(float(model.logit_scale.detach().exp())), np.float32(float(model.logit_bias.detach()))
    logits_CK, best_C = found.cosines_CK * scale + bias, found.best_positive_C * scale + bias
    return select_images(name, dataset, found.images_CK, logits_CK, best_C, config, decodable_I=found.decodable_I, truth=truth)


def find_image_candidates(
    model: SiglipModel,
    inputs: SiglipInputs,
    dataset: RetrievalSet,
    depth: int,
    *,
    processes: Processes = Processes(),
    num_workers: int = 0,
    on_progress: Callable[[int], Any] = lambda rows: None,
) -> ImageCandidates:
    """Embed and search.

    Args:
        depth: K, cut to the number of images.
        on_progress: called with the number of rows embedded.
    """
    images_ID = embed_images(
        model, inputs, dataset, processes=processes, num_workers=num_workers, allow_undecodable=True, on_progress=on_progress
    )
    captions_CD = embed_captions(model, inputs, dataset.captions, processes=processes, on_progress=on_progress)
    positives = dataset.positives("text_to_image")
    device = next(model.parameters()).device
    ranking = search("text_to_image", captions_CD, images_ID, positives, depth, device=device, processes=processes)
    decodable_I = np.any(images_ID != 0, axis=1)
    best_C = _best_true_cosines(images_ID, captions_CD, decodable_I, positives.indices_P, positives.query_P)
    return ImageCandidates(ranking.top_indices_QK, ranking.top_scores_QK, best_C, decodable_I)


def _best_true_cosines(
    images_ID: np.ndarray, captions_CD: np.ndarray, decodable_I: np.ndarray, images_P: np.ndarray, captions_P: np.ndarray
) -> np.ndarray:
    """Cosine of each caption's best true image that decodes, float32 of shape (C,); -inf without one."""
    best_C = np.full(len(captions_CD), -np.inf, dtype=np.float32)
    seen_P = decodable_I[images_P]
    for start in range(0, len(images_P), 65536):  # bounds the memory of the two gathered sides
        part = np.arange(start, min(start + 65536, len(images_P)))[seen_P[start : start + 65536]]
        cosines = np.einsum("pd,pd->p", images_ID[images_P[part]], captions_CD[captions_P[part]])
        np.maximum.at(best_C, captions_P[part], cosines)
    return best_C


def select_images(
    name: str,
    dataset: RetrievalSet,
    candidates_CK: np.ndarray,
    logits_CK: np.ndarray,
    best_positive_C: np.ndarray,
    config: MiningConfig,
    *,
    decodable_I: np.ndarray,
    truth: set[tuple[str, str]] | None = None,
) -> tuple[Negatives, ImageSheet]:
    """Apply the rules to every caption's candidates, best first, and take the first negatives_per_image that pass.

    Args:
        candidates_CK: int64, image indices, best first.
        logits_CK: float32, their logits.
        best_positive_C: float32, logit of the caption's best true image; nothing is mined for captions where it is -inf.
        decodable_I: bool; images that are False are never taken, nor counted as looked at.
    """
    mined_for_C1 = np.isfinite(best_positive_C)[:, None]
    there_CK = decodable_I[candidates_CK] & mined_for_C1
    known_CK = there_CK & dataset.is_positive(candidates_CK, dataset.caption_hash_C[:, None])
    margins_CK = best_positive_C[:, None] - logits_CK
    left_CK = there_CK & ~known_CK
    close_CK = left_CK & (margins_CK < config.margin) if config.margin is not None else np.zeros_like(left_CK)
    left_CK &= ~close_CK
    same_CK = left_CK & _repeats(dataset.group_I[candidates_CK], left_CK)
    passes_CK = left_CK & ~same_CK
    num_before_CK = np.cumsum(passes_CK, axis=1) - passes_CK
    # Candidates after a caption has enough were never looked at, so they are not counted as passed over.
    looked_CK = there_CK & (num_before_CK < config.negatives_per_image)
    taken_CK = passes_CK & looked_CK
    captions_N, places_N = np.nonzero(taken_CK)
    short_C = np.where(mined_for_C1[:, 0], config.negatives_per_image - taken_CK.sum(axis=1), 0)
    columns = captions_N, places_N + 1, logits_CK[taken_CK], margins_CK[taken_CK].astype(np.float32)
    table = _by_image(name, dataset.num_images, candidates_CK[taken_CK], columns)
    sheet = ImageSheet(
        name=name,
        num_captions=int(mined_for_C1.sum()),
        num_mined=len(table),
        num_looked_at=int(looked_CK.sum()),
        num_known_positives=int((known_CK & looked_CK).sum()),
        num_within_margin=int((close_CK & looked_CK).sum()),
        num_same_group=int((same_CK & looked_CK).sum()),
        num_undecodable=int((~decodable_I).sum()),
        num_short_captions=int((short_C > 0).sum()),
        shortfall=int(short_C.sum()),
        num_positives_mined=int(dataset.is_positive(table.image_N, dataset.caption_hash_C[table.captions_N]).sum()),
        num_false_negatives=_count_true(dataset, table, truth),
        median_rank=float(np.median(table.ranks_N)) if len(table) else None,
        median_margin=float(np.median(table.margins_N)) if len(table) else None,
    )
    return table, sheet


def _repeats(keys_CK: np.ndarray, counts_CK: np.ndarray) -> np.ndarray:
    """True where an earlier place of the same row that counts has the same key."""
    order_CK = np.argsort(keys_CK, axis=1, kind="stable")
    sorted_CK, counted_CK = np.take_along_axis(keys_CK, order_CK, axis=1), np.take_along_axis(counts_CK, order_CK, axis=1)
    starts_CK = np.ones_like(counted_CK)
    starts_CK[:, 1:] = sorted_CK[:, 1:] != sorted_CK[:, :-1]
    first_CK = np.maximum.accumulate(np.where(starts_CK, np.arange(keys_CK.shape[1]), 0), axis=1)
    before_CK = np.cumsum(counted_CK, axis=1) - counted_CK
    repeats_CK = np.empty_like(counted_CK)
    np.put_along_axis(repeats_CK, order_CK, before_CK > np.take_along_axis(before_CK, first_CK, axis=1), axis=1)
    return repeats_CK


def _by_image(
    name: str, num_images: int, images_N: np.ndarray, columns: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
) -> Negatives:
    """The rows (captions, ranks, scores, margins), which come by caption, in the order of a table: by image, then by caption."""
    order_N = np.argsort(images_N, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(images_N, minlength=num_images))]).astype(np.int64)
    captions_N, ranks_N, scores_N, margins_N = (column[order_N] for column in columns)
    return Negatives(name, offsets, captions_N, ranks_N, scores_N, margins_N)


def _count_true(dataset: RetrievalSet, table: Negatives, truth: set[tuple[str, str]] | None) -> int | None:
    if truth is None:
        return None
    pairs = zip(table.image_N.tolist(), table.captions_N.tolist(), strict=True)
    return sum((dataset.image_ids[image], dataset.caption_id(caption)) in truth for image, caption in pairs)
