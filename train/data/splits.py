"""The data of a run: splits, retention sets (`watch`) and additional captions, read once; all faults are reported together."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from eval.dataset.broken import without_broken
from eval.dataset.caption_rule import as_read_by
from eval.dataset.different_texts import Gallery
from eval.dataset.leakage import Leakage, find_leakage
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import known_pairs
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError, named
from eval.execution import Execution
from eval.manifest.made_split import Divide, SplitByHash, where_none, write_splits
from eval.manifest.manifest import Fault, Manifest, RowRules, Skipped, read_manifest
from eval.manifest.memory import release_unused
from eval.manifest.names import KEYS, calling
from rerank.expansions.parse import kept_columns, read_expansions
from rerank.reorder.stages import check_top_k
from train.config.evaluation import WatchConfig
from train.config.job import JobConfig
from train.config.run import DataConfig, RunConfig, SplitConfig
from train.config.sizes import DataSizes
from train.data.caption_pool import AdditionalCaptions, read_additional_captions
from train.data.extra_captions import expanded, parse_expansions


def ground_truth_pairs(config: RunConfig, train_set: RetrievalSet) -> set[tuple[str, str]] | None:
    """(image id, caption id) of the qrels' pairs in the train split, in either direction of the file; None without qrels."""
    if config.data.truth is None:
        return None
    (images_P, captions_P), _ = known_pairs(train_set, read_qrels(config.data.truth))
    return {(train_set.image_ids[image], train_set.caption_id(caption)) for image, caption in zip(images_P, captions_P, strict=True)}


@dataclass(frozen=True)
class RetentionSet:
    """One retention set (`watch`), read."""

    config: WatchConfig
    dataset: RetrievalSet
    reading_lines: list[str] = field(default_factory=list)
    """What a person should know of how its manifest was read."""

    @classmethod
    def load(cls, config: WatchConfig, data: DataConfig | None = None) -> "RetentionSet":
        """Read its manifest; `data` says whether broken pictures are left out.

        Raises:
            UserError: with every fault of it.
        """
        wanted = [config.split] if config.split is not None else []
        try:
            with calling({setting: name.replace("data.", "watch.") for setting, name in KEYS.items()} | {"splits": "watch.split"}):
                rules = RowRules(skip_missing=config.skip_missing)
                manifest = read_manifest(
                    config.source, image_root=config.image_root, columns=config.columns, require_splits=wanted, rules=rules
                )
                manifest = _without_broken(manifest, [config.split], data)
                return cls(config, load_split(manifest, config.split), manifest.lines())
        except UserError as error:
            raise UserError(f"retention set {config.name!r}: {error}") from error


