"""Every reader under odd content and damage: the rows that were written, or faults with their place; none dropped, none joined."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.errors import UserError
from eval.manifest.manifest import COLUMNS
from eval.manifest.rows import Row, RowSource
from eval.manifest.source import open_rows
from tests.unit.eval.manifest.written_formats import tar_of

MAPPING = {name: name for name in COLUMNS}
BOUNDED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=12)  # csv.writer does not quote a lone \r
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=12)
NAMES = st.sampled_from(["a.jpg", "sub/b.png", "c.webp"])
Pairs = list[tuple[str, str]]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def taken(path: Path) -> tuple[list[Row], RowSource]:
    """The rows of a file, and its source when all are taken."""
    source = open_rows(str(path), MAPPING)
    rows = list(source)
    assert all(str(path) in place for place, _ in [*source.faults, *source.left_out]), "each fault names its file"
    return rows, source


def pairs_of(path: Path) -> list[tuple[Any, Any]]:
    """(image, captions) of each row of a file that has no fault."""
    rows, source = taken(path)
    assert (source.faults, list(source.left_out)) == ([], [])
    return [(row.embedded.key if row.embedded is not None else row.image, row.captions) for row in rows]


# What was written is what is read


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@BOUNDED
@given(pairs=st.lists(st.tuples(NAMES, CELL), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_a_table_in_text_is_read_as_it_was_written(folder: Path, separator: str, end: str, pairs: Pairs) -> None:
    with (folder / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, lineterminator=end).writerows([("image", "caption"), *pairs])
    assert pairs_of(folder / "m.csv") == pairs


def write_jsonl(folder: Path, pairs: Pairs) -> Path:
    lines = [json.dumps({"image": image, "caption": caption}, ensure_ascii=False) + "\n" for image, caption in pairs]
    (folder / "m.jsonl").write_text("".join(lines), encoding="utf-8", newline="")
    return folder / "m.jsonl"


def write_list(folder: Path, pairs: Pairs) -> Path:
    (folder / "m.json").write_text(json.dumps([{"image": image, "caption": caption} for image, caption in pairs]))
    return folder / "m.json"


def write_coco(folder: Path, pairs: Pairs) -> Path:
    names = list(dict.fromkeys(image for image, _ in pairs))
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": names.index(image), "caption": caption} for image, caption in pairs]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder / "c.json"


@pytest.mark.parametrize("write", [write_jsonl, write_list, write_coco])
@BOUNDED
@given(pairs=st.lists(st.tuples(NAMES, TEXT), max_size=5))
def test_json_is_read_as_it_was_written(folder: Path, write: Callable[[Path, Pairs], Path], pairs: Pairs) -> None:
    assert pairs_of(write(folder, pairs)) == pairs


@BOUNDED
@given(lists=st.lists(st.tuples(NAMES, st.lists(TEXT, max_size=3)), max_size=4))
def test_karpathys_splits_are_read_as_they_were_written(folder: Path, lists: list[tuple[str, list[str]]]) -> None:
    images = [{"filename": name, "sentences": [{"raw": text} for text in texts], "split": "test"} for name, texts in lists]
    (folder / "k.json").write_text(json.dumps({"images": images}))
    assert pairs_of(folder / "k.json") == lists


@BOUNDED
@given(pairs=st.lists(st.tuples(NAMES, LINE), min_size=1, max_size=5))
def test_captions_of_flickr_are_read_as_they_were_written(folder: Path, pairs: Pairs) -> None:
    """But for blanks around a caption."""
    stripped = [(image, caption.strip()) for image, caption in pairs]
    tokens = "".join(f"{image}#{number}\t{caption}\n" for number, (image, caption) in enumerate(pairs))
    (folder / "f.token").write_text(tokens, encoding="utf-8", newline="")
    assert pairs_of(folder / "f.token") == stripped
    lines = "".join(f"{image}| {number}| {caption}\n" for number, (image, caption) in enumerate(pairs))
    (folder / "r.csv").write_text("image_name| comment_number| comment\n" + lines, encoding="utf-8", newline="")
    assert pairs_of(folder / "r.csv") == stripped


def write_shard(folder: Path, samples: dict[str, str]) -> Path:
    members = [member for key, text in samples.items() for member in ((f"{key}.jpg", b"x"), (f"{key}.txt", text.encode()))]
    return tar_of(folder / "s.tar", members)


KEYS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=60).map(lambda text: f"sub/{text}")


@BOUNDED
@given(samples=st.dictionaries(KEYS, TEXT, max_size=5))
def test_a_shard_is_read_as_it_was_written(folder: Path, samples: dict[str, str]) -> None:
    """But for blanks around a caption, and a byte order mark before it."""
    assert pairs_of(write_shard(folder, samples)) == [(key, text.removeprefix("\ufeff").strip()) for key, text in samples.items()]


# Damage: rows read + rows named = rows there


@st.composite
def damage(draw: st.DrawFn, content: bytes, first: int = 0) -> bytes:
    """Some bytes from `first` on changed, taken out, put in, or the end cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(first, max(first, len(found))))
        found[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(found[: draw(st.integers(first, max(first, len(found))))] if draw(st.booleans()) else found)


def num_lines(content: bytes, ends: bytes = b"\r\n|\r|\n") -> int:
    """Number of lines that are not blank."""
    return sum(bool(line.strip()) for line in re.split(ends, content))


CSV = b"image;caption\n" + b"".join(b"a.jpg;a caption %d\n" % number for number in range(5))


@BOUNDED
@given(content=damage(CSV, first=len(b"image;caption\n")))
def test_a_damaged_table_in_text(folder: Path, content: bytes) -> None:
    (folder / "m.csv").write_bytes(content)
    rows, source = taken(folder / "m.csv")
    assert all(re.match(r".*m\.csv:\d+$", place) for place, _ in source.faults)
    if not any("nothing " in what for _, what in source.faults) and b'"' not in content:
        assert len(rows) + len(source.faults) == sum(bool(line) for line in re.split(b"\r\n|\r|\n", content)) - 1


JSONL = b"".join(b'{"image": "a.jpg", "caption": "a caption %d"}\n' % number for number in range(5))


@BOUNDED
@given(content=damage(JSONL))
def test_damaged_json_lines(folder: Path, content: bytes) -> None:
    (folder / "m.jsonl").write_bytes(content)
    rows, source = taken(folder / "m.jsonl")
    assert all(re.match(r".*m\.jsonl:\d+$", place) for place, _ in source.faults)
    if not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert len(rows) + len(source.faults) == num_lines(content.removeprefix(b"\xef\xbb\xbf"), b"\n")


TOKENS = b"".join(b"a.jpg#%d\ta caption\n" % number for number in range(5))
RESULTS = b"image_name| comment_number| comment\n" + b"".join(b"a.jpg| %d| a caption\n" % number for number in range(5))


@pytest.mark.parametrize(("start", "content"), [(TOKENS.index(b"\n") + 1, TOKENS), (RESULTS.index(b"\n") + 1, RESULTS)])
@BOUNDED
@given(data=st.data())
def test_damaged_captions_of_flickr(folder: Path, start: int, content: bytes, data: st.DataObject) -> None:
    damaged = data.draw(damage(content, first=start))
    (folder / "m.txt").write_bytes(damaged)
    rows, source = taken(folder / "m.txt")
    lines = [line for line in io.TextIOWrapper(io.BytesIO(damaged), "utf-8", "surrogateescape") if line.strip()]
    assert len(rows) + len(source.faults) == len(lines) - (content is RESULTS)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "a.jpg", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "file_name", "caption", "raw"]), inner, max_size=3),
    max_leaves=6,
)
IMAGES = st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "file_name", "filename", "filepath", "split", "sentences"), VALUES))
ANNOTATIONS = st.fixed_dictionaries({}, optional=dict.fromkeys(("image_id", "caption"), VALUES))


