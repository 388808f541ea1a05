"""The mining report: how many negatives were mined, and how many candidates each rule filtered out.

Shape letters: Q images (or captions) mined for, K depth, N rows of the table.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.mining.candidates import Candidates
from train.mining.rules import Outcome

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 30
MATCH = 0.5
"""From this match probability of a cross-encoder on a mined negative is marked as a false one."""
RULES = {
    "known_positive": "known positives",
    "equal_tokens": "of the same tokens as one",
    "near_duplicate": "near-duplicates of one",
    "rank_min": "above rank_min",
    "rank_max": "below rank_max",
    "max_score": "above max_score",
    "margin": "within the margin",
    "perc_pos": "above perc_pos",
    "margin_pos": "within margin_pos",
    "same_text": "of the same text or group",
    "max_uses": "used max_uses times",
    "match": "matches by the cross-encoder",
}
"""Each rule, by its name in `Outcome` and `MiningReport.filtered_out`, in words."""


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin.

    Attributes:
        edges: of the bins, one more than there are.
        counts: of each bin.
        false_negatives: how many of them are marked as false negatives (`marked_false`); None: nothing could tell.
    """

    edges: list[float]
    counts: list[int]
    false_negatives: list[int] | None = None

    @classmethod
    def of(cls, values: np.ndarray, edges: np.ndarray, false: np.ndarray | None = None) -> "Histogram":
        """Of values; those beyond the edges are in the first and the last bin. `false`: which of them are marked, bool."""
        inside = np.clip(values.astype(np.float64), edges[0], edges[-1])
        marked = None if false is None else np.histogram(inside[false], edges)[0].tolist()
        return cls(edges.tolist(), np.histogram(inside, edges)[0].tolist(), marked)