@dataclass(frozen=True)
class Splits:
    """The data of a job."""

    train: RetrievalSet
    val: RetrievalSet | None
    test: RetrievalSet | None
    unused: dict[str, int]
    """Number of images of every other split of the manifest; shows a misspelt split."""
    watch: list[RetentionSet] = field(default_factory=list)
    additional: AdditionalCaptions | None = None
    """Captions without images that can be mined."""
    reading_lines: list[str] = field(default_factory=list)
    """What a person should know of how the manifest was read."""
    expand_lines: list[str] = field(default_factory=list)
    """What data.expand added to train, one line for each expansion."""
    made: SplitConfig | None = None
    """How train, val and test were made of images without them; None: they are the manifest's."""
    skipped_rows: Sequence[Skipped] = ()
    """What was left out of the manifest as asked, also of splits that the job does not name."""

    def all(self) -> list[RetrievalSet]:
        """All splits and retention sets."""
        return [split for split in (self.train, self.val, self.test) if split is not None] + [watched.dataset for watched in self.watch]

    def all_reading_lines(self) -> list[str]:
        """What a person should know of how the manifest and those of the retention sets were read."""
        return self.reading_lines + [f"{line} (watch set {one.config.name})" for one in self.watch for line in one.reading_lines]

    def as_read_by(self, inputs: SiglipInputs) -> "Splits":
        """The same by the rule on punctuation between digits that suits a tokenizer (eval/dataset/caption_rule.py)."""
        sets = self.all()
        additional = self.additional.texts if self.additional is not None else ()
        read = dict(zip(map(id, sets), as_read_by([inputs], sets, additional), strict=True))
        train, val, test = (None if split is None else read[id(split)] for split in (self.train, self.val, self.test))
        assert train is not None
        watch = [replace(watched, dataset=read[id(watched.dataset)]) for watched in self.watch]
        return replace(self, train=train, val=val, test=test, watch=watch)

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out of the splits and the retention sets, as asked."""
        return list(dict.fromkeys(row for dataset in self.all() for row in dataset.skipped))

    def sizes(self, gallery: Gallery = "every") -> DataSizes:
        """What sizes of a configuration follow from; `gallery`: the texts that are ranked."""
        measured = [split for split in (self.test, self.val) if split is not None] or [self.train]
        num_texts = [len(np.unique(split.caption_hash_C)) if gallery == "different" else split.num_captions for split in measured]
        return DataSizes(self.train.num_images, min(*num_texts, *(split.num_images for split in measured)))

    def write_made(self, path: Path) -> None:
        """Write the ids of the images of each split, where they were made.

        Raises:
            OSError: it cannot be written.
        """
        if self.made is not None:
            write_splits(path, {str(split.split): split.image_ids for split in (self.train, self.val, self.test) if split is not None})

    def leakages(self) -> list[Leakage]:
        """What val, test and the retention sets share with train, and test with val."""
        found = [find_leakage(split, self.train) for split in (self.val, self.test) if split is not None]
        found += [replace(find_leakage(watched.dataset, self.train), split=f"watch set {watched.config.name}") for watched in self.watch]
        return found + ([find_leakage(self.test, self.val)] if self.test is not None and self.val is not None else [])


def load_data(config: JobConfig) -> Splits:
    """Read the manifest and its splits, the retention sets, and the additional captions of mining.pool.

    Raises:
        UserError: with every fault of every manifest, or a split too small for the job.
    """
    faults: list[UserError] = []
    sets: list[RetentionSet] = []
    additional: AdditionalCaptions | None = None
    if config.mining is not None and config.mining.pool is not None:
        try:
            additional = read_additional_captions(config.mining.pool)
        except UserError as error:
            faults.append(error)
    for watched in config.watch:
        try:
            sets.append(RetentionSet.load(watched, config.data))
        except UserError as error:
            faults.append(error)
    try:
        asked = config.evaluation
        splits = load_splits(config, slice_by=asked.slice_by, keep=kept_columns(read_expansions(asked.expand).values()))
        if not config.is_open:
            check_sizes(config, splits)
    except UserError as error:
        faults.insert(0, error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UserError("\n".join(str(fault) for fault in faults))
    return replace(splits, watch=sets, additional=additional)


def check_sizes(config: JobConfig, splits: Splits) -> None:
    """Refuse a batch, or candidates of the reranker, that the splits do not suffice for.

    Raises:
        UserError: naming the first.
    """
    check_batch_size(config, splits.train)
    if config.rerank is not None:
        for split in (splits.test or splits.val, splits.val if config.rerank.chooses else None):
            if split is not None:
                with named({"top_k": "rerank.top_k"}):
                    check_top_k(split, config.rerank.top_k)


def check_batch_size(config: RunConfig, train: RetrievalSet) -> None:
    """Refuse a batch larger than the train split.

    Raises:
        UserError: it is.
    """
    if train.num_images < config.train.batch_size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but split {config.data.train_split!r} has only {train.num_images} images, "
            f"and an image is never twice in a batch: give {train.num_images} or less, or leave it out"
        )


@dataclass
class SplitMaker:
    """Gives images without splits theirs, as data.split says, and notes whether it did.

    Attributes:
        made: how; None: the splits are the manifest's.
    """

    data: DataConfig
    made: SplitConfig | None = None

    @property
    def divide(self) -> Divide | None:
        """As `eval.manifest.manifest.read_manifest` takes it; None where no splits are wanted."""
        return self._divide if self.data.train_split is not None else None

    def _divide(self, manifest: Manifest) -> list[Fault]:
        data, asked, before = self.data, self.data.split or SplitConfig(), manifest.splits
        if data.split is None and None not in before and data.train_split in before:
            return _missing_splits(data, manifest)
        names = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
        by_hash = SplitByHash.of_names(names, {"val": asked.val, "test": asked.test}, asked.seed).divide
        faults = (by_hash if data.split is not None else where_none(by_hash))(manifest)
        self.made = asked if manifest.splits != before else None
        return faults


def _missing_splits(data: DataConfig, manifest: Manifest) -> list[Fault]:
    """Val or test that a manifest with train does not have, and how to get it."""
    found = [name for name in manifest.splits if name is not None]
    missing = {key: name for key, name in (("val", data.val_split), ("test", data.test_split)) if name is not None and name not in found}
    if not missing:
        return []
    shares = ", ".join(f"{key}: {0.1 if key in missing else 0}" for key in ("val", "test"))
    others = [name for name in found if name not in (data.train_split, data.val_split, data.test_split)]
    renamed = f"name it (data.{next(iter(missing))}_split={others[0]}), or " if others else ""
    remedy = f"{renamed}take what is missing from {data.train_split!r}: 'data.split={{{shares}}}'; null is for a split that is not wanted"
    what = f"no row has split {' or '.join(map(repr, missing.values()))}; splits found: {', '.join(map(repr, found))}. To mend it, {remedy}"
    return [Fault(manifest.source, "no such split", what)]


def load_splits(config: RunConfig, *, slice_by: Sequence[str] = (), keep: Sequence[str] = ()) -> Splits:
    """Train, val and test of any run.

    Raises:
        UserError: with every fault of the manifest.
    """
    data = config.data
    expansions = parse_expansions(data.expand)
    wanted = [split for split in (data.train_split, data.val_split, data.test_split) if split is not None]
    maker = SplitMaker(data)
    manifest = read_manifest(
        data.source,
        image_root=data.image_root,
        columns=data.columns,
        require_splits=wanted,
        slice_by=slice_by,
        keep=list(dict.fromkeys([*kept_columns(expansions), *keep])),
        rules=RowRules(skip_missing=data.skip_missing, divide=maker.divide),
    )
    measured = dict.fromkeys(split for split in (data.val_split, data.test_split) if split is not None)
    manifest = _without_broken(manifest, list(measured), data)
    unused = {split: count for split, count in manifest.images.split_counts.items() if split is not None and split not in wanted}
    train = load_split(manifest, data.train_split)
    val, test = (None if split is None else load_split(manifest, split) for split in (data.val_split, data.test_split))
    train, lines = expanded(manifest, data.train_split, train, expansions) if expansions else (train, [])
    splits = Splits(
        train, val, test, unused, reading_lines=manifest.lines(), expand_lines=lines, made=maker.made, skipped_rows=manifest.skipped
    )
    del manifest
    release_unused()
    return splits


def _without_broken(manifest: Manifest, splits: Sequence[str | None], data: DataConfig | None) -> Manifest:
    """As `eval.dataset.broken.without_broken`, where data.skip_broken asks for it; each process for itself, since reading is."""
    if data is None or not data.skip_broken:
        return manifest
    return without_broken(manifest, splits, Execution(num_workers=data.num_workers))
