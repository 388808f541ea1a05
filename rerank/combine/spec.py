"""What is asked of combining: which checkpoints are an ensemble, which stages have additional views, and what of it is chosen on another
split."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.errors import SettingError
from rerank import stage_names
from rerank.combine.rules import POOLINGS, Choice, Combination, Pooling
from rerank.combine.views import Pool
from rerank.stage_names import ENSEMBLE

ALL_VIEWS = 2**31 - 1
POOLINGS_OF_SCORES = " or ".join(pooling for pooling in POOLINGS if pooling != "reciprocal-rank")
MEAN_OF_ALL = Pool("mean", ALL_VIEWS, 1.0)


def parse_member(text: str) -> tuple[str, float]:
    """(checkpoint, weight) of DIR_OR_HUB_ID[:WEIGHT]; without one the weight is 1.

    >>> parse_member("google/siglip-large-patch16-256:0.5")
    ('google/siglip-large-patch16-256', 0.5)

    Raises:
        SettingError: the weight is not a number above 0.
    """
    path, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not path or not 0 < number < float("inf"):
        raise SettingError("members", f"{text}: expected DIR_OR_HUB_ID[:WEIGHT], the weight a number above 0; found {weight!r}")
    return path, number


def given_weights(members: Sequence[str]) -> tuple[float, ...] | None:
    """The weights of the checkpoint itself, 1, and of the additional members; None where no member has one.

    >>> given_weights(["large:0.5", "small"])
    (1.0, 0.5, 1.0)

    Raises:
        SettingError: see `parse_member`.
    """
    weights = [parse_member(text)[1] for text in members]
    return (1.0, *weights) if any(":" in text for text in members) else None


def parse_pool(text: str) -> Pool:
    """RULE[:NUMBER[:WEIGHT]]: the first NUMBER views (default all), of WEIGHT (default 1) against the item alone.

    >>> parse_pool("mean:2:0.5")
    Pool(pooling='mean', number=2, weight=0.5)

    Raises:
        SettingError: it is not of this form.
    """
    rule, *rest = text.strip().split(":")
    try:
        number, weight = int(rest[0]) if rest else ALL_VIEWS, float(rest[1]) if len(rest) > 1 else 1.0
    except ValueError:
        number, weight = 0, 0.0
    if rule not in POOLINGS or len(rest) > 2 or number < 1 or not 0 < weight <= 1:
        raise SettingError(
            "pools",
            f"expected RULE[:NUMBER[:WEIGHT]], RULE one of {', '.join(POOLINGS)}, NUMBER from 1, WEIGHT above 0 and at most 1; "
            f"found {text!r}",
        )
    return Pool(next(known for known in POOLINGS if known == rule), number, weight)


@dataclass(frozen=True, kw_only=True)
class Combining:
    """How an evaluation's checkpoints are combined, in addition to measuring each alone.

    Attributes:
        checkpoint: name of the one whose queries or images have additional views; the ensemble's first member.
        members: names of the ensemble's additional checkpoints; empty: no ensemble.
        weights: of the checkpoint and the members; None: chosen, or else equal.
        combinations: how members' scores become one, by default logits; several: the best is chosen with the weights.
        expansions: what makes additional views, each a stage of its own, by the ending of its stages' names.
        pools: how views are pooled, by default the mean of all; where that is chosen, the rules that are tried, by default all.
        choose: what is chosen on another split; None: all that there is to choose.

    Raises:
        SettingError: two of them contradict each other, or one has nothing to work on.
    """

    checkpoint: str = "model"
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    combinations: tuple[Combination, ...] = ()
    expansions: tuple[str, ...] = ()
    pools: tuple[Pool, ...] = ()
    choose: tuple[Choice, ...] | None = None

    def __post_init__(self) -> None:
        self._check_ensemble()
        self._check_pools()

    def _check_ensemble(self) -> None:
        chosen = self.choose or ()
        if self.combinations and not self.members:
            raise SettingError("combinations", "there is no ensemble whose scores could be combined; name its members, or leave it out")
        if len(set(self.combinations)) < len(self.combinations):
            raise SettingError("combinations", f"a rule is named twice: {', '.join(self.combinations)}; name each once")
        if len(self.combinations) > 1 and not self.chooses_ensemble:
            raise SettingError(
                "combinations", "of several rules one is chosen with the weights on another split; let both be chosen, or name one rule"
            )
        if "ensemble" in chosen and not self.members:
            raise SettingError("choose", "ensemble: there is none; name its members, or leave ensemble out")
        if "ensemble" in chosen and self.weights is not None:
            raise SettingError("choose", "ensemble: the weights are given, so nothing is left to choose; leave one of the two out")

    def _check_pools(self) -> None:
        if self.pools and not self.expansions:
            raise SettingError("pools", "there are no additional views to pool; name what makes them, or leave it out")
        rules = [pool.pooling for pool in self.pools]
        if len(set(rules)) < len(rules):
            raise SettingError("pools", f"a rule is named twice: {', '.join(rules)}; name each once")
        if "expansion" in (self.choose or ()) and not self.expansions:
            raise SettingError("choose", "expansion: there is none; name one, or leave expansion out")
        if len(rules) > 1 and not self.chooses_expansion:
            raise SettingError("pools", "of several rules one is chosen on another split; let it be chosen, or name one rule")
        if self.chooses_expansion and any((pool.number, pool.weight) != (ALL_VIEWS, 1.0) for pool in self.pools):
            raise SettingError("pools", "number and weight are chosen on another split; leave them out, or let nothing be chosen")
        # Where the pooling is chosen, views are off with a chosen rule that cannot use it.
        usable = "reciprocal-rank" in self.rules if self.chooses_expansion else set(self.rules) == {"reciprocal-rank"}
        if self.pools_by_rank and self.members and not usable:
            raise SettingError(
                "pools",
                f"reciprocal-rank leaves ranks, which cannot be combined with members' scores by {', '.join(self.rules)}: combine by "
                f"reciprocal-rank too, or pool by {POOLINGS_OF_SCORES}",
            )

    @property
    def rules(self) -> tuple[Combination, ...]:
        """How members' scores become one: what is tried, or the one that is taken."""
        return self.combinations or ("logits",)

    @property
    def pool(self) -> Pool:
        """How views are pooled where it is not chosen."""
        return self.pools[0] if self.pools else MEAN_OF_ALL

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """What is tried where it is chosen."""
        return tuple(pool.pooling for pool in self.pools) or POOLINGS

    @property
    def pools_by_rank(self) -> bool:
        """True if views can be pooled by their ranks alone."""
        return bool(self.expansions) and set(self.poolings) == {"reciprocal-rank"}

    @property
    def ensemble(self) -> tuple[str, ...]:
        """Names of all members, the checkpoint first; empty: no ensemble."""
        return (self.checkpoint, *self.members) if self.members else ()

    @property
    def reused(self) -> list[str]:
        """The checkpoints whose vectors are needed more than once."""
        return [self.checkpoint, *self.members] if self.expansions or self.members else []

    @property
    def expanded(self) -> list[tuple[str, str, str]]:
        """(stage, the stage without additional views, expansion) of every expanded stage."""
        targets = [self.checkpoint] + ([ENSEMBLE] if self.members else [])
        return [(stage_names.expanded(target, name), target, name) for name in self.expansions for target in targets]

    @property
    def combined(self) -> list[tuple[str, str, str | None]]:
        """`expanded`, after the ensemble, which has no expansion: the stages there will be in addition to the checkpoints'."""
        return [*([(ENSEMBLE, ENSEMBLE, None)] if self.members else []), *self.expanded]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(stage, against): the ensemble against each member, what is expanded against what is not."""
        return [(ENSEMBLE, member) for member in self.ensemble] + [(stage, target) for stage, target, _ in self.expanded]

    @property
    def chooses_ensemble(self) -> bool:
        """True if weights and rule of the ensemble are chosen on another split."""
        return bool(self.members) and self.weights is None and (self.choose is None or "ensemble" in self.choose)

    @property
    def chooses_expansion(self) -> bool:
        """True if the pooling of views is chosen on another split."""
        return bool(self.expansions) and (self.choose is None or "expansion" in self.choose)

    @property
    def chooses(self) -> bool:
        """True if another split would decide something."""
        return self.chooses_ensemble or self.chooses_expansion
