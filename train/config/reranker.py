"""The configuration of a reranker's tuning (`python -m train.reranker`): every key with its meaning, unknown keys refused.

python -m train.config reranker prints the JSON schema, for editors.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from train.config.mining import DenoiseConfig, MiningConfig
from train.config.model import LoraConfig
from train.config.run import LoopConfig, RunConfig
from train.config.section import Section

What = Literal["head", "lora", "all"]


class CrossEncoderConfig(Section):
    """What is tuned."""

    base: str
    """The cross-encoder to start from, a BlipForImageTextRetrieval: a folder, or a hub id such as Salesforce/blip-itm-base-coco."""
    what: What = "all"
    """head: the matching head alone. lora: the head, and adapters in the text tower's attention, to the words and to the image. all: both
    towers and the head."""
    lora: LoraConfig | None = None
    """Of what: lora; null there: rank 16, alpha 32."""

    @model_validator(mode="after")
    def _check(self) -> "CrossEncoderConfig":
        if self.lora is not None and self.what != "lora":
            raise ValueError(f"lora does nothing with what: {self.what}; leave it out, or take what: lora")
        return self

    @property
    def adapters(self) -> LoraConfig | None:
        """The adapters in force."""
        return (self.lora or LoraConfig()) if self.what == "lora" else None


class NegativesConfig(Section):
    """What an image's true caption is told from. Hard ones are the retriever's own confusions, mined once by docs/mining-rules.md;
    what the data says is true is never among them."""

    captions_per_image: Annotated[int, Field(ge=0)] = 2
    """Hard captions that an image is paired with, at most."""
    images_per_caption: Annotated[int, Field(ge=0)] = 0
    """Hard images that its true caption is paired with, at most. Each is one more picture through the image tower."""
    drawn_from: Annotated[int, Field(gt=0)] = 8
    """So many of the hardest are mined; those that are paired are drawn from them, anew in each epoch."""
    pool_top_k: Annotated[int, Field(gt=0)] = 64
    """How many of the retriever's best are looked at."""
    margin: float | None = None
    """In the retriever's logits: take only what scores at least this far under the best true one; null: no such rule, for what scores above
    the true one is what a reranker is for."""
    near_duplicates: bool = False
    """Filter out captions in nearly the same words as a true one."""
    rank_min: Annotated[int, Field(gt=0)] = 1
    """Filter out what ranks above this, from 1: the very first are most often true."""
    perc_pos: Annotated[float, Field(gt=0, le=1)] | None = None
    """TopK-PercPos: most share of the best true one's cosine; null: no such rule."""
    drop_matches_at: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Ask the cross-encoder, before it is tuned, about what is to be mined, and filter out what it gives this probability of a match, or
    more: likely true, though the data does not state it. What it is surely wrong about is filtered out with it; null: nothing is asked."""
    easy_until_step: Annotated[int, Field(ge=0)] = 0
    """Up to this step negatives are easy ones only: other captions of the batch that are not true of the image."""
    fill_with_easy: bool = False
    """Where fewer hard ones were mined than asked for, take easy captions in their place; false: the shortfall stays. Counted apart."""

    @model_validator(mode="after")
    def _check(self) -> "NegativesConfig":
        if self.num_wanted == 0:
            raise ValueError("captions_per_image and images_per_caption are both 0: there is nothing to tell a true caption from")
        if self.drawn_from < max(self.captions_per_image, self.images_per_caption):
            raise ValueError(f"drawn_from {self.drawn_from} is fewer than are to be drawn from it")
        if self.drawn_from > self.pool_top_k - self.rank_min + 1:
            raise ValueError(
                f"drawn_from {self.drawn_from} is more than rank_min {self.rank_min} and pool_top_k {self.pool_top_k} leave to look at; "
                "lower drawn_from or rank_min, or raise pool_top_k"
            )
        return self

    @property
    def num_wanted(self) -> int:
        """Negatives of an image, of both kinds."""
        return self.captions_per_image + self.images_per_caption

    def mining(self, form: Literal["columns", "images"]) -> MiningConfig:
        """These rules as mining reads them: captions for images (columns), or images for captions."""
        return MiningConfig(
            mine_every_steps=1,
            negatives_per_image=self.drawn_from,
            pool_top_k=self.pool_top_k,
            margin=self.margin,
            near_duplicates=self.near_duplicates,
            rank_min=self.rank_min,
            perc_pos=self.perc_pos,
            denoise=None if self.drop_matches_at is None else DenoiseConfig(threshold=self.drop_matches_at),
            form=form,
        )


class RerankerLoopConfig(LoopConfig):
    """The loop that tunes the cross-encoder."""

    micro_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Images whose pairs go through the model at once on one process; below its share of the batch the gradients add up to the same."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the matching head; null: learning_rate."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_shard(cls, record: Any) -> Any:
        if isinstance(record, dict) and "shard" in record:
            raise ValueError("shard: a cross-encoder is not kept in parts; leave it out, and lower micro_batch_size where memory is short")
        return record


class MatchEvaluationConfig(Section):
    """What is reranked on val, and at the end on test."""

    top_k: Annotated[int, Field(gt=1)] = 16
    """The retriever's best of each query that are reranked, in both directions; left out: 16, or fewer where the split has fewer."""


class RerankerConfig(RunConfig):
    """One tuning of a reranker: everything `python -m train.reranker CONFIG.yaml` needs to know."""

    model: CrossEncoderConfig
    miner: str
    """The tuned SigLIP whose confusions are mined, and whose top-K is reranked: a folder such as runs/demo/export, or a hub id."""
    negatives: NegativesConfig = NegativesConfig()
    train: RerankerLoopConfig
    evaluation: MatchEvaluationConfig = MatchEvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, record: Any) -> Any:
        """The config.yaml of an earlier run names what is constant now (train/reranker/collapse.py)."""
        if isinstance(record, dict) and record.get("constant_answer") == {"within": 0.03, "over_steps": 50}:
            return {key: value for key, value in record.items() if key != "constant_answer"}
        return record

    @model_validator(mode="after")
    def _check(self) -> "RerankerConfig":
        if self.negatives.easy_until_step >= self.train.max_steps:
            raise ValueError(
                f"negatives.easy_until_step {self.negatives.easy_until_step} leaves no step of train.max_steps {self.train.max_steps} to "
                "the hard ones"
            )
        return self


MARKER = "miner"


def is_reranker(record: Mapping[str, Any]) -> bool:
    """Whether the keys and values of a file describe the tuning of a reranker."""
    return MARKER in record
