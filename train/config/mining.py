"""The section `mining` of a configuration: what is mined, by which rules, and what is made of it."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from train.config.section import Section
from train.config.sizes import FromData

PresetName = Literal["gentle", "standard", "hard"]
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gentle": {"negatives_per_image": 2, "weight": 0.1, "rank_min": 3, "margin": 0.0},
    "standard": {"negatives_per_image": 4, "weight": 0.3, "margin": -3.0},
    "hard": {"negatives_per_image": 8, "weight": 1.0, "margin": None},
}
"""Values by name, for who has none of their own; from few mined captions that count little to many that count as much as the batch.

None of them is measured to help (results/study/heads.md).
"""
_PRESETS_IN_WORDS = "Values for the keys that are not given; a run records them. " + "; ".join(
    f"{name}: {json.dumps(values)}".replace('"', "") for name, values in PRESETS.items()
)


def with_preset(section: Any) -> Any:
    """The section `mining` with the values of the preset it names, alone as a text or under its key `preset`; its own keys come first.

    What names none, or an unknown one, is left as it is, for the check.

    >>> with_preset({"preset": "gentle", "weight": 0.2})
    {'negatives_per_image': 2, 'weight': 0.2, 'rank_min': 3, 'margin': 0.0}
    """
    named = {"preset": section} if isinstance(section, str) else section
    name = named.get("preset") if isinstance(named, dict) else None
    if not isinstance(name, str) or name not in PRESETS:
        return section
    own = {key: value for key, value in named.items() if key != "preset"}
    columns_only = () if own.get("form", "columns") == "columns" else ("weight",)
    return {key: value for key, value in PRESETS[name].items() if key not in columns_only} | own


class DenoiseConfig(Section):
    """A cross-encoder scores what is about to be mined: what it calls a match is likely a true caption that the data does not state."""

    mode: Literal["drop", "relabel"] = "drop"
    """drop: a match is filtered out. relabel: a sure match becomes a positive of its image while the table is in force."""
    model: str | None = None
    """A folder, or a hub id such as Salesforce/blip-itm-base-coco; null: rerank.model."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Probability of a match (sigmoid of match logit less no-match logit) from which a caption is no negative: a negative must surely be
    none (RocketQA, arXiv 2010.08191). results/false-negatives.md shows what other values catch and keep."""
    relabel_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability from which it becomes a positive, mode relabel only; null: 0.9, or threshold where that is higher. Between the two it is
    filtered out."""

    @model_validator(mode="after")
    def _check(self) -> "DenoiseConfig":
        if self.relabel_threshold is not None and self.mode != "relabel":
            raise ValueError("relabel_threshold does nothing in mode drop: leave it out, or take mode: relabel")
        if self.relabel_threshold is not None and self.relabel_threshold < self.threshold:
            raise ValueError(f"relabel_threshold {self.relabel_threshold} lies below threshold {self.threshold}")
        return self

    @property
    def relabel_at(self) -> float | None:
        """The probability in force from which a match is relabelled; None in mode drop."""
        if self.mode == "drop":
            return None
        return self.relabel_threshold if self.relabel_threshold is not None else max(0.9, self.threshold)


class DistilConfig(Section):
    """A cross-encoder's scores of the mined pairs, learnt in place of hard labels; it costs nothing in search."""

    model: str | None = None
    """A folder, or a hub id such as Salesforce/blip-itm-base-coco; null: that of mining.denoise, else rerank.model."""
    form: Literal["labels", "lists"] = "labels"
    """labels: a mined pair's label is its probability of a match, in the same sigmoid loss. lists: softmax over the image's own caption and
    its mined ones, learnt by KL divergence: which of them is best, whatever the bias."""
    strength: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the cross-encoder in the label (labels) or of the KL divergence in the loss (lists); the rest is hard labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the cross-encoder's logits: above 1 its probabilities are less sure than its scores."""


