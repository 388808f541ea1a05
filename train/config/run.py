"""The configuration of a job: every key with its meaning, checked all at once, unknown keys refused.

python -m train.config prints the JSON schema, for editors.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, model_validator

from train.config.section import Name, Section
from train.config.sizes import DataSizes, FromData

PATH_KEYS = ("base", "source", "image_root", "truth", "expand", "begin_at")
"""Keys, in any section, whose values lead to files; what they lead to is known by its content, wherever it lies."""


class SplitConfig(Section):
    """Splits made by a hash of each image's group or id: when rows are added, those there before keep theirs (docs/splits.md)."""

    val: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the groups (or images) in data.val_split; 0: none is made."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the groups (or images) in data.test_split; 0: none is made."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Another seed, another split."""

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        if self.val + self.test >= 1:
            raise ValueError(f"val {self.val:g} and test {self.test:g} leave nothing to train on")
        return self


class DataConfig(Section):
    """The labelled pairs."""

    source: str
    """The manifest: .jsonl, .json, .csv, .tsv, .txt, .parquet, .tar, a folder or glob of them, a saved `datasets` folder, an image folder,
    or OWNER/NAME[:CONFIG][@REVISION] of the hub (docs/data.md)."""
    image_root: str | None = None
    """Folder that image paths are relative to; default: the manifest's."""
    columns: dict[str, str] = {}
    """Our column (image, caption, captions, id, split, group) -> the manifest's name for it."""
    split: SplitConfig | None = None
    """How the images of data.train_split, or of a manifest without splits, are divided into train, val and test. null: as the manifest
    says, and where it has none, {val: 0.1, test: 0.1, seed: 0}."""
    skip_missing: bool = False
    """Leave out rows whose picture is not there: counted at the start, listed in skipped.jsonl of the run's folder. false: they are
    faults."""
    train_split: str | None = "train"
    """Rows to train on; null: the manifest has no splits, train on all of it."""
    val_split: str | None = "val"
    """Rows to evaluate on while training; null: no evaluation, the last checkpoint is exported, and no split is made for it."""
    test_split: str | None = "test"
    """Rows of the final evaluation; null: it is made on val, and no split is made for it."""
    truth: str | None = None
    """TREC qrels of true (image, caption) pairs the manifest does not state. Never trained on: counts false negatives among the mined."""
    expand: list[str] = []
    """Additional true captions of the train split, each a FILE_OR_METHOD of docs/expansion.md that makes texts: a file of paraphrases,
    column:NAME, templates, synonyms:FILE, wordnet, paraphrase:MODEL, captions:FILE, ... Val and test stay as they are."""
    num_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode pictures, per training process."""
    cache_pixels: Annotated[float, Field(gt=0)] | None = None
    """GiB of disk in which pictures are held decoded and resized, made as they are first read and shared by the runs of a machine
    (docs/pixel-cache.md); null: every picture is decoded each time."""
    jpeg_at_scale: bool = False
    """Let the decoder of a JPEG give training a half, a quarter or an eighth of it where that is no smaller than the model's square:
    faster, and other pixels (docs/pixel-cache.md). Evaluations and mining read every picture in full."""
    skip_broken: bool = False
    """Leave pictures of val, test and retention sets that do not decode out, instead of refusing them: counted, and listed in
    runs/NAME/skipped.jsonl with those that training replaces. Every picture of these splits is decoded once more at each start."""

    @property
    def has_two_to_choose(self) -> bool:
        """True if there is one split to choose on and another to measure on."""
        return None not in (self.val_split, self.test_split) and self.val_split != self.test_split


class LoopConfig(Section):
    """The loop, whatever it trains."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the train images, in place of max_steps; null: as max_steps says."""
    max_steps: Annotated[int, Field(gt=0), FromData("epochs, which are 1 to 10: as many as make 512,000 images")]
    """Optimizer steps. Give this or epochs, or neither."""
    batch_size: Annotated[int, Field(gt=1), FromData("16 to 256: the power of 2 that is at most a tenth of the train images")]
    """Images per step, over all processes and micro-batches."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak rate of what trains, unless a part of it has its own."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """AdamW's decay, on the matrices of linear layers and convolutions only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW's epsilon."""
    warmup_steps: Annotated[int, Field(ge=0), FromData("4% of max_steps, at least 50, at most a tenth", takes_share=True)] | None = None
    """Steps of linear warm-up before the cosine, or a share of max_steps below 1; null: 4% of max_steps, but at least 50 and at most a
    tenth."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Average the weights over the steps (exponential moving average, e.g. 0.99), and evaluate, choose and export the averages; null: the
    weights themselves (docs/optimizer.md)."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this global norm; null: never."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the towers in training; the loss and every evaluation are float32. fp16 (GPUs only) scales the loss."""
    random_crop_min_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Cut a random part of at least this share of each picture; 1: none. No flips: captions say left and right."""
    eval_every_steps: Annotated[int, Field(gt=0), FromData("a tenth of max_steps", takes_share=True)]
    """Steps between evaluations on val, or a share of max_steps below 1; one more before step 1 and one at the end."""
    checkpoint_every_steps: Annotated[int, Field(gt=0), FromData("a tenth of max_steps", takes_share=True)]
    """Steps between checkpoints, or a share of max_steps below 1; also one before step 1, one at each new best, one at the end."""
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
        if self.epochs is not None:  # otherwise it has become max_steps already
            raise ValueError("give one of epochs and max_steps")
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
        "tracking",
        "wandb",
        "curves",
        "data.num_workers",
        "data.skip_broken",
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
    tracking: list[Literal["wandb", "tensorboard", "trackio"]] = []
    """Where the numbers go in addition to metrics.jsonl (docs/tracking.md)."""
    wandb: WandbConfig | None = None
    """How Weights & Biases is used; giving this section asks for it, as `tracking: [wandb]` does. trackio takes its project from here."""
    curves: bool = True
    """Draw runs/NAME/curves.png and .svg at the end, and at evaluations, as far as it takes under a hundredth of the time."""

    _resolve: Callable[[DataSizes, SplitConfig | None], Any] | None = PrivateAttr(default=None)
    _filled: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_run(self) -> "RunConfig":
        if self.data.train_split is None and self.data.split is not None:
            raise ValueError("data.split makes splits, and data.train_split null asks for none; leave one of them out")
        if self.data.train_split is None and (self.data.val_split or self.data.test_split):
            raise ValueError(
                "data.train_split is null (the manifest has no splits), so data.val_split and data.test_split must be null too"
            )
        if self.data.jpeg_at_scale and self.train.random_crop_min_area < 1:
            raise ValueError(
                "data.jpeg_at_scale would leave a random crop fewer pixels than the model reads: leave it out, or take "
                "train.random_crop_min_area 1; data.cache_pixels goes with crops"
            )
        return self

    def filled(self, values: Mapping[str, Any], resolve: Callable[[DataSizes, SplitConfig | None], Any] | None) -> Self:
        """Note which keys were filled in (train/config/sizes.py) and, while the data are not read, what makes the final configuration."""
        self._filled, self._resolve = dict(values), resolve
        return self

    @property
    def is_open(self) -> bool:
        """True while sizes follow from data that are not read yet."""
        return self._resolve is not None

    def resolved(self, sizes: DataSizes, made_split: SplitConfig | None) -> Self:
        """The same with every size that follows from the data.

        Args:
            made_split: how the splits were made, where nothing was said.

        Raises:
            train.config.load.ConfigError: what is asked for does not go with these sizes.
        """
        assert self._resolve is not None
        config: Self = self._resolve(sizes, made_split)
        return config

    @property
    def from_data(self) -> dict[str, Any]:
        """The keys that follow from the data, "train.max_steps", with their values."""
        return self._filled

    @property
    def trackers(self) -> list[str]:
        """The trackers that are asked for, each once."""
        return list(dict.fromkeys([*self.tracking, *(["wandb"] if self.wandb is not None else [])]))

    @property
    def free_keys(self) -> tuple[str, ...]:
        """The keys that may change between this run and its continuation: without random crops a cache of pixels gives the same bits."""
        return (*self.mutable_keys, *(["data.cache_pixels"] if self.train.random_crop_min_area == 1 else []))

    @property
    def run_folder(self) -> Path:
        """Where this run writes."""
        return Path(self.runs_folder) / self.name
