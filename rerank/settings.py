"""What of a scoring can be switched, whatever the cross-encoder."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

ScoreKind = Literal["match_logit", "margin"]
Precision = Literal["float32", "bfloat16"]
SCORING_VERSION = 1  # raised whenever code of ours changes what a scorer says beyond float noise: scores kept before are then not read


@dataclass(frozen=True)
class ScorerSettings:
    """What every scorer knows to switch; a scorer that has more derives its own.

    Attributes:
        score_kind: "match_logit", the logit of "match", as BLIP and ALBEF rank, so that figures compare with published ones; "margin", that
            less the logit of "no match", which orders pairs as the match probability does. The same for a scorer with one output.
        precision: "bfloat16" runs the towers' products in it; the matching head and the scores stay float32.
        chunk_size: captions of one image that go through the text tower together; changes scores by float noise only.
    """

    score_kind: ScoreKind = "match_logit"
    precision: Precision = "float32"
    chunk_size: int = 64

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is none of the above."""
        if self.score_kind not in ("match_logit", "margin"):
            raise ValueError(f'score_kind: expected "match_logit" or "margin"; found {self.score_kind!r}.')
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision: expected "float32" or "bfloat16"; found {self.precision!r}.')
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size: expected at least 1; found {self.chunk_size}.")

    @classmethod
    def of(cls, settings: "ScorerSettings") -> Self:
        """These settings if they are this scorer's own; else what every scorer knows of them, with the defaults for the rest."""
        if type(settings) is cls:
            return settings
        return cls(**{field.name: getattr(settings, field.name) for field in fields(ScorerSettings)})

    def identity(self) -> dict[str, Any]:
        """The settings that change scores beyond float noise: part of a scorer's fingerprint."""
        settings = {key: value for key, value in sorted(asdict(self).items()) if key != "chunk_size"}
        return settings | {"scoring_version": SCORING_VERSION}
