"""What is asked of reranking: how many candidates, in what time, what is skipped, what is tuned on another split."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.errors import SettingError
from rerank import stage_names


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which variants of a reranked stage are tuned on another split and measured as well.

    Attributes:
        fusion: score interpolation: the weight of the first stage's scores is chosen.
        max_loss: adaptive reranking: the margin is chosen, for at most this loss of mean R@1, a share; None: it is not measured.
        stages: the first stages whose reranking is tuned; None: all.

    Raises:
        SettingError: max_loss is no share.
    """

    fusion: bool = False
    max_loss: float | None = None
    stages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_loss is not None and not 0 <= self.max_loss <= 1:
            raise SettingError("max_loss", f"expected a share from 0 to 1 (0.001 is a tenth of a point of R@1); found {self.max_loss}")

    @property
    def any(self) -> bool:
        """True if something is tuned."""
        return self.fusion or self.max_loss is not None

    def of(self, first_stages: Sequence[str]) -> list[str]:
        """Those of some first stages whose reranking is tuned."""
        return [name for name in first_stages if self.any and (self.stages is None or name in self.stages)]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How first stages are reranked.

    Attributes:
        top_k: candidates per query; the most of them, where there is a time budget.
        seconds: the time budget of the measured split's scoring; None: none.
        skip_margin: a candidate that trails the first of its query by so much is not scored, and no stage scores everything; None: all are.
        tuning: what is chosen on another split.

    Raises:
        SettingError: a value is out of range, or two of them contradict each other.
    """

    top_k: int
    seconds: float | None = None
    skip_margin: float | None = None
    tuning: Tuning = Tuning()

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise SettingError("top_k", f"expected 1 candidate per query or more; found {self.top_k}")
        if self.seconds is not None and not self.seconds > 0:
            raise SettingError("seconds", f"expected a time above 0 seconds; found {self.seconds:g}")
        if self.skip_margin is not None and not self.skip_margin >= 0:
            raise SettingError("skip_margin", f"expected a difference of first-stage scores, 0 or more; found {self.skip_margin:g}")
        if self.top_k < 2 and (self.seconds is not None or self.skip_margin is not None or self.tuning.any):
            what = "a time budget" if self.seconds is not None else "a margin" if self.skip_margin is not None else "a choice"
            raise SettingError("top_k", f"{what} needs 2 per query or more; found {self.top_k}, which leaves nothing to choose")
        if self.skip_margin is not None and self.tuning.any:
            raise SettingError(
                "skip_margin",
                "it is given, and weight or margin are to be chosen where every candidate is scored: leave it out, or choose neither",
            )

    def names(self, first_stages: Sequence[str], scorer_name: str) -> list[str]:
        """Every reranked stage there will be, for first stages of these names."""
        tuned = [name for stage in self.tuning.of(first_stages) for name in self._tuned(stage, scorer_name)]
        return [self.name(stage, scorer_name) for stage in first_stages] + tuned

    def name(self, first_stage: str, scorer_name: str) -> str:
        """The reranked variant of a first stage."""
        name = stage_names.reranked(first_stage, scorer_name)
        return stage_names.adaptive(name) if self.skip_margin is not None else name

    def pairs(self, first_stages: Sequence[str], scorer_name: str) -> list[tuple[str, str]]:
        """(stage, against) by default: each reranked stage against its first stage."""
        return [(self.name(stage, scorer_name), stage) for stage in first_stages]

    def tuned_pairs(self, first_stages: Sequence[str], scorer_name: str) -> list[tuple[str, str]]:
        """(stage, against) by default: what is tuned against the reranked stage itself; equal weights are not."""
        pairs = []
        for stage in self.tuning.of(first_stages):
            name = self.name(stage, scorer_name)
            pairs += [(tuned, name) for tuned in self._tuned(stage, scorer_name) if tuned != stage_names.summed(name)]
        return pairs

    def _tuned(self, first_stage: str, scorer_name: str) -> list[str]:
        name = stage_names.reranked(first_stage, scorer_name)
        interpolated = [stage_names.summed(name), stage_names.fused(name)] if self.tuning.fusion else []
        return interpolated + ([stage_names.adaptive(name)] if self.tuning.max_loss is not None else [])
