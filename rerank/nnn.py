"""The stage NAME+nnn: a checkpoint's ranking by nearest-neighbour normalisation (eval/search/nnn.py), its number k and weight alpha chosen
on another split, in each direction for itself."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import SettingError
from eval.metrics.metrics import recall_at_k
from eval.report.render import DIRECTION_WORDS
from eval.report.section import Section, SectionFormat
from eval.search.nnn import gallery_means, rank_corrected
from eval.search.ranking import DIRECTIONS, Direction
from eval.search.retrieve import find
from eval.search.stage import Stage
from rerank import stage_names
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.tuning import Tried, TunedSetting, best_setting

NUMBERS, ALPHAS = (1, 8, 32, 128), (0.25, 0.5, 0.75, 1.0)
"""What is tried on the other split, next to alpha 0, which is the plain ranking."""


@dataclass(frozen=True)
class Normalisation:
    """k and alpha of the correction; alpha 0: none."""

    number: int
    alpha: float


OFF = Normalisation(0, 0.0)


@dataclass
class NormalisedStage:
    """Makes the stage of a set; call on every process.

    Attributes:
        checkpoint: the stage that is normalised.
        sets: how it embeds a set; the checkpoint is among those that are reused.
        bank: the reference queries, of neither the split that is measured nor the one that is chosen on.
        chosen: by direction, once `choose` was called.
    """

    checkpoint: str
    sets: EmbeddedSets
    bank: RetrievalSet
    chosen: dict[Direction, TunedSetting[Normalisation]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the stage."""
        return stage_names.normalised(self.checkpoint)

    def choose(self, dataset: RetrievalSet) -> None:
        """Choose k and alpha of each direction by R@1 on a set; of equally good points the least alpha, then the least k.

        Raises:
            SettingError: the set is the bank itself.
            UserError: a picture cannot be used.
        """
        self._check(dataset)
        embedded, bank = (self.sets.read(self.checkpoint, one).embedded for one in (dataset, self.bank))
        plain, execution = find(self.checkpoint, embedded, dataset, processes=self.sets.execution.processes), self.sets.execution
        for direction in DIRECTIONS:
            tried = [Tried(OFF, {direction: plain.rankings[direction].best_ranks()})]
            for number, means_N in zip(NUMBERS, gallery_means(embedded, bank, direction, NUMBERS, execution=execution), strict=True):
                for alpha in ALPHAS:
                    ranking = rank_corrected(embedded, dataset, {direction: alpha * means_N}, 1, execution=execution)[direction]
                    tried.append(Tried(Normalisation(number, alpha), {direction: ranking.best_ranks()}))
                    execution.on_progress(0)  # between two points a signal is heeded
            self.chosen[direction] = TunedSetting(best_setting(tried, lambda one: (one.alpha, one.number)), tried, dataset)

    def stage(self, dataset: RetrievalSet, depth: int) -> Stage:
        """The stage of a set; where normalisation was chosen to be off, the plain ranking.

        Raises:
            SettingError: the set is the bank itself.
            UserError: a picture cannot be used.
        """
        self._check(dataset)
        read, bank = self.sets.read(self.checkpoint, dataset), self.sets.read(self.checkpoint, self.bank).embedded
        embedded, execution, started, corrections = read.embedded, self.sets.execution, time.perf_counter(), {}
        for direction, tuned in self.chosen.items():
            if tuned.setting.alpha > 0:
                means_KN = gallery_means(embedded, bank, direction, [tuned.setting.number], execution=execution)
                corrections[direction] = tuned.setting.alpha * means_KN[0]
        rankings = rank_corrected(embedded, dataset, corrections, depth, execution=execution)
        if len(rankings) < len(DIRECTIONS):
            rankings = {**find(self.checkpoint, embedded, dataset, depth=depth, processes=execution.processes).rankings, **rankings}
        cost = {
            "image_seconds": embedded.image_seconds,
            "caption_seconds": embedded.caption_seconds,
            "bank_seconds": bank.image_seconds + bank.caption_seconds,
            "search_seconds": time.perf_counter() - started,
        }
        return Stage(self.name, rankings, {"seconds": sum(cost.values()), **cost, "pairs_scored": 0}, inputs=embedded.inputs)

    def section(self) -> Section:
        """`nnn` of report.json: what was chosen in each direction, from which points, on what, and the bank."""
        found = {}
        for direction, tuned in self.chosen.items():
            curve = [
                {"k": point.setting.number, "alpha": point.setting.alpha, "R@1": float(recall_at_k(point.ranks[direction], 1).mean())}
                for point in tuned.tried
            ]
            size = self.bank.num_images if direction == "image_to_text" else self.bank.num_captions
            found[direction] = {"k": tuned.setting.number, "alpha": tuned.setting.alpha, "bank_size": size, "curve": curve}
        chosen_on = next(iter(self.chosen.values())).dataset.record()
        return Section(
            NNN, {"stage": self.name, "against": self.checkpoint, "bank": self.bank.record(), "chosen_on": chosen_on, "directions": found}
        )

    def _check(self, dataset: RetrievalSet) -> None:
        if dataset.sha256() == self.bank.sha256():
            raise SettingError("nnn", "the reference queries are those of the split that is ranked; take those of train")


def _sentences(record: dict[str, Any]) -> Sequence[str]:
    parts = [
        f"{DIRECTION_WORDS[direction]} " + (f"k {one['k']}, alpha {one['alpha']:g}" if one["alpha"] else "off")
        for direction, one in record["directions"].items()
    ]
    bank, chosen_on = record["bank"], record["chosen_on"]
    queries = f"{bank['num_captions']:,} captions and {bank['num_images']:,} images of {bank['split'] or 'all rows'}"
    return [f"Nearest-neighbour normalisation ({record['stage']}): {'; '.join(parts)}, chosen on {chosen_on['split']}; bank: {queries}."]


NNN = SectionFormat(
    key="nnn",
    notes=_sentences,
    lines=lambda record, data: _sentences(record),
    chosen=lambda record: {record["stage"]: f"k and alpha chosen on {record['chosen_on']['split'] or 'all rows'}"},
)
"""How a report shows it."""
