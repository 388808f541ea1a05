"""Text in Arrow files whose bytes are not UTF-8 is a fault of its row, in every reader of .parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.choices.choice_set import read_choices
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from rerank.answers.captions import read_captions
from rerank.answers.pictures import read_rows
from train.data.caption_pool import read_additional_captions

BAD = b"caf\xe9"


def texts(*values: bytes) -> pa.Array:
    """A column of strings with these bytes, unchecked."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


LISTS = pa.ListArray.from_arrays([0, 1, 3], texts(b"one", b"two", BAD))
STRUCTS = pa.StructArray.from_arrays([pa.array([b"x", b"y"], pa.binary()), texts(b"a.png", BAD)], ["bytes", "path"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": ["one", "two"]} | columns), folder / "m.parquet")
    return folder / "m.parquet"


@pytest.mark.parametrize(
    "columns",
    [
        {"caption": texts(b"one", BAD)},
        {"caption": texts(b"one", BAD).dictionary_encode()},
        {"captions": LISTS},
        {"image": texts(b"a.png", BAD)},
        {"image": STRUCTS},
        {"id": texts(b"one", BAD)},
        {"split": texts(b"train", BAD)},
    ],
)
def test_a_manifest_names_the_row_and_the_column(folder: Path, columns: dict[str, Any]) -> None:
    path = parquet(folder, **columns)
    named = r"row 2: not UTF-8 text: column '[a-z ]+': b'caf\\xe9'\. Write"
    with pytest.raises(UserError, match=named):
        read_manifest(path)
    if not columns.keys() & {"caption", "captions"}:  # which are not read here
        with pytest.raises(UserError, match=named):
            read_rows(str(path), columns={}, split="train" if "split" in columns else None)


def test_tables_of_texts_name_the_row(folder: Path) -> None:
    path = parquet(folder, caption=texts(b"one", BAD))
    with pytest.raises(UserError, match="row 2: half a character"):
        read_captions(str(path))
    with pytest.raises(UserError, match="2.*half of a character"):
        read_additional_captions(str(path))


def test_a_choice_set_names_the_row(folder: Path) -> None:
    falses = pa.ListArray.from_arrays([0, 1, 2], texts(b"three", BAD))
    with pytest.raises(UserError, match="row 2: half a character"):
        read_choices(parquet(folder, false_captions=falses))
