"""What a data set holds, as far as it matters for a first configuration: looked at once, nothing written, nothing fetched."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.columns import guess_columns
from eval.manifest.manifest import COLUMNS, RowRules, left_out_line, read_manifest
from eval.manifest.source import open_rows
from train.init.groups import suggest_groups

MOST_TRIED = 200
"""Pictures that are decoded."""
_MOST_RECORDS = 20_000
_SHARE_REPEATED = 0.1


@dataclass(kw_only=True)
class Survey:
    """What was found.

    Attributes:
        columns: our column -> the source's own, for `data.columns`.
        splits: images of each split; {None: all} where there are none.
        num_texts: different captions, normalised.
        groups: what may say that several pictures show one thing.
        num_tried, broken: pictures that were decoded, and those that could not be.
        num_left_out: rows left out because their picture is missing.
        left_out: rows that hold no pair and are no fault, in words; empty: none.
    """

    source: str
    columns: dict[str, str]
    num_images: int = 0
    num_captions: int = 0
    num_texts: int = 0
    splits: dict[str | None, int] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    num_tried: int = 0
    broken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_out: str = ""

    @property
    def num_train(self) -> int:
        """Images to train on: of the split train, or of what a split made by the tool leaves of all."""
        if self.splits.keys() == {None}:
            return round(0.8 * self.num_images)
        return self.splits.get("train", self.num_images)

    @property
    def repeats_texts(self) -> bool:
        """True if many captions are the same text."""
        return self.num_texts < (1 - _SHARE_REPEATED) * self.num_captions

    def lines(self) -> list[str]:
        """For the terminal."""
        columns = ", ".join(f"{ours} from {theirs!r}" for ours, theirs in self.columns.items()) or "named as here"
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items() if name is not None) or "none"
        per_image = self.num_captions / max(1, self.num_images)
        lines = [
            f"data      {self.source}: {self.num_images:,} images, {self.num_captions:,} captions ({per_image:.1f} an image)",
            f"columns   {columns}",
            f"splits    {splits}",
        ]
        if self.num_texts < self.num_captions:
            lines.append(f"texts     {self.num_texts:,} different ones among {self.num_captions:,} captions")
        if self.missing:
            lines.append(f"missing   {len(self.missing):,} picture(s), e.g. {self.missing[0]}")
        lines += [f"left out  {self.left_out}"] if self.left_out else []
        lines.append(f"pictures  {self.num_tried} tried, {len(self.broken)} do not decode")
        lines += [f"          {text}" for text in self.broken[:3]]
        return lines + [f"groups?   {group}" for group in self.groups]


def survey(source: str, *, image_root: str | None, columns: dict[str, str]) -> Survey:
    """Look at a data set.

    Args:
        columns: what the user says of them; the others are guessed.

    Raises:
        UserError: it cannot be read, with every fault; rows whose picture is missing are counted only, as long as others are there.
    """
    identity = {name: columns.get(name, name) for name in COLUMNS}
    root = Path(image_root) if image_root is not None else None
    rows = open_rows(source, identity, root)
    names = list(rows.columns)
    rows.mapping = identity | {name: name for name in names}
    records = [row.record for row in islice(rows, _MOST_RECORDS)]
    taken = set(columns.values())
    found = Survey(source=source, columns=columns | guess_columns([name for name in names if name not in taken], records))
    mapping = {name: found.columns.get(name, name) for name in COLUMNS}
    if "group" not in columns and "group" not in names:
        used = {mapping[name] for name in COLUMNS}
        found.groups = suggest_groups(records, mapping["image"], [*used, "file_name", "text"])
    manifest = read_manifest(source, image_root=image_root, columns=found.columns, rules=RowRules(skip_missing=True))
    found.left_out = left_out_line(source, manifest.rows)
    found.missing = list(dict.fromkeys(row.image for row in manifest.skipped))
    everything = RetrievalSet(manifest.images, manifest, source=source, split=None)
    found.splits = manifest.images.split_counts
    found.num_images, found.num_captions = everything.num_images, everything.num_captions
    found.num_texts = len(set(everything.caption_hash_C.tolist()))
    _try_pictures(found, everything)
    return found


def _try_pictures(found: Survey, dataset: RetrievalSet) -> None:
    """Decode some pictures, evenly spaced."""
    chosen = np.unique(np.linspace(0, dataset.num_images - 1, min(MOST_TRIED, dataset.num_images)).astype(int)).tolist()
    found.num_tried = len(chosen)
    for image in chosen:
        try:
            dataset.load_image(image)
        except ImageError as error:
            found.broken.append(str(error))
