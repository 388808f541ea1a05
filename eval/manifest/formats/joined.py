"""The rows of several files of text as one manifest; where rows have no split, the name of the file says it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from eval.errors import UserError
from eval.manifest.names import called
from eval.manifest.rows import Row, RowSource


class JoinedRows(RowSource):
    """The rows of several sources whose images are paths, one after another."""

    def __init__(self, parts: list[tuple[RowSource, str | None]], mapping: Mapping[str, str], image_root: Path | None) -> None:
        """parts: a source, and the split that its name says.

        Raises:
            UserError: paths would be relative to several folders.
        """
        folders = list(dict.fromkeys(str(rows.folder) for rows, _ in parts))
        if image_root is None and len(folders) > 1:
            raise UserError(
                f"the manifests lie in {len(folders)} folders ({', '.join(folders[:3])}); say what image paths are relative to: "
                f"{called('image_root')}"
            )
        self._parts, self.mapping = parts, mapping
        self.folder = parts[0][0].folder
        self.header_place = ", ".join(rows.header_place for rows, _ in parts)
        self.faults = [fault for rows, _ in parts for fault in rows.faults]
        self.left_out = [place for rows, _ in parts for place in rows.left_out]
        columns = [column for rows, _ in parts for column in rows.columns]
        # As in eval/manifest/formats/arrow.py: a split column that the configuration names and that is not there stays a fault.
        columns += ["split" for _, split in parts if split is not None and mapping["split"] == "split"]
        self.columns = list(dict.fromkeys(columns))

    def __iter__(self) -> Iterator[Row]:
        for rows, split in self._parts:
            rows.mapping = self.mapping
            for row in rows:
                yield replace(row, split=split) if row.split in (None, "") and split is not None else row