@dataclass(frozen=True)
class MiningReport:
    """The figures of one mining.

    Attributes:
        num_images: images mined for.
        num_mined: rows of the table that are negatives.
        num_looked_at: candidates considered, over all images: mined, relabelled, not drawn or filtered out.
        filtered_out: candidates by the rule that filtered them out (`RULES`), each counted once, by the first rule that holds.
        num_not_drawn: candidates that passed every rule and were not drawn by a random selection.
        num_relabelled: rows of the table that are positives by the cross-encoder's score.
        num_judged: pairs that the cross-encoder scored.
        num_short_images, shortfall: images with fewer negatives than asked for, and negatives missing over all images.
        num_undecodable: images that do not decode; nothing is mined for them.
        num_positives_mined: negatives that are positives of the data: always 0, counted as a check.
        num_before, num_survived: negatives that the previous table held for these images, and how many of them are in this one too; None
            for the first table.
        estimated_share: estimated share of false negatives among the mined: the mean match probability of the cross-encoder; None without
            one, or when nothing was mined.
        num_false_negatives, num_relabelled_true: negatives, and relabelled rows, that are positives of data.truth; None without it.
        median_rank, median_margin: of the negatives (margin in logits); None when nothing was mined.
        quantiles: of "positive" (each image's best positive), "negative" and "margin", in logits, by "5%" to "95%"; empty without any.
        index_recall: recall of an approximate search against the exact one, on a sample of images; None where it was exact.
        mined_for: "images"; or "captions", when images were mined for captions: the other fields then count captions in place of
            images, and a caption counts as undecodable when none of its positive images decodes.
        match_quantiles: of the cross-encoder's match probability of the negatives, by "5%" to "95%"; empty without any.
        histograms: of what `quantiles` are of; positives and negatives in the same bins; empty without any.
    """

    name: str
    num_images: int
    num_mined: int
    num_looked_at: int
    filtered_out: dict[str, int]
    num_not_drawn: int
    num_relabelled: int
    num_judged: int
    num_short_images: int
    shortfall: int
    num_undecodable: int
    num_positives_mined: int
    num_before: int | None
    num_survived: int | None
    estimated_share: float | None
    num_false_negatives: int | None
    num_relabelled_true: int | None
    median_rank: float | None
    median_margin: float | None
    quantiles: dict[str, dict[str, float]]
    index_recall: float | None = None
    mined_for: str = "images"
    match_quantiles: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    @property
    def false_negative_share(self) -> float | None:
        """Share of mined pairs that are positives of data.truth; None without it or without rows."""
        return None if self.num_false_negatives is None or not self.num_mined else self.num_false_negatives / self.num_mined

    def as_record(self) -> dict[str, Any]:
        """The fields and the false-negative share, for a line of metrics.jsonl."""
        return asdict(self) | {"false_negative_share": self.false_negative_share}

    def __str__(self) -> str:
        """Three numbers; the page has the others."""
        said = f"mined {self.num_mined:,} negatives for {self.num_images:,} {self.mined_for}, {self.num_short_images:,} of them fall short"
        return said + (f", {self.num_relabelled:,} relabelled as positives" if self.num_relabelled else "")

    def sentences(self) -> list[str]:
        """All of it, part by part; only the rules that filtered something out."""
        filtered = [f"{count:,} {RULES[rule]}" for rule, count in self.filtered_out.items() if count]
        parts = [
            f"mined {self.num_mined:,} negatives for {self.num_images:,} {self.mined_for} (table {self.name})",
            f"filtered out: {', '.join(filtered) or 'nothing'}",
            f"{self.num_short_images:,} {self.mined_for} fall short by {self.shortfall:,} in all" if self.shortfall else "none falls short",
            f"known positives mined: {self.num_positives_mined}",
        ]
        if self.num_relabelled:
            right = f", {self.num_relabelled_true:,} of them true" if self.num_relabelled_true is not None else ""
            parts.append(f"relabelled as positives: {self.num_relabelled:,}{right}")
        if self.num_before is not None:
            parts.append(f"{self.num_survived:,} of {self.num_before:,} negatives of the previous table are mined again")
        if self.estimated_share is not None:
            parts.append(f"false negatives estimated by the cross-encoder: {100 * self.estimated_share:.1f}%")
        if self.false_negative_share is not None:
            parts.append(f"false negatives by data.truth: {self.num_false_negatives:,} ({100 * self.false_negative_share:.2f}%)")
        if self.index_recall is not None:
            parts.append(f"recall of the index: {100 * self.index_recall:.2f}% of the exact candidates (measured on a sample)")
        return parts

    def lines(self) -> list[str]:
        """The report for a terminal, one fact a line, with the quantiles as a table."""
        lines = self.sentences()
        if self.quantiles:
            names = next(iter(self.quantiles.values()))
            lines.append("  ".join(["logits  ", *(f"{name:>8}" for name in names)]))
            lines += ["  ".join([f"{side:<8}", *(f"{v:8.2f}" for v in row.values())]) for side, row in self.quantiles.items()]
        if self.match_quantiles:
            lines.append("  ".join(["match   ", *(f"{v:8.4f}" for v in self.match_quantiles.values())]) + "  (probability)")
        return lines


@dataclass(frozen=True)
class Mined:
    """The result of a mining, which the report summarizes.

    Attributes:
        best_logit_Q: float32, logit of each query's best positive.
        outcome_QK: uint8, an Outcome of each candidate.
        num_wanted: negatives asked for per query.
        num_judged: pairs that a cross-encoder scored.
    """

    negatives: Negatives
    found: Candidates
    best_logit_Q: np.ndarray
    outcome_QK: np.ndarray
    num_wanted: int
    num_judged: int