@BOUNDED
@given(images=st.lists(IMAGES | VALUES, max_size=4), annotations=st.lists(ANNOTATIONS | VALUES, max_size=4))
def test_json_of_any_shape(folder: Path, images: list[Any], annotations: list[Any]) -> None:
    """Every element of a list and every image of Karpathy's is one row or fault; of COCO every annotation, and every image without one."""
    path = folder / "m.json"
    for value in (images, {"images": images}):
        path.write_text(json.dumps(value))
        rows, source = taken(path)
        assert len(rows) + len(source.faults) == len(images)
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    rows, source = taken(path)
    places = [row.where for row in rows] + [place for place, _ in source.faults]
    used = {row.record["image_id"] for row in rows}
    assert len(set(places)) == len(places)
    assert {f"{path} annotation {number}" for number in range(1, len(annotations) + 1)} <= set(places)
    for number, image in enumerate(images, 1):
        assert f"{path} image {number}" in places or (image["id"] in used and isinstance(image["file_name"], str))


@BOUNDED
@given(content=damage(json.dumps([{"image": "a.jpg", "caption": f"a caption {number}"} for number in range(4)]).encode()))
def test_a_damaged_json_list(folder: Path, content: bytes) -> None:
    (folder / "m.json").write_bytes(content)
    try:
        rows, source = taken(folder / "m.json")
    except UserError as error:
        assert "m.json" in str(error)
        return
    try:
        value = json.loads(content)
    except ValueError:  # one object a line
        assert len(rows) + len(source.faults) == num_lines(content, b"\n")
        return
    assert len(rows) + len(source.faults) == (len(value) if isinstance(value, list) else 1)


