"""The configuration of SigLIP's tuning: model, loop, mining and what is evaluated."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from train.config.evaluation import EvaluationConfig, RerankConfig, WatchConfig
from train.config.export import ExportConfig
from train.config.mining import PRESETS, MiningConfig
from train.config.model import ModelConfig
from train.config.run import LoopConfig, RunConfig


def _or_a_preset(schema: dict[str, Any]) -> None:
    """Let the schema of `mining` be a preset's name too."""
    schema["anyOf"].insert(1, {"type": "string", "enum": list(PRESETS)})


class TrainConfig(LoopConfig):
    """The loop that tunes SigLIP."""

    captions_per_image: Annotated[int, Field(gt=0)] = 1
    """Different captions of each image in a step, all positive; fewer where it has fewer. Each epoch takes others of them."""
    micro_batch_size: Annotated[int, Field(gt=0)] | None = None
    """Images (or texts) embedded at once on one process; below its share of the batch: cached micro-batches, each embedded twice."""
    image_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the image tower."""
    text_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the text tower."""
    scale_bias_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of logit scale and bias."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Multiply the rate of each layer of a tower by this, e.g. 0.75, once for every layer above it, so that lower layers move less; scale
    and bias keep theirs. null: all layers have the tower's rate (docs/optimizer.md)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices of the towers move by orthogonal steps of about AdamW's size, at the same rate; AdamW takes the rest
    (docs/optimizer.md)."""
    shard: bool = False
    """Keep weights, gradients and optimizer state in parts, one on each process (FSDP), for a model beyond one GPU's memory."""
    compile: bool = False
    """Compile both towers (torch.compile) for the shapes of the steps: minutes before step 1, and steps that may be faster after it
    (docs/optimizer.md)."""


