"""The configuration of a job: every key with its meaning, checked all at once, unknown keys refused.

python -m train.config prints the JSON schema, for editors.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from train.config.section import Name, Section

PATH_KEYS = ("base", "source", "image_root", "truth", "expand", "begin_at")
"""Keys, in any section, whose values lead to files; what they lead to is known by its content, wherever it lies."""


class DataConfig(Section):
    """The labelled pairs."""

    source: str
    """The manifest: .jsonl, .csv, .parquet, a folder or glob of .parquet, a saved `datasets` folder, an image folder, or a hub id."""
    image_root: str | None = None
    """Folder that image paths are relative to; default: the manifest's."""
    columns: dict[str, str] = {}
    """Our column (image, caption, captions, id, split, group) -> the manifest's name for it."""
    train_split: str | None = "train"
    """Rows to train on; null: the manifest has no splits, train on all of it."""
    val_split: str | None = "val"
    """Rows to evaluate on while training; null: no evaluation, the last checkpoint is exported."""
    test_split: str | None = "test"
    """Rows of the final evaluation; null: it is made on val."""
    truth: str | None = None
    """TREC qrels of true (image, caption) pairs the manifest does not state. Never trained on: counts false negatives among the mined."""
    expand: list[str] = []
    """Additional true captions of the train split, each a FILE_OR_METHOD of docs/expansion.md that makes texts: a file of paraphrases,
    column:NAME, templates, synonyms:FILE, wordnet, paraphrase:MODEL, captions:FILE, ... Val and test stay as they are."""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode pictures, per training process."""

    @property
    def has_two_to_choose(self) -> bool:
        """True if there is one split to choose on and another to measure on."""
        return None not in (self.val_split, self.test_split) and self.val_split != self.test_split


class LoopConfig(Section):
    """The loop, whatever it trains."""

    max_steps: Annotated[int, Field(gt=0)]
    """Optimizer steps."""
    batch_size: Annotated[int, Field(gt=1)]
    """Images per step, over all processes and micro-batches."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak rate of what trains, unless a part of it has its own."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW's decay, on the matrices of linear layers and convolutions only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's epsilon."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up before the cosine; null: 4% of max_steps, but at least 50 and at most a tenth."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null: never."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the towers in training; the loss and every evaluation are float32. fp16 (GPUs only) scales the loss."""
    random_crop_min_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Cut a random part of at least this share of each picture; 1: none. No flips: captions say left and right."""
    eval_every_steps: Annotated[int, Field(gt=0)]
    """Steps between evaluations on val; one more before step 1 and one at the end."""
    checkpoint_every_steps: Annotated[int, Field(gt=0)]
    """Steps between checkpoints; also one before step 1, one at each new best, one at the end."""
    keep_checkpoints: Annotated[int, Field(gt=0)] = 3
    """Newest checkpoints kept; the best is kept too."""
    begin_at: str | None = None
    """Another run's checkpoint to begin at, runs/OLD/checkpoints/step-N: its weights and optimizer state, with every key of this
    configuration (rate, precision, batch size, ...) from step 1 on. Model, base and data must be the same (docs/resuming.md)."""
    deterministic: bool = False
    """On a GPU, use deterministic algorithms, so that a resumed run is bit-equal (slower). On the CPU it always is."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 1800
    """How long a process waits for the others before it takes them for lost and ends; longer than the main process ever works alone."""

    @model_validator(mode="after")
    def _check(self) -> "LoopConfig":
        if self.warmup_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} leaves nothing of max_steps {self.max_steps}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie in [0, 1), found {self.betas}")
        return self

    @property
    def num_warmup_steps(self) -> int:
        """The warm-up in force."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return min(max(50, round(0.04 * self.max_steps)), self.max_steps // 10)


class WandbConfig(Section):
    """Weights & Biases, in addition to metrics.jsonl; its failures never stop a run."""

    project: str = "siglip-tuner"
    """Project to log to."""
    entity: str | None = None
    """Team or user."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps everything under runs/NAME/wandb for `wandb sync`."""


class RunConfig(Section):
    """What every run has, whatever it trains: a name, a seed, a folder, a loop."""

    mutable_keys: ClassVar[tuple[str, ...]] = (
        "name",
        "runs_folder",
        "wandb",
        "data.num_workers",
        "model.gradient_checkpointing",
        "train.micro_batch_size",
        "train.checkpoint_every_steps",
        "train.keep_checkpoints",
        "train.timeout_seconds",
    )
    """Keys that may change between a run and its continuation: no gradient changes by more than rounding."""

    name: Name
    """The run's folder is runs/NAME."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Order, caption choice, crops and dropout follow from it."""
    runs_folder: str = "runs"
    """Where run folders lie."""
    data: DataConfig
    """What is trained and measured on."""
    train: LoopConfig
    """How."""
    wandb: WandbConfig | None = None
    """Where the numbers go in addition to metrics.jsonl."""

    @model_validator(mode="after")
    def _check_run(self) -> "RunConfig":
        if self.data.train_split is None and (self.data.val_split or self.data.test_split):
            raise ValueError(
                "data.train_split is null (the manifest has no splits), so data.val_split and data.test_split must be null too"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where this run writes."""
        return Path(self.runs_folder) / self.name
