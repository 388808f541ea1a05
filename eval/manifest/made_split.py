"""Splits of a manifest that has none: made by a hash of each image's group or id, or read from the file that a run wrote.

A split by hash does not depend on the other rows: when rows are added, those there before keep theirs. All images of a group are together.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eval.atomic import replace_files
from eval.errors import UserError
from eval.files import require_plain
from eval.manifest.manifest import Fault, Manifest

FILE = "split.parquet"
"""In a run's folder: the columns id and split."""
LEAST_IMAGES = 20
"""Fewer are not split: the parts that are measured would hold an image or none."""
_SEEDS_TRIED = 1000
_MOST_NAMED = 5

Divide = Callable[[Manifest], list[Fault]]
"""Gives the images of a manifest their splits, in place; what is wrong."""


@dataclass(frozen=True)
class SplitByHash:
    """Which split an image has: a function of (seed, its group or id).

    Attributes:
        shares: name of a split -> its share of the groups, in [0, 1).
        rest: name of the split of all others.
        seed: of the hash.
    """

    shares: Mapping[str, float]
    rest: str
    seed: int = 0

    @classmethod
    def of_names(cls, names: Mapping[str, str | None], shares: Mapping[str, float], seed: int) -> "SplitByHash":
        """As a run makes them.

        Args:
            names: of the splits that are its train, val and test; None: it has none.
            shares: of val and test.
        """
        return cls({name: shares[part] for part in ("test", "val") if (name := names[part]) is not None}, str(names["train"]), seed)

    def of(self, key: str) -> str:
        """The split of a group or of an image without one."""
        digest = hashlib.blake2b(f"{self.seed} {key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return self.rest

    def divide(self, manifest: Manifest) -> list[Fault]:
        """Give the images of split `rest`, or all images of a manifest without splits, their splits; what is wrong."""
        found, names = manifest.splits, manifest.images.split_names()
        chosen = [image for image, name in enumerate(names) if found == [None] or name == self.rest]
        taken = sorted({name for name, share in self.shares.items() if share > 0} & set(found))
        what = "data.split would make the split {!r}, which the manifest has already; set its share to 0"
        faults = [Fault(manifest.source, "split twice", what.format(name)) for name in taken]
        if not chosen or faults:
            return faults
        if len(chosen) < LEAST_IMAGES:
            what = f"{len(chosen)} images are too few to make splits of, at least {LEAST_IMAGES}; add images, or a column `split`"
            return [Fault(manifest.source, "too few images", f"{what}. {_UNMEASURED}")]
        every = _keys(manifest)
        keys = [every[image] for image in chosen]
        wanted = {self.rest, *(name for name, share in self.shares.items() if share > 0)}
        if empty := sorted(wanted - {self.of(key) for key in keys}):
            return [Fault(manifest.source, "empty split", self._empty_split(empty, set(keys), wanted))]
        for image, key in zip(chosen, keys, strict=True):
            names[image] = self.of(key)
        manifest.images = manifest.images.with_splits(names)
        manifest.skipped = [
            replace(row, split=self.of(row.group or row.image)) if found == [None] or row.split == self.rest else row
            for row in manifest.skipped
        ]
        return []

    def _empty_split(self, empty: list[str], keys: set[str], wanted: set[str]) -> str:
        what = f"data.split.seed={self.seed} leaves {' and '.join(map(repr, empty))} without an image, of {len(keys)} groups or images"
        others = (SplitByHash(self.shares, self.rest, seed) for seed in range(_SEEDS_TRIED))
        seed = next((other.seed for other in others if wanted <= {other.of(key) for key in keys}), None)
        return f"{what}; " + ("raise its share, or add groups" if seed is None else f"take data.split.seed={seed}, which does not")


_UNMEASURED = "To train on all of them and measure nothing: data.train_split=null data.val_split=null data.test_split=null"


def where_none(divide: Divide) -> Divide:
    """The same for a manifest without splits; another is left as it is."""
    return lambda manifest: divide(manifest) if manifest.splits == [None] else []


def divide_by_file(path: str | os.PathLike[str], rule: SplitByHash | None = None) -> Divide:
    """Splits from a file that a run wrote. An image that it does not name, which came later, is where the run's rule places it; where that
    is not known, or is not what made the file, it is in no split. Either is told.

    Raises:
        UserError: it cannot be read.
    """
    split_of = read_splits(path)

    def divide(manifest: Manifest) -> list[Fault]:
        if manifest.splits != [None]:
            return [Fault(manifest.source, "splits twice", f"the manifest has splits of its own; leave out --split-file {path}")]
        ids, keys = manifest.images.ids.to_pylist(), _keys(manifest)
        known = {*ids, *(row.image for row in manifest.skipped)}
        if gone := [name for name in split_of if name not in known]:
            what = f"{len(gone)} of the {len(split_of)} images in {path} are not in the manifest, e.g. {', '.join(map(repr, gone[:3]))}"
            return [Fault(manifest.source, "no such image", f"{what}. Give the data of the run that wrote it")]
        made_it = rule is not None and all(rule.of(key) == split_of[name] for name, key in zip(ids, keys, strict=True) if name in split_of)

        def placed(name: str, key: str) -> str | None:
            return split_of.get(name) or (rule.of(key) if made_it and rule is not None else None)

        splits = [placed(name, key) for name, key in zip(ids, keys, strict=True)]
        manifest.images = manifest.images.with_splits(splits)
        manifest.skipped = [replace(row, split=placed(row.image, row.group or row.image)) for row in manifest.skipped]
        new = {name: split for name, split in zip(ids, splits, strict=True) if name not in split_of}
        manifest.has_unplaced = None in new.values()
        manifest.remarks += [f"splits    {_new_images(new, path)}"] if new else []
        return []

    return divide


def _keys(manifest: Manifest) -> list[str]:
    """What the split of each image follows from: its group, or its id."""
    groups = [*manifest.images.groups, None]
    return [groups[group] or name for name, group in zip(manifest.images.ids.to_pylist(), manifest.images.group_I.tolist(), strict=True)]


def _new_images(split_of: Mapping[str, str | None], path: str | os.PathLike[str]) -> str:
    """What became of the images that a run's file of splits does not name."""
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(Counter(split_of.values()).items(), key=str))
    named = ", ".join(map(repr, list(split_of)[:_MOST_NAMED])) + (", ..." if len(split_of) > _MOST_NAMED else "")
    what = f"{len(split_of):,} image(s) are not in {path}"
    if None in split_of.values():
        return f"{what}, and the rule that made it is not known: in no split, left out: {named}"
    return f"{what}: placed by the rule that made it ({counts}): {named}"


def read_splits(path: str | os.PathLike[str]) -> dict[str, str]:
    """The split of each image id.

    Raises:
        UserError: it cannot be read.
    """
    try:
        require_plain(path)
        table = pq.read_table(path, columns=["id", "split"])
        return dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected the {FILE} of a run, with the columns id and split ({error})") from error


def write_splits(path: Path, ids_of: Mapping[str, Iterable[str]]) -> None:
    """Write the ids of every split, sorted.

    Raises:
        OSError: it cannot be written.
    """
    rows = sorted((name, split) for split, ids in ids_of.items() for name in ids)
    columns = {"id": [name for name, _ in rows], "split": [split for _, split in rows]}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    replace_files({path: partial(pq.write_table, table)})