with tempfile.TemporaryDirectory() as _folder:
    SHARD = write_shard(Path(_folder), {f"{number:04d}": f"a caption {number}" for number in range(4)}).read_bytes()


@BOUNDED
@given(content=damage(SHARD) | st.integers(0, len(SHARD)).map(lambda end: SHARD[:end]) | st.binary(max_size=2000))
def test_a_damaged_shard(folder: Path, content: bytes) -> None:
    (folder / "s.tar").write_bytes(content)
    rows, source = taken(folder / "s.tar")
    if not source.faults:
        assert len(rows) + len(source.left_out) == 4
        for row in rows:
            assert row.embedded is None or len(source.image_bytes(row.embedded.row)) == row.embedded.num_bytes


@BOUNDED
@given(data=st.data())
def test_damaged_files_in_beirs_layout(folder: Path, data: st.DataObject) -> None:
    files = {
        "corpus.jsonl": b"".join(b'{"_id": "%d", "image": "a.jpg"}\n' % number for number in range(3)),
        "queries.jsonl": b"".join(b'{"_id": "%d", "text": "x"}\n' % number for number in range(3)),
        "qrels/test.tsv": b"query-id\tcorpus-id\tscore\n0\t0\t1\n1\t1\t1\n2\t2\t1\n",
    }
    (folder / "qrels").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    name = data.draw(st.sampled_from(sorted(files)))
    start = files[name].index(b"\n") + 1 if name.startswith("qrels") else 0
    (folder / name).write_bytes(data.draw(damage(files[name], first=start)))
    try:
        rows, source = taken(folder)
    except UserError as error:
        assert str(folder) in str(error)
        return
    places = [row.where for row in rows] + [place for place, _ in [*source.faults, *source.left_out]]
    with (folder / "qrels" / "test.tsv").open(encoding="utf-8", errors="surrogateescape") as file:
        num_judgements = sum(bool(line.strip()) for line in file) - 1
    assert sum(f"{folder}/qrels/test.tsv:" in place for place in places) == num_judgements
