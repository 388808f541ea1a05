"""What is made of an evaluation's checkpoints beside measuring each alone: an ensemble, and arms with expanded queries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.errors import UserError
from rerank.combine.views import POOLINGS, Combination, Pool, Pooling
from rerank.expansions.image_captions import CaptionsColumn, CaptionsFile
from rerank.expansions.parse import Expansion

ENSEMBLE = "ensemble"
ALL_VIEWS = 2**31 - 1


@dataclass(frozen=True)
class Combining:
    """What is made of the checkpoints beside measuring each alone.

    Attributes:
        lead: name of the checkpoint whose queries are expanded.
        members: names of the ensemble's checkpoints, the lead first; empty: no ensemble.
        weights: of the members; None: chosen where there is a set to choose on, else equal.
        combinations: how members' scores become one; several: the best is chosen.
        expansions: what queries are expanded by, each an arm of its own, by the ending of its stages' names.
        pool: how views are pooled where nothing is chosen: one.
        poolings: what is tried where it is chosen.

    Raises:
        UserError: pooling by ranks alone where it has no meaning.
    """

    lead: str = "model"
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    combinations: tuple[Combination, ...] = ("logits",)
    expansions: Mapping[str, Expansion] = field(default_factory=dict)
    pool: Pool = Pool("mean", ALL_VIEWS, 1.0)
    poolings: tuple[Pooling, ...] = POOLINGS

    def __post_init__(self) -> None:
        if set(self.poolings) != {"reciprocal-rank"} or not self.expansions:
            return
        candidates = [name for name, one in self.expansions.items() if isinstance(one, (CaptionsFile, CaptionsColumn))]
        if candidates:
            raise UserError(
                f"pooling reciprocal-rank: the views of {', '.join(candidates)} are of images that are searched, and only what asks ranks "
                "a gallery; pool by mean, max or log-sum-exp"
            )
        if self.members and "reciprocal-rank" not in self.combinations:
            raise UserError(
                f"pooling reciprocal-rank leaves ranks, which cannot be combined with members' scores by {', '.join(self.combinations)}: "
                "combine by reciprocal-rank too, or pool by mean, max or log-sum-exp"
            )

    @property
    def targets(self) -> list[str]:
        """The stages whose queries are expanded."""
        return [self.lead] + ([ENSEMBLE] if self.members else [])

    @property
    def expanded(self) -> list[str]:
        """The checkpoints whose sets are expanded, and combined: their vectors are needed more than once."""
        return list(dict.fromkeys([self.lead, *self.members])) if self.expansions or self.members else []

    @property
    def names(self) -> list[str]:
        """The stages there will be beside the checkpoints'."""
        return ([ENSEMBLE] if self.members else []) + [stage for stage, _ in self._expanded()]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(stage, against): the ensemble against each member, what is expanded against what is not."""
        return [(ENSEMBLE, member) for member in self.members] + self._expanded()

    @property
    def chooses(self) -> bool:
        """True if a set to choose on would decide something."""
        return bool(self.expansions) or bool(self.members and self.weights is None)

    def _expanded(self) -> list[tuple[str, str]]:
        return [(f"{target}+{name}", target) for name in self.expansions for target in self.targets]