class RankingConfig(Section):
    """A loss of ranks in place of labels: softplus((mined - own + margin) / temperature). Scale and bias are left alone by it."""

    margin: float = 0.0
    """In logits: how far under the image's own caption a mined one is to stay."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """In logits: small asks little of those that are below already."""


class MiningConfig(Section):
    """Hard-negative captions from the model's own top-K. A preset's name may be given in place of the section."""

    preset: Annotated[PresetName | None, Field(exclude=True, description=_PRESETS_IN_WORDS)] = None
    mine_every_steps: Annotated[int, Field(gt=0), FromData("a fifth of max_steps", takes_share=True)] | None = None
    """Steps between refreshes, or a share of max_steps below 1; the first is before step start_step + 1. Give this or mine_every_epochs,
    or neither."""
    start_step: Annotated[int, Field(ge=0), FromData("0, or a fifth of max_steps where neither mine_every is given", takes_share=True)] = 0
    """Train without mined captions up to this step, or for a share of max_steps below 1."""
    negatives_per_image: Annotated[int, Field(gt=0)] = 4
    """Most mined captions per image; fewer when fewer pass the rules, never filled up."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the mined columns in the loss. Measure it: mined negatives can hurt retrieval."""
    margin: float | None = 0.0
    """In logits: a caption is a negative only if it scores at least this far under the image's best true caption; null: no such rule."""
    pool_top_k: Annotated[int, Field(gt=0)] = 64
    """How many of an image's best captions are looked at."""
    mined_scope: Literal["own", "all"] = "own"
    """A mined caption is in the loss with its own image only, or with every image of the batch (true pairs among them are positives)."""
    mine_every_epochs: Annotated[int, Field(gt=0)] | None = None
    """Epochs between refreshes, in place of mine_every_steps."""
    scope: Literal["split", "window"] = "split"
    """window: mine only for the images of the steps before the next refresh."""
    pool: str | None = None
    """Additional captions without images that can be mined: .txt, one a line; .jsonl, .csv, .tsv or .parquet with a column `caption`."""
    near_duplicates: bool = False
    """Filter out captions in nearly the same words as a true one (the rule of evaluation.near_duplicates)."""
    rank_min: Annotated[int, Field(gt=0)] = 1
    """Filter out captions ranked above this, from 1, in the image's own retrieval: the very first are most often true."""
    rank_max: Annotated[int, Field(gt=0)] | None = None
    """Filter out captions ranked below this; null: to pool_top_k."""
    max_score: float | None = None
    """In logits: filter out captions that score higher; null: no such rule."""
    perc_pos: Annotated[float, Field(gt=0, le=1)] | None = None
    """TopK-PercPos: most share of the best true caption's cosine (published: 0.95); null: no such rule."""
    margin_pos: float | None = None
    """TopK-MarginPos: least cosine under the best true caption (published for text: 0.05); null: no such rule."""
    max_uses: Annotated[int, Field(gt=0)] | None = None
    """Most images that one caption (by its text) is mined for; its uses go to those that come first in the selection. null: any number."""
    selection: Literal["top", "random", "softmax"] = "top"
    """Of what passes take the best scored, any at random, or a draw with odds exp(logit / temperature)."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """Of softmax, in logits: small is nearly top, large nearly random; null: 1."""
    denoise: DenoiseConfig | None = None
    """Ask a cross-encoder about what is about to be mined."""
    index: Literal["exact", "faiss"] = "exact"
    """How the pool is searched: exactly, or by FAISS (the extra faiss) where it is past that; its recall is measured and reported."""
    index_probes: Annotated[int, Field(gt=0)] = 32
    """With faiss: lists looked through for each image, of about the root of the pool's size; more finds more and takes longer."""
    form: Literal["columns", "images", "neighbours"] = "columns"
    """How what is mined is used: captions as additional columns; each caption's own hardest images in its batch (then every key here on
    captions of an image means images of a caption, and on a text means a group); or batches composed of images whose mined
    captions are one another's."""
    distil: DistilConfig | None = None
    """Learn from a cross-encoder's scores of the mined pairs; form columns only."""
    ranking: RankingConfig | None = None
    """Ask of the mined captions only that they score below the image's own one; form columns, scope own. null: a label each."""

    @property
    def most_columns(self) -> int:
        """Mined captions of an image in the loss, at most; relabelled ones come in addition to the negatives."""
        if self.form != "columns":
            return 0
        return self.negatives_per_image * (2 if self.denoise is not None and self.denoise.mode == "relabel" else 1)

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, record: Any) -> Any:
        if isinstance(record, str) and record not in PRESETS:
            raise ValueError(f"expected a preset ({', '.join(PRESETS)}), a section, or null for no mining; found {record!r:.100}")
        return with_preset(record)

    @model_validator(mode="before")
    @classmethod
    def _refuse_ensemble(cls, record: Any) -> Any:
        if not isinstance(record, dict) or "ensemble" not in record:
            return record
        if record["ensemble"]:
            raise ValueError("ensemble was removed, as no result showed that it helps: leave it out")
        return {key: value for key, value in record.items() if key != "ensemble"}  # earlier runs have an empty list

    @model_validator(mode="after")
    def _check(self) -> "MiningConfig":
        if (self.mine_every_steps is None) == (self.mine_every_epochs is None):
            raise ValueError("give exactly one of mine_every_steps and mine_every_epochs")
        if self.negatives_per_image > self.pool_top_k:
            raise ValueError(f"negatives_per_image {self.negatives_per_image} exceeds pool_top_k {self.pool_top_k}")
        last = self.pool_top_k if self.rank_max is None else self.rank_max
        if last > self.pool_top_k:
            raise ValueError(f"rank_max {last} lies beyond pool_top_k {self.pool_top_k}: nothing deeper is looked at")
        if self.negatives_per_image > last - self.rank_min + 1:
            window = max(0, last - self.rank_min + 1)
            raise ValueError(
                f"ranks {self.rank_min} (rank_min) to {last} (rank_max or pool_top_k) are {window} captions, fewer than "
                f"negatives_per_image {self.negatives_per_image}"
            )
        if self.temperature is not None and self.selection != "softmax":
            raise ValueError(f"temperature does nothing in selection {self.selection}: leave it out, or take selection: softmax")
        if self.index == "faiss" and self.form == "images":
            raise ValueError("form images searches the images exactly: leave out index: faiss, or take form: columns or neighbours")
        if self.index == "exact" and self.index_probes != type(self).model_fields["index_probes"].default:
            raise ValueError("index_probes does nothing in an exact search: leave it out, or take index: faiss")
        if self.form != "columns":
            of_columns = ("weight", "mined_scope", "pool", "distil", "ranking")
            if given := [key for key in of_columns if getattr(self, key) != type(self).model_fields[key].default]:
                raise ValueError(
                    f"form {self.form} adds no columns to the loss, so {' and '.join(given)} would do nothing: leave out, "
                    "or take form: columns"
                )
        if self.ranking is not None:
            other = {
                "mined_scope: all": self.mined_scope == "all",
                "distil": self.distil is not None,
                "denoise.mode: relabel": self.denoise is not None and self.denoise.mode == "relabel",
            }
            if given := [key for key, is_given in other.items() if is_given]:
                raise ValueError(f"ranking takes the place of {' and '.join(given)}: leave one of them out")
        return self
