"""The data of a run: splits, retention sets (`watch`) and additional captions, read once; all faults are reported together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from eval.dataset.leakage import Leakage, find_leakage
from eval.dataset.qrels import read_qrels
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.dataset.truth import known_pairs
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from rerank.expansions.parse import kept_columns, read_expansions
from rerank.reorder.stages import check_top_k
from train.config.evaluation import WatchConfig
from train.config.job import JobConfig
from train.config.run import RunConfig
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

    @classmethod
    def load(cls, config: WatchConfig) -> "RetentionSet":
        """Read its manifest.

        Raises:
            UserError: with every fault of it.
        """
        wanted = [config.split] if config.split is not None else []
        try:
            manifest = read_manifest(config.source, image_root=config.image_root, columns=config.columns, require_splits=wanted)
            return cls(config, load_split(manifest, config.split))
        except UserError as error:
            raise UserError(f"retention set {config.name!r} (its keys are under watch, not under data): {error}") from error


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
    expand_lines: list[str] = field(default_factory=list)
    """What data.expand added to train, one line for each expansion."""

    def all(self) -> list[RetrievalSet]:
        """All splits and retention sets."""
        return [split for split in (self.train, self.val, self.test) if split is not None] + [watched.dataset for watched in self.watch]

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
            sets.append(RetentionSet.load(watched))
        except UserError as error:
            faults.append(error)
    try:
        asked, rerank = config.evaluation, config.rerank
        splits = load_splits(config, slice_by=asked.slice_by, keep=kept_columns(read_expansions(asked.expand).values()))
        if rerank is not None:
            for split in (splits.test or splits.val, splits.val if rerank.chooses else None):
                if split is not None:
                    check_top_k(split, rerank.top_k)
    except UserError as error:
        faults.insert(0, error)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise UserError("\n".join(str(fault) for fault in faults))
    return replace(splits, watch=sets, additional=additional)


def load_splits(config: RunConfig, *, slice_by: Sequence[str] = (), keep: Sequence[str] = ()) -> Splits:
    """Train, val and test of any run.

    Raises:
        UserError: with every fault of the manifest, or a train split too small for the batch.
    """
    data = config.data
    expansions = parse_expansions(data.expand)
    wanted = [split for split in (data.train_split, data.val_split, data.test_split) if split is not None]
    manifest = read_manifest(
        data.source,
        image_root=data.image_root,
        columns=data.columns,
        require_splits=wanted,
        slice_by=slice_by,
        keep=list(dict.fromkeys([*kept_columns(expansions), *keep])),
    )
    unused = Counter(image.split for image in manifest.images if image.split is not None and image.split not in wanted)
    train = load_split(manifest, data.train_split)
    val, test = (None if split is None else load_split(manifest, split) for split in (data.val_split, data.test_split))
    if train.num_images < config.train.batch_size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}, but split {data.train_split!r} has only {train.num_images} images; "
            "an image is never twice in a batch"
        )
    train, lines = expanded(manifest, data.train_split, train, expansions) if expansions else (train, [])
    return Splits(train, val, test, dict(unused), expand_lines=lines)
