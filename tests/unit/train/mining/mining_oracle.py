"""What mining should select, one candidate at a time, by the text of the captions: written without train/mining/rules.py."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eval.captions import near_duplicate_key, normalise
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.mining.candidates import Candidates


def dataset_of(images: list[tuple[list[str], str | None]]) -> RetrievalSet:
    """A split without pictures."""
    rows = [
        ManifestImage(f"i{number:03d}", None, Path("none"), None, 0, group, list(captions), "made")
        for number, (captions, group) in enumerate(images)
    ]
    return RetrievalSet(rows, None, source="made", split=None)


@dataclass
class Expected:
    """What brute force finds.

    Attributes:
        rows: (image, place) of the negatives.
        relabelled: (image, place) of the positives.
        counts: number of candidates by outcome.
    """

    rows: set[tuple[int, int]] = field(default_factory=set)
    relabelled: set[tuple[int, int]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Instance:
    """One small mining; `match` holds the cross-encoder's probability of every (image, caption of the pool), and the model reads so many
    characters of a caption (None: all)."""

    pool: CaptionPool
    found: Candidates
    scale: np.float32
    bias: np.float32
    config: MiningConfig
    priority_IK: np.ndarray
    match: np.ndarray
    num_characters: int | None = None

    def tokens(self, text: str) -> str:
        """What the model reads of a caption."""
        return normalise(text)[: self.num_characters]

    def logit(self, cosine: np.float32) -> np.float32:
        """scale * cosine + bias, in float32."""
        return np.float32(np.float32(cosine * self.scale) + self.bias)

    def texts_true_of(self, image: int) -> list[str]:
        """Every caption under any image of the image's group."""
        dataset = self.pool.dataset
        groups = dataset.group_names() or [None] * dataset.num_images
        mates = [j for j in range(dataset.num_images) if j == image or (groups[image] is not None and groups[j] == groups[image])]
        return [dataset.captions[c] for j in mates for c in range(int(dataset.caption_offsets[j]), int(dataset.caption_offsets[j + 1]))]

    def rule_of(self, row: int, place: int) -> str | None:
        """The first rule that filters a candidate out by itself."""
        config, found = self.config, self.found
        text = self.pool.text(int(found.items_QK[row, place]))
        true = self.texts_true_of(int(found.queries_Q[row]))
        cosine, best = found.cosines_QK[row, place], found.best_positive_Q[row]
        if normalise(text) in {normalise(other) for other in true}:
            return "known_positive"
        if self.tokens(text) in {self.tokens(other) for other in true}:
            return "equal_tokens"
        if config.near_duplicates and near_duplicate_key(text) in {near_duplicate_key(other) for other in true}:
            return "near_duplicate"
        if place + 1 < config.rank_min:
            return "rank_min"
        if config.rank_max is not None and place + 1 > config.rank_max:
            return "rank_max"
        if config.max_score is not None and self.logit(cosine) > config.max_score:
            return "max_score"
        if config.margin is not None and self.logit(best) - self.logit(cosine) < config.margin:
            return "margin"
        if config.perc_pos is not None and cosine > best - np.float32(1 - config.perc_pos) * abs(best):
            return "perc_pos"
        if config.margin_pos is not None and cosine > best - np.float32(config.margin_pos):
            return "margin_pos"
        return None

    def solve(self) -> Expected:
        """All rules, one candidate after another."""
        found = self.found
        candidates: list[tuple[float, int, int]] = []
        filtered: dict[tuple[int, int], str] = {}
        for row in range(len(found.queries_Q)):
            texts: set[str] = set()
            for place in range(found.items_QK.shape[1]):
                if not found.readable_Q[row] or found.items_QK[row, place] < 0:
                    continue
                rule = self.rule_of(row, place)
                text = normalise(self.pool.text(int(found.items_QK[row, place])))
                if rule is None and text in texts:
                    rule = "same_text"
                if rule is None:
                    texts.add(text)
                    candidates.append((-float(self.priority_IK[row, place]), row, place))
                else:
                    filtered[row, place] = rule
        return self._select(sorted(candidates), filtered)

    def _select(self, candidates: list[tuple[float, int, int]], filtered: dict[tuple[int, int], str]) -> Expected:
        config, found = self.config, self.found
        selected: Counter[int] = Counter()
        relabelled: Counter[int] = Counter()
        uses: Counter[str] = Counter()
        last: dict[int, int] = {}
        expected = Expected()
        for _, row, place in candidates:
            if selected[row] == config.negatives_per_image:
                if config.selection != "top":
                    expected.counts["not_drawn"] += 1
                continue
            caption = int(found.items_QK[row, place])
            text = normalise(self.pool.text(caption))
            chance = self.match[int(found.queries_Q[row]), caption]
            if config.max_uses is not None and uses[text] == config.max_uses:
                expected.counts["max_uses"] += 1
            elif config.denoise is not None and chance >= config.denoise.threshold:
                sure = config.denoise.mode == "relabel" and chance >= config.denoise.relabel_at
                if sure and relabelled[row] < config.negatives_per_image:
                    relabelled[row] += 1
                    expected.relabelled.add((row, place))
                    expected.counts["relabelled"] += 1
                else:
                    expected.counts["match"] += 1
            else:
                selected[row] += 1
                uses[text] += 1
                last[row] = place
                expected.rows.add((row, place))
                expected.counts["mined"] += 1
        for (row, place), rule in filtered.items():
            full = selected[row] == config.negatives_per_image
            if config.selection != "top" or not full or place < last[row]:
                expected.counts[rule] += 1
        return expected