class JobConfig(RunConfig):
    """One job: everything `python -m train CONFIG.yaml` needs to know."""

    mutable_keys: ClassVar[tuple[str, ...]] = (
        *RunConfig.mutable_keys,
        "train.compile",
        "rerank",
        *(f"evaluation.{key}" for key in EvaluationConfig.model_fields if key != "precision"),  # val's figures choose the best checkpoint
        "choices",
        "export",
    )

    model: ModelConfig
    train: TrainConfig
    mining: Annotated[MiningConfig | None, Field(json_schema_extra=_or_a_preset)] = None
    rerank: RerankConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: list[WatchConfig] = []
    """Sets that show what is forgotten while val is learnt (docs/forgetting.md)."""
    choices: list[str] | None = None
    """Choice sets (.jsonl or .parquet, see docs/choices.md) that base, tuned and evaluation.models are measured on at the end."""
    export: ExportConfig = ExportConfig()
    """In which forms the best checkpoint is written."""

    @model_validator(mode="after")
    def _check(self) -> "JobConfig":
        data, mining, batch_size, cross_encoder = self.data, self.mining, self.train.batch_size, self.cross_encoder_model
        per_image = self.train.captions_per_image
        all_frozen = {"image", "text"} <= set(self.model.freeze)
        if all_frozen and self.model.lora is not None:
            raise ValueError("model.freeze names both towers, so model.lora has nothing to adapt")
        if self.train.optimizer == "muon" and (self.model.lora is not None or self.train.shard):
            other = "model.lora" if self.model.lora is not None else "train.shard"
            raise ValueError(f"train.optimizer muon needs whole matrices of the towers, so it does not go with {other}: leave one out")
        if all_frozen and self.train.optimizer == "muon":
            raise ValueError("model.freeze names both towers, so train.optimizer muon has no matrix to move")
        if all_frozen and self.train.layer_decay is not None:
            raise ValueError("model.freeze names both towers, so train.layer_decay has no layer to act on")
        if data.jpeg_at_scale and "image" in self.model.freeze and self.model.cache_frozen:
            raise ValueError("model.freeze names the image tower, which reads every picture once and in full: leave data.jpeg_at_scale out")
        if self.choices and not (data.val_split or data.test_split):
            raise ValueError("choices are part of the final report, which needs data.test_split or data.val_split")
        if mining is not None:
            if mining.start_step >= self.train.max_steps:
                raise ValueError(f"mining.start_step {mining.start_step} lies beyond train.max_steps {self.train.max_steps}")
            if mining.form == "images" and mining.negatives_per_image >= batch_size:
                raise ValueError(
                    f"mining.form images: {mining.negatives_per_image} hard images of one caption and its own image do not fit into "
                    f"train.batch_size {batch_size}; lower mining.negatives_per_image"
                )
            of_one = {
                "mining.form images": mining.form == "images",
                "mining.distil.form lists": mining.distil is not None and mining.distil.form == "lists",
                "mining.ranking": mining.ranking is not None,
            }
            if per_image > 1 and any(of_one.values()):
                raise ValueError(
                    f"train.captions_per_image {per_image}: {' and '.join(key for key, given in of_one.items() if given)} takes one "
                    "caption of an image; set train.captions_per_image=1, or leave that out"
                )
            for key, section in (("denoise", mining.denoise), ("distil", mining.distil)):
                if section is not None and cross_encoder is None:
                    raise ValueError(f"mining.{key} needs a cross-encoder: give mining.{key}.model or rerank.model")
            if mining.distil is not None and mining.distil.model not in (None, cross_encoder):
                raise ValueError(
                    f"mining.denoise asks {cross_encoder} and mining.distil {mining.distil.model}: a pair is scored once, "
                    "by one cross-encoder; give both the same, or leave out mining.distil.model"
                )
        if self.rerank is not None and self.rerank.chooses and not data.has_two_to_choose:
            raise ValueError(
                "rerank.fusion and rerank.adaptive are chosen on data.val_split and measured on data.test_split, and need both, and two: "
                "what is chosen on the queries it is measured on looks better than it is"
            )
        if self.evaluation.chooses and not data.has_two_to_choose:
            raise ValueError(
                "weights of evaluation.ensemble, pooling of evaluation.expand and evaluation.nnn are chosen on data.val_split and measured "
                "on data.test_split, and need both, and two; give the ensemble's members weights, or leave out what is chosen"
            )
        if self.evaluation.calibration and self.rerank is not None and self.rerank.skip_margin is not None:
            raise ValueError(
                "evaluation.calibration needs the score of every candidate, and rerank.skip_margin leaves some without: leave one out"
            )
        names = [watch.name for watch in self.watch]
        if len(set(names)) < len(names):
            raise ValueError(f"watch: each set needs a name of its own, found {names}")
        if self.data.val_split is None and any(watch.on_drop != "report" for watch in self.watch):
            raise ValueError("watch: on_drop bar and stop need a best checkpoint, and without data.val_split there is none; take report")
        return self

    @property
    def base(self) -> str:
        """The checkpoint it starts from; random weights lie in the run's folder."""
        return self.model.base if self.model.base is not None else str(self.run_folder / "scratch")

    @property
    def most_mined(self) -> int:
        """Mined captions of an image in the loss, at most."""
        return self.mining.most_columns if self.mining is not None else 0

    @property
    def cross_encoder_model(self) -> str | None:
        """The cross-encoder that scores what is mined; None without one."""
        if self.mining is None or (self.mining.denoise is None and self.mining.distil is None):
            return None
        own = self.mining.denoise.model if self.mining.denoise is not None else self.mining.distil and self.mining.distil.model
        return own or (self.rerank.model if self.rerank is not None else None)

    @property
    def cross_encoder_key(self) -> str:
        """The key that names `cross_encoder_model`."""
        mining = self.mining
        for key, section in (("denoise", mining.denoise), ("distil", mining.distil)) if mining is not None else ():
            if section is not None and section.model is not None:
                return f"mining.{key}.model"
        return "rerank.model"

    @property
    def pair_scores_folder(self) -> Path | None:
        """Where the final evaluation's pair scores are cached; None: nowhere."""
        if self.rerank is None or self.rerank.pair_scores is False:
            return None
        return Path(self.runs_folder) / "pair-scores" if self.rerank.pair_scores is None else Path(self.rerank.pair_scores)