def summarize(mined: Mined, pool: CaptionPool, truth: set[tuple[str, str]] | None, before: Negatives | None) -> MiningReport:
    """The report of a mining.

    Args:
        truth: (image id, caption id) positives of data.truth, beyond the data's own.
        before: the table that this one replaces.
    """
    table, readable_Q = mined.negatives, mined.found.readable_Q
    counts = np.bincount(mined.outcome_QK[readable_Q].ravel(), minlength=len(Outcome)).tolist()
    short_Q = mined.num_wanted - (mined.outcome_QK[readable_Q] == Outcome.MINED).sum(axis=1)
    negative_N = table.is_negative_N
    image_n, caption_n = table.image_N[negative_N], table.captions_N[negative_N]
    true_N = None if truth is None else is_true(pool, table.image_N, table.captions_N, truth)
    num_before, num_survived = _survival(before, table, mined, len(pool))
    found = bool(negative_N.any())
    match_N = table.match_N[negative_N] if found and table.match_N is not None else None
    sides = {
        "positive": mined.best_logit_Q[readable_Q],
        "negative": table.scores_N[negative_N],
        "margin": table.margins_N[negative_N],
    }
    return MiningReport(
        name=table.name,
        num_images=int(readable_Q.sum()),
        num_mined=len(image_n),
        num_looked_at=sum(counts[1:]),
        filtered_out={rule: counts[Outcome[rule.upper()]] for rule in RULES},
        num_not_drawn=counts[Outcome.NOT_DRAWN],
        num_relabelled=counts[Outcome.RELABELLED],
        num_judged=mined.num_judged,
        num_short_images=int((short_Q > 0).sum()),
        shortfall=int(short_Q.sum()),
        num_undecodable=int((~readable_Q).sum()),
        num_positives_mined=int(pool.dataset.is_positive(image_n, pool.hash_C[caption_n]).sum()),
        num_before=num_before,
        num_survived=num_survived,
        estimated_share=float(match_N.mean(dtype=np.float64)) if match_N is not None else None,
        num_false_negatives=None if true_N is None else int((true_N & negative_N).sum()),
        num_relabelled_true=None if true_N is None else int((true_N & ~negative_N).sum()),
        median_rank=float(np.median(table.ranks_N[negative_N])) if found else None,
        median_margin=float(np.median(table.margins_N[negative_N])) if found else None,
        quantiles={side: _named(values) for side, values in sides.items()} if found else {},
        index_recall=mined.found.recall,
        mined_for=mined.found.mined_for,
        match_quantiles=_named(match_N) if match_N is not None else {},
        histograms=_histograms(sides, marked_false(true_N, table.match_N), negative_N) if found else {},
    )


def marked_false(true_N: np.ndarray | None, match_N: np.ndarray | None) -> np.ndarray | None:
    """Which rows of a table are taken for positives: by data.truth (`is_true`), or by a cross-encoder's match probability of at least
    MATCH; bool of shape (N,), None without either."""
    if match_N is None:
        return true_N
    by_match_N = match_N >= MATCH
    return by_match_N if true_N is None else true_N | by_match_N


def _histograms(sides: dict[str, np.ndarray], false_N: np.ndarray | None, negative_N: np.ndarray) -> dict[str, Histogram]:
    """Of the scores and margins of a report's quantiles; the marks are of the negatives."""
    scores, margins = _edges(np.concatenate([sides["positive"], sides["negative"]])), _edges(sides["margin"])
    false_n = None if false_N is None else false_N[negative_N]
    return {
        "positive": Histogram.of(sides["positive"], scores),
        "negative": Histogram.of(sides["negative"], scores, false_n),
        "margin": Histogram.of(sides["margin"], margins, false_n),
    }


def is_true(pool: CaptionPool, image_N: np.ndarray, caption_N: np.ndarray, truth: set[tuple[str, str]]) -> np.ndarray:
    """Which pairs are positives of data.truth, bool of shape (N,); captions are compared by text, not by id."""
    number = {image: index for index, image in enumerate(pool.dataset.image_ids)}
    pairs = [(number[image], pool.index_of(caption, number)) for image, caption in truth if image in number]
    images_P, captions_P = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return GroupHashes(images_P, pool.hash_C[captions_P]).contains(image_N, pool.hash_C[caption_N])


def _edges(values: np.ndarray) -> np.ndarray:
    """Of bins over all but the outermost half percent at each end, which the first and the last bin take: one value far away would leave no
    room for the others."""
    low, high = np.quantile(values.astype(np.float64), [0.005, 0.995])
    return np.histogram_bin_edges([low, high], NUM_BINS)


def _survival(before: Negatives | None, after: Negatives, mined: Mined, num_captions: int) -> tuple[int | None, int | None]:
    """Negatives of the previous table for the images (or captions) mined for now, and how many of them are in both."""
    if before is None:
        return None, None
    codes = [(table.image_N * num_captions + table.captions_N)[table.is_negative_N] for table in (before, after)]
    mined_for_N = codes[0] // num_captions if mined.found.mined_for == "images" else codes[0] % num_captions
    old_N = codes[0][np.isin(mined_for_N, mined.found.queries_Q)]
    if not len(old_N):  # the previous table was of another window of the epoch
        return None, None
    return len(old_N), int(np.isin(old_N, codes[1]).sum())


def _named(values: np.ndarray) -> dict[str, float]:
    names = [f"{100 * quantile:.0f}%" for quantile in QUANTILES]
    return dict(zip(names, np.quantile(values, QUANTILES).tolist(), strict=True))
