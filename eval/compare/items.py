"""The pictures and captions of the queries that a page of a comparison shows, read from the data that the reports name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import UserError
from eval.manifest.run_data import RunData

if TYPE_CHECKING:
    from eval.dataset.retrieval_set import RetrievalSet
    from eval.report.gallery import Thumbnails


@dataclass(frozen=True)
class AskedData:
    """How a command line asks for the data to be read: what it leaves out (None, or no column) is as the run read it.

    Attributes:
        source: None: what the report names.
        columns: our column -> its own name.
    """

    source: str | None = None
    image_root: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """A picture or a caption: `text` of a caption, `picture` a data: URI, each "" where it is not known."""

    id: str
    text: str = ""
    picture: str = ""


class Items:
    """Makes what is shown of an id.

    Without data it is the id alone.
    """

    def __init__(self, dataset: RetrievalSet | None) -> None:
        self._dataset = dataset
        self._made: dict[tuple[bool, str], Shown] = {}

    def of(self, is_caption: bool, name: str) -> Shown:
        """An image or a caption by its id; each is made once."""
        if (is_caption, name) not in self._made:
            self._made[is_caption, name] = self._make(is_caption, name)
        return self._made[is_caption, name]

    def _make(self, is_caption: bool, name: str) -> Shown:
        from eval.report.gallery import shortened

        if self._dataset is None:
            return Shown(name)
        if is_caption:
            number = self._caption_number.get(name)
            return Shown(name) if number is None else Shown(name, text=shortened(self._dataset.captions[number]))
        number = self._image_number.get(name)
        return Shown(name) if number is None else Shown(name, picture=self._thumbnails.of(number))

    @cached_property
    def _thumbnails(self) -> Thumbnails:
        from eval.report.gallery import Thumbnails

        assert self._dataset is not None
        return Thumbnails(self._dataset)

    @cached_property
    def _image_number(self) -> dict[str, int]:
        return {} if self._dataset is None else {name: number for number, name in enumerate(self._dataset.image_ids)}

    @cached_property
    def _caption_number(self) -> dict[str, int]:
        return {} if self._dataset is None else {name: number for number, name in enumerate(self._dataset.caption_ids)}


def read_items(report: Path, data: Mapping[str, Any], asked: AskedData = AskedData()) -> tuple[Items, str]:
    """(what makes the items of a report's queries, why there are no pictures and captions, or what else is to be said of them).

    Nothing is fetched: data of the hub are not read. Where the command line names the data, they have to be readable.

    Args:
        report: the folder; where it is a run's, the data are read as the run read them.
        data: of its report.json.

    Raises:
        UserError: the data that --data names cannot be read.
    """
    from eval.dataset.retrieval_set import load_split
    from eval.manifest.made_split import divide_by_file, where_none
    from eval.manifest.manifest import RowRules, read_manifest
    from eval.manifest.names import OPTIONS, calling

    source = str(data.get("source", "")) if asked.source is None else asked.source
    split = data.get("split")
    if asked.source is None and not os.path.exists(source):
        return Items(None), f"Pictures and captions are not shown: {source} is not here. --data MANIFEST says where it is."
    run = RunData.of_report(report)
    own = run.reading(source) if run is not None else None
    image_root = asked.image_root if asked.image_root is not None or own is None else own.image_root
    made = where_none(divide_by_file(run.split_file, run.rule)) if run is not None and run.split_file is not None else None
    try:
        with calling(OPTIONS):
            columns = {**asked.columns, **(own.columns_beside(asked.columns) if own is not None else {})}
            rules = RowRules(skip_missing=True, divide=made if split is not None else None)
            dataset = load_split(read_manifest(source, image_root=image_root, columns=columns, rules=rules), split)
    except (UserError, OSError) as error:
        if asked.source is not None:
            raise
        reason = str(error).splitlines()[0]
        return Items(None), f"Pictures and captions are not shown: {reason} Say how it is read: --data, --image-root, --column."
    changed = dataset.sha256() != data["sha256"]
    return Items(dataset), "The data have changed since they were measured: pictures and captions are those of now." if changed else ""
