"""The sections `rerank`, `evaluation` and `watch` of a configuration: what is measured, at the end and meanwhile."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from eval.dataset.different_texts import Gallery
from eval.dataset.truth import Protocol
from eval.errors import named
from eval.execution import Precision
from eval.report.trec import DEFAULT_RUN_DEPTH
from rerank.combine.rules import POOLINGS, REMOVED_COMBINATIONS, Choice, Combination, combination_fault
from rerank.combine.spec import Combining, given_weights, parse_pool
from rerank.reorder.plan import Plan, Tuning
from train.config.section import Name, Section

SUBJECT, BASELINE = "tuned", "base"
"""The stages of a job's own checkpoints: what it exports, and what it began with."""
KEYS = {
    "checkpoints": "evaluation.models",
    "choose": "evaluation.choose",
    "combinations": "evaluation.ensemble.combine",
    "comparisons": "evaluation.comparisons",
    "members": "evaluation.ensemble",
    "nnn": "evaluation.nnn",
    "pools": "evaluation.pooling",
}
"""By which key a setting of an evaluation's plan is given."""


class RerankConfig(Section):
    """The cross-encoder of the final evaluation."""

    model: str
    """A folder, or a hub id such as Salesforce/blip-itm-base-coco."""
    top_k: Annotated[int, Field(gt=1)] = 32
    """Candidates per query that are scored again; left out: 32, or fewer where the measured split has fewer images or captions."""
    score: Literal["match_logit", "margin"] = "match_logit"
    """What ranks: the logit of "match", or that less the logit of "no match"."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of its towers; its head and scores stay float32. bf16 is for a GPU and moves scores a little (docs/reranking.md)."""
    fusion: bool = False
    """Also measure tuned+RERANKER+fused: both stages' scores, by a weight chosen on data.val_split (docs/score-interpolation.md)."""
    adaptive: bool = False
    """Also measure tuned+RERANKER+adaptive: what trails the first by a margin, chosen on data.val_split, is not scored."""
    adaptive_max_loss: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Most of the queries answered rightly that the margin may lose on val, as a share: 0.001 is a tenth of a point of R@1."""
    seconds: float | None = None
    """Time budget: rerank as many candidates, up to top_k, as fit into so many seconds; null: top_k."""
    skip_margin: float | None = None
    """Do not score what trails the first of its query by so much in cosine, as stages NAME+RERANKER+adaptive; null: score all. Not with
    fusion or adaptive, which score every candidate."""
    pair_scores: str | Literal[False] | None = None
    """Folder of its score cache, so that no pair is scored twice; null: RUNS_FOLDER/pair-scores, for all runs; false: no cache."""

    @model_validator(mode="after")
    def _check(self) -> "RerankConfig":
        if not self.adaptive and self.adaptive_max_loss != type(self).model_fields["adaptive_max_loss"].default:
            raise ValueError("adaptive_max_loss does nothing without adaptive: leave it out, or take adaptive: true")
        with named({"max_loss": "adaptive_max_loss", **{key: key for key in ("top_k", "seconds", "skip_margin")}}):
            _ = self.plan
        return self

    @property
    def plan(self) -> Plan:
        """How the first stages of the final evaluation are reranked."""
        tuning = Tuning(fusion=self.fusion, max_loss=self.adaptive_max_loss if self.adaptive else None, stages=(SUBJECT,))
        return Plan(top_k=self.top_k, seconds=self.seconds, skip_margin=self.skip_margin, tuning=tuning)

    @property
    def chooses(self) -> bool:
        """True if something is chosen on val."""
        return self.plan.tuning.any


class EnsembleConfig(Section):
    """Checkpoints that the final report measures alone and together with tuned, as stage ensemble (docs/ensembles.md)."""

    members: Annotated[dict[Name, str], Field(min_length=1)]
    """Additional members (name: DIR_OR_HUB_ID or DIR_OR_HUB_ID:WEIGHT, the weight of tuned being 1, and of others left out). Where none
    is given they are chosen on data.val_split."""
    combine: Annotated[list[Combination], Field(min_length=1)] = ["logits"]
    """How scores become one: logits, reciprocal-rank; of several the best is chosen with the weights."""

    @field_validator("combine", mode="before")
    @classmethod
    def _no_removed_rule(cls, rules: Any) -> Any:
        for rule in rules if isinstance(rules, list) else ():
            if rule in REMOVED_COMBINATIONS:
                raise ValueError(combination_fault(rule))
        return rules


class EvaluationConfig(Section):
    """What the final report measures in addition to base and tuned, what it compares, and which items are relevant."""

    models: dict[Name, str] = {}
    """Additional checkpoints (name: folder or hub id), each measured alone and, where there is a reranker, reranked."""
    comparisons: list[tuple[str, str]] | None = None
    """Pairs [stage, against]; null: tuned against base, each reranked stage against its own, tuned+RERANKER against base+RERANKER, and
    what is chosen on val against tuned+RERANKER."""
    ensemble: EnsembleConfig | None = None
    """tuned together with additional checkpoints."""
    expand: list[str] = []
    """FILE_OR_METHOD, each a stage tuned+NAME (and ensemble+NAME): additional views of queries or images, such as synonyms:FILE, templates,
    crops (docs/expansion.md). Their number, weight and pooling are chosen on data.val_split."""
    pooling: Annotated[list[str], Field(min_length=1)] = list(POOLINGS)
    """How views may be pooled: mean, max, log-sum-exp, reciprocal-rank; the best is chosen. Where it is not chosen: one RULE, or
    RULE:NUMBER:WEIGHT for its first NUMBER views of WEIGHT in [0, 1] against the item alone (default: the mean of all at weight 1)."""
    choose: list[Choice] | None = None
    """What is chosen on data.val_split: ensemble (weights and rule), expansion (how views are pooled); null: all that there is to choose;
    []: nothing. rerank.fusion and rerank.adaptive say what else is."""
    protocol: Protocol = "all"
    """papers: an image's own captions alone are relevant, as in published tables."""
    near_duplicates: bool = False
    """Captions in nearly the same words as a relevant one are relevant too."""
    qrels: str | None = None
    """TREC qrels of additional relevant items of the final split, of either direction."""
    gallery: Gallery = "every"
    """different: each normalised text is ranked, and asks, once, for class names or titles that stand under many images
    (docs/relevance.md); every: each caption."""
    precision: Precision = "fp32"
    """What SigLIP embeds in, in every evaluation: bf16 and fp16 are faster on a GPU, move ranks a little, and are named in the report."""
    slice_by: list[str] = []
    """Additional columns of the manifest, by its own names: R@1 is shown per value of each."""
    nnn: bool = False
    """Also measure tuned+nnn: nearest-neighbour normalisation with the train split's captions and images as reference queries, its number
    and weight chosen on data.val_split (docs/nnn.md)."""
    trec: bool = False
    """Also write TREC run and qrels files."""
    trec_depth: Annotated[int, Field(gt=0)] = DEFAULT_RUN_DEPTH
    """Items of each query's ranking that a TREC run holds, or all where there are fewer."""
    mteb: str | None = None
    """Also write MTEB result files; the language of the captions as MTEB writes it, such as eng-Latn. null: none."""
    calibration: bool = False
    """Calibrate the scores of tuned, alone and reranked, on data.val_split, where there is one: export/calibration.json says how likely a
    score is a match, for rerank --min-precision (docs/calibration.md)."""

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        if not self.trec and self.trec_depth != DEFAULT_RUN_DEPTH:
            raise ValueError("trec_depth does nothing without trec: leave it out, or take trec: true")
        members = set(self.ensemble.members) if self.ensemble is not None else set()
        if taken := sorted({"base", "tuned", "ensemble"} & ({*self.models} | members)):
            raise ValueError(f"evaluation.models and evaluation.ensemble: {taken} are the names of this job's own stages")
        if twice := sorted(members & set(self.models)):
            raise ValueError(f"evaluation.models and evaluation.ensemble both name {twice}; a member is measured alone already")
        with named(KEYS):
            _ = self.combining(self.expand)
        return self

    def combining(self, expansions: Sequence[str]) -> Combining:
        """How the checkpoints are combined, in addition to measuring each alone.

        Args:
            expansions: names of what `expand` makes, once it is read.

        Raises:
            SettingError: two keys contradict each other, or a member's weight is none.
        """
        ensemble = self.ensemble
        return Combining(
            checkpoint=SUBJECT,
            members=tuple(ensemble.members) if ensemble is not None else (),
            weights=given_weights(list(ensemble.members.values())) if ensemble is not None else None,
            combinations=tuple(ensemble.combine) if ensemble is not None else (),
            expansions=tuple(expansions),
            pools=() if self.pooling == list(POOLINGS) else tuple(parse_pool(text) for text in self.pooling),
            choose=None if self.choose is None else tuple(self.choose),
        )

    @property
    def chooses(self) -> bool:
        """True if something is chosen on val."""
        return self.nnn or self.combining(self.expand).chooses


class WatchConfig(Section):
    """A retention set, measured at each evaluation in addition to val: what the model knew before step 1, and should know still."""

    name: Name
    """What it is called in metrics.jsonl and in the report."""
    source: str
    """Its manifest, as data.source."""
    split: str | None = None
    """Rows to measure; null: the manifest has no splits, all of it."""
    image_root: str | None = None
    """Folder that image paths are relative to; default: the manifest's."""
    columns: dict[str, str] = {}
    """Our column -> the manifest's name for it, as data.columns."""
    skip_missing: bool = False
    """Leave out rows whose picture is not there, as data.skip_missing."""
    on_drop: Literal["report", "bar", "stop"] = "report"
    """When mean R@1 is below that of step 0 by more than its paired interval: report it; bar: this checkpoint cannot be
    best either; stop: the run ends too, and the best so far is exported."""
