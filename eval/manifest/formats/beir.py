"""Rows out of a folder in BEIR's layout: corpus, queries and qrels/SPLIT.tsv, one side pictures and the other texts."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.manifest.formats.encoding import not_utf8, open_text
from eval.manifest.rows import EmbeddedImage, Row, RowSource, is_unicode

_SUFFIXES = (".jsonl", ".parquet")
_JUDGEMENT = "query-id, corpus-id and score, separated by tabs"
_IDS = ("_id", "id")
Opener = Callable[[Path, Mapping[str, str]], RowSource]


def find_side(folder: Path, name: str) -> Path | None:
    """corpus.jsonl or corpus.parquet (or queries) of a folder."""
    return next((folder / f"{name}{suffix}" for suffix in _SUFFIXES if (folder / f"{name}{suffix}").is_file()), None)


@dataclass(frozen=True)
class _Item:
    """One item of the corpus or of the queries."""

    where: str
    image: Any
    embedded: EmbeddedImage | None
    text: Any
    record: Mapping[str, Any]

    @property
    def is_picture(self) -> bool:
        return self.embedded is not None or self.image not in (None, "")


class JudgedRows(RowSource):
    """A row for each judgement above 0: the picture, the text, and the split that qrels/SPLIT.tsv is named for.

    An image is named by its id in the corpus (or the queries). Left out: judgements of 0, and pictures and texts that no judgement above 0
    names, since there is no picture without a caption here, and no caption without a picture.
    """

    def __init__(self, folder: Path, mapping: Mapping[str, str], open_file: Opener) -> None:
        """Read both sides and all judgements.

        Raises:
            UserError: a side or the qrels are missing or cannot be read, or not exactly one side has pictures.
        """
        self.folder, self.mapping, self.faults = folder, mapping, []
        self.left_out: list[tuple[str, str]] = []
        self.header_place = str(folder)
        self._qrels = sorted((folder / "qrels").glob("*.tsv"))
        if not self._qrels:
            raise UserError(f"{folder}: corpus and queries are there, but no qrels/SPLIT.tsv; expected {_JUDGEMENT}")
        sides = []
        for name in ("queries", "corpus"):
            path = find_side(folder, name)
            assert path is not None
            rows = open_file(path, dict(mapping) | {name: name for name in ("_id", "text", "title")})
            sides.append((rows, self._read_side(rows)))
        pictured = [any(item.is_picture for item in items.values()) for _, items in sides]
        if pictured.count(True) != 1 and not self.faults:
            which = "both" if all(pictured) else "neither"
            remedy = "expected `image` (a path or bytes) in one of them, and texts in the other"
            raise UserError(f"{folder}: {which} of corpus and queries has pictures; {remedy}")
        self._are_queries_pictures = pictured[0]
        self._queries, self._corpus = sides[0][1], sides[1][1]
        self._pictures = sides[0][0] if pictured[0] else sides[1][0]
        self.columns = list(dict.fromkeys(["image", "caption", "id", "split", *self._pictures.columns]))
        self.faults += [fault for rows, _ in sides for fault in rows.faults]

    def _read_side(self, rows: RowSource) -> dict[str, _Item]:
        items: dict[str, _Item] = {}
        for row in rows:
            id_ = next((row.record[name] for name in _IDS if row.record.get(name) not in (None, "")), None)
            if not isinstance(id_, str | int):
                self.faults.append((row.where, "expected an id in `_id` or `id`, found none"))
            elif str(id_) in items:
                self.faults.append((row.where, f"id {str(id_)!r:.80} is there twice, first at {items[str(id_)].where}"))
            else:
                texts = (row.captions, row.record.get("text"), row.record.get("title"))
                text = next((text for text in texts if text not in (None, "")), None)
                items[str(id_)] = _Item(row.where, row.image, row.embedded, text, row.record)
        return items

    def __iter__(self) -> Iterator[Row]:
        named: dict[str, set[str]] = {"picture": set(), "text": set()}
        for file in self._qrels:
            for line, query, document in self._judgements(file):
                place = f"{file}:{line}"
                unknown = [
                    f"{name} {id_!r:.80}"
                    for name, id_, items in (("query", query, self._queries), ("document", document, self._corpus))
                    if id_ not in items
                ]
                if unknown:
                    self.faults.append((place, f"no such {' and no such '.join(unknown)}"))
                    continue
                asked, found = self._queries[query], self._corpus[document]
                picture, text, name = (asked, found, query) if self._are_queries_pictures else (found, asked, document)
                named["picture"].add(name)
                named["text"].add(document if self._are_queries_pictures else query)
                embedded = EmbeddedImage(picture.embedded.row, name, picture.embedded.num_bytes) if picture.embedded is not None else None
                yield Row(place, picture.image, embedded, text.text, name, file.stem, picture.record.get("group"), picture.record)
        sides = (self._queries, self._corpus) if self._are_queries_pictures else (self._corpus, self._queries)
        for (kind, names), items in zip(named.items(), sides, strict=True):
            self.left_out += [(item.where, f"no judgement names this {kind}") for name, item in items.items() if name not in names]

    def _judgements(self, file: Path) -> Iterator[tuple[int, str, str]]:
        """(line, query id, document id) of each line with a score above 0."""
        line = 0
        try:
            with open_text(file, newline=None) as text:
                for line, raw in enumerate(text, 1):
                    cells = [cell.strip() for cell in raw.rstrip("\n").split("\t")]
                    if not raw.strip() or (line == 1 and len(cells) == 3 and cells[2] == "score"):
                        continue
                    score = _number(cells[2]) if len(cells) == 3 else None
                    if not is_unicode(raw):
                        self.faults.append((f"{file}:{line}", not_utf8(raw)))
                    elif score is None:
                        self.faults.append((f"{file}:{line}", f"expected {_JUDGEMENT}, found {raw!r:.100}"))
                    elif score <= 0:
                        self.left_out.append((f"{file}:{line}", f"score {cells[2]}"))
                    else:
                        yield line, cells[0], cells[1]
        except UnicodeDecodeError as error:
            self.faults.append((f"{file}:{line + 1}", f"not {error.encoding} text: {error.reason}; nothing from this line on was read"))

    @property
    def stamp(self) -> tuple[int, int]:
        """As `RowSource`, of the side with the pictures."""
        return self._pictures.stamp

    def image_bytes(self, row: int) -> bytes:
        """Embedded bytes of a picture, by its row in its side."""
        return self._pictures.image_bytes(row)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
