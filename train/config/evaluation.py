"""The sections `rerank`, `evaluation` and `watch` of a configuration: what is measured, at the end and meanwhile."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from eval.dataset.truth import Protocol
from rerank.combine.views import POOLINGS, REMOVED_COMBINATIONS, Combination, Pooling, combination_fault
from train.config.section import Section


class RerankConfig(Section):
    """The cross-encoder of the final evaluation."""

    model: str
    """A folder, or a hub id such as Salesforce/blip-itm-base-coco."""
    top_k: Annotated[int, Field(gt=1)] = 32
    """Candidates per query that are scored again."""
    score: Literal["match_logit", "margin"] = "match_logit"
    """What ranks: the logit of "match", or that less the logit of "no match"."""
    fusion: bool = False
    """Also measure tuned+RERANKER+fused: both stages' scores, by a weight chosen on data.val_split (docs/reranking.md)."""
    adaptive: bool = False
    """Also measure tuned+RERANKER+adaptive: what trails the first by a margin, chosen on data.val_split, is not scored."""
    adaptive_max_loss: Annotated[float, Field(ge=0, le=1)] = 0.001
    """Most of the right answers that the margin may lose on val, as a share of the queries: 0.001 is a tenth of a point of R@1."""
    pair_scores: str | Literal[False] | None = None
    """Folder where its scores are kept, so that no pair is scored twice; null: RUNS_FOLDER/pair-scores, for all runs; false: nowhere."""

    @model_validator(mode="after")
    def _check(self) -> "RerankConfig":
        if not self.adaptive and self.adaptive_max_loss != type(self).model_fields["adaptive_max_loss"].default:
            raise ValueError("adaptive_max_loss does nothing without adaptive: leave it out, or take adaptive: true")
        return self

    @property
    def chooses(self) -> bool:
        """True if something is chosen on val."""
        return self.fusion or self.adaptive


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class EnsembleConfig(Section):
    """Checkpoints that the final report measures alone and together with tuned, as stage ensemble (docs/ensembles.md)."""

    members: Annotated[dict[Name, str], Field(min_length=1)]
    """Further members (name: DIR_OR_HUB_ID or DIR_OR_HUB_ID:WEIGHT, the weight of tuned being 1, and of others left out). Where none
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

    @model_validator(mode="after")
    def _check(self) -> "EnsembleConfig":
        given = [":" in member for member in self.members.values()]
        if any(given) and len(self.combine) > 1:
            raise ValueError("combine: the rule is chosen with the weights, which are given; name one rule")
        if len(set(self.combine)) < len(self.combine):
            raise ValueError(f"combine names a rule twice: {self.combine}; name each once")
        return self

    @property
    def chooses(self) -> bool:
        """True if weights are chosen on val."""
        return not any(":" in member for member in self.members.values())


class EvaluationConfig(Section):
    """What the final report measures beside base and tuned, what it compares, and which answers count as right."""

    models: dict[Name, str] = {}
    """Further checkpoints (name: folder or hub id), each measured alone and, where there is a reranker, reranked."""
    comparisons: list[tuple[str, str]] | None = None
    """Pairs [stage, against]; null: tuned against base, each reranked stage against its own, tuned+RERANKER against base+RERANKER, and
    what is chosen on val against tuned+RERANKER."""
    ensemble: EnsembleConfig | None = None
    """tuned together with further checkpoints."""
    expand: list[str] = []
    """FILE_OR_METHOD, each a further arm tuned+NAME (and ensemble+NAME): more views of what asks, such as synonyms:FILE, templates, crops
    (docs/expansion.md). Their number, weight and pooling are chosen on data.val_split."""
    pooling: Annotated[list[Pooling], Field(min_length=1)] = list(POOLINGS)
    """How views may be pooled: mean, max, log-sum-exp, reciprocal-rank; the best is chosen."""
    protocol: Protocol = "all"
    """papers: an image's own captions alone are right, as in published tables."""
    near_duplicates: bool = False
    """Captions in nearly the same words as a right one are right too."""
    qrels: str | None = None
    """TREC qrels of further right answers among the final split, of either direction."""
    slice_by: list[str] = []
    """Further columns of the manifest, by its own names: R@1 is shown per value of each."""
    trec: bool = False
    """Also write TREC run and qrels files."""

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        members = set(self.ensemble.members) if self.ensemble is not None else set()
        if taken := sorted({"base", "tuned", "ensemble"} & ({*self.models} | members)):
            raise ValueError(f"evaluation.models and evaluation.ensemble: {taken} are the names of this job's own stages")
        if twice := sorted(members & set(self.models)):
            raise ValueError(f"evaluation.models and evaluation.ensemble both name {twice}; a member is measured alone already")
        if self.pooling != list(POOLINGS) and not self.expand:
            raise ValueError("evaluation.pooling does nothing without evaluation.expand")
        if len(set(self.pooling)) < len(self.pooling):
            raise ValueError(f"evaluation.pooling names a rule twice: {self.pooling}; name each once")
        return self

    @property
    def chooses(self) -> bool:
        """True if something is chosen on val."""
        return bool(self.expand) or (self.ensemble is not None and self.ensemble.chooses)


class WatchConfig(Section):
    """A set measured beside val at each evaluation: what the model knew before step 1, and should know still."""

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
    on_drop: Literal["report", "bar", "stop"] = "report"
    """When mean R@1 is below that of step 0 by more than its paired interval: say so; and this checkpoint cannot be best (bar); and the run
    ends, and the best so far is exported (stop)."""
