"""Manifests of every kind, and every fault they can have, all at once."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import Manifest, ManifestError, read_manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pictures; nothing is decoded here, so their bytes may be anything."""
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 3)
    return tmp_path


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def contents(manifest: Manifest) -> dict[str, list[str]]:
    return {image.id: image.captions for image in manifest.images}


def faults(source: Path, **options: Any) -> list[tuple[str, str]]:
    """(place without its folder, kind) of every fault."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, **options)
    assert caught.value.exit_code == 2
    return [(fault.where.rsplit("/", 1)[-1], fault.kind) for fault in caught.value.faults]


def test_jsonl_with_lists_and_texts(root: Path) -> None:
    path = jsonl(
        root / "m.jsonl",
        {"image": "b.jpg", "captions": ["two", "None"], "split": "test", "group": "g"},
        {"image": "a.jpg", "caption": "one", "split": "train"},
        {"image": "sub/../b.jpg", "caption": "three", "split": "test", "group": "g"},
        {"image": str(root / "sub" / "c.jpg"), "caption": "NA", "split": "test", "id": 7},
    )
    manifest = read_manifest(path, require_splits=["train"])
    assert contents(manifest) == {"7": ["NA"], "a.jpg": ["one"], "b.jpg": ["two", "None", "three"]}
    assert manifest.splits == ["test", "train"]
    b = manifest.images[2]
    assert (b.group, b.path, b.num_bytes, b.where) == ("g", root / "b.jpg", 15, f"{path}:1")


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_every_make(root: Path, suffix: str, encoding: str, end: str) -> None:
    comma = "," if suffix == "csv" else "\t"
    rows = [["image", "caption"], ["a.jpg", "None"], ["a.jpg", "NA"], ["b.jpg", '"one, ""two"""'], ["b.jpg", "caf\u00e9"]]
    path = root / f"m.{suffix}"
    path.write_bytes(end.join(comma.join(row) for row in rows).encode(encoding))
    assert contents(read_manifest(path)) == {"a.jpg": ["None", "NA"], "b.jpg": ['one, "two"', "caf\u00e9"]}


def test_lists_in_csv_cells(root: Path) -> None:
    """As JSON, as pandas writes them, and a caption that only begins like a list."""
    path = root / "m.csv"
    path.write_text('image,captions\na.jpg,"[""one"", ""two""]"\nb.jpg,"[\'three\', \'four\']"\nsub/c.jpg,[Applause] a man\n')
    assert contents(read_manifest(path)) == {"a.jpg": ["one", "two"], "b.jpg": ["three", "four"], "sub/c.jpg": ["[Applause] a man"]}


def test_every_kind_of_fault_of_a_jsonl_at_once(root: Path) -> None:
    path = root / "m.jsonl"
    records: list[Any] = [
        {"image": "none.jpg", "caption": "x"},
        {"image": "a.jpg", "caption": " ."},
        {"image": "a.jpg", "caption": 7},
        {"image": "a.jpg"},
        {"image": "a.jpg", "captions": []},
        {"image": "a.jpg", "captions": ["fine", None]},
        {"image": "../outside.jpg", "caption": "x"},
        {"image": "/etc/hostname", "caption": "x"},
        {"image": "https://example.com/a.jpg", "caption": "x"},
        {"image": "data:image/png;base64,xx", "caption": "x"},
        {"image": "a.jpg", "caption": "half \ud800"},
        {"image": "", "caption": "x"},
        {"image": "n" * 5000, "caption": "x"},
        {"image": "b.jpg", "caption": "x", "id": "same"},
        {"image": "sub/c.jpg", "caption": "x", "id": "same"},
        {"image": "b.jpg", "caption": "x", "id": "other"},
        {"image": "b.jpg", "caption": "x", "id": "same", "group": "g"},
        {"image": "a.jpg", "caption": "x", "split": ["train"]},
        {"image": "sub", "caption": "x"},
        ["a list"],
    ]
    lines = [json.dumps(record).encode() for record in records] + [b"{broken", b'{"image": "a.jpg", "caption": "\xff"}']
    path.write_bytes(b"\n".join(lines))
    expected = [
        (1, "missing file"),
        (2, "empty caption"),
        (3, "caption is not text"),
        (4, "no caption"),
        (5, "no caption"),
        (6, "no caption"),
        (7, "path outside the image root"),
        (8, "path outside the image root"),
        (9, "URL"),
        (10, "URL"),
        (11, "not UTF-8 text"),
        (12, "no image"),
        (13, "missing file"),
        (15, "id twice"),
        (16, "two ids"),
        (17, "two groups"),
        (18, "split is not text"),
        (19, "missing file"),
        (20, "unreadable row"),
        (21, "unreadable row"),
        (22, "unreadable row"),
        ("m.jsonl", "no such split"),
    ]
    found = faults(path, require_splits=["val"])
    assert sorted(found) == sorted((f"m.jsonl:{line}" if isinstance(line, int) else line, kind) for line, kind in expected)


def test_many_faults_are_cut_with_a_count(root: Path) -> None:
    path = jsonl(root / "m.jsonl", *({"image": f"{n}.jpg", "caption": "x"} for n in range(50)), {"image": "a.jpg", "caption": ""})
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert len(caught.value.faults) == 51 and "51 fault(s): 50 x missing file, 1 x empty caption" in text
    assert text.count("does not exist") == 20 and "... and 30 more of: missing file" in text and f"{path}:51:" in text


def test_faults_of_a_csv_with_the_right_lines(root: Path) -> None:
    path = root / "m.csv"
    path.write_bytes(b'image,caption\na.jpg,"two\nlines"\n\nnone.jpg,x\na.jpg,one,two\na.jpg,\xff\nb.jpg,"first\r\nsecond"\nnone.jpg,y\n')
    expected = [("m.csv:5", "missing file"), ("m.csv:6", "unreadable row"), ("m.csv:7", "unreadable row"), ("m.csv:10", "missing file")]
    assert sorted(faults(path)) == sorted(expected)


def test_a_quote_left_open_is_named_where_it_opens(root: Path) -> None:
    path = root / "m.csv"
    path.write_text('image,caption\na.jpg,fine\na.jpg,"open\nb.jpg,x\n')
    assert faults(path) == [("m.csv:3", "unreadable row")]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", ["empty"]),
        ("image,caption\n", ["empty"]),
        ("picture,caption\na,x\n", ["unknown column"]),
        ("image,caption,caption\na.jpg,x,y\n", ["unreadable row"]),
    ],
)
def test_headers_that_do_not_do(root: Path, text: str, kinds: list[str]) -> None:
    (root / "m.csv").write_text(text)
    assert [kind for _, kind in faults(root / "m.csv")] == kinds


def test_columns_are_mapped_and_what_is_not_there_is_named(root: Path) -> None:
    path = root / "m.csv"
    path.write_text("file,text,number\na.jpg,one,1\na.jpg,two,2\n")
    mapped = {"image": "file", "caption": "text"}
    assert contents(read_manifest(path, columns=mapped)) == {"a.jpg": ["one", "two"]}
    assert faults(path, columns=mapped | {"group": "nowhere"}) == [("m.csv:1", "unknown column")]
    with pytest.raises(UserError, match="'picture'"):
        read_manifest(path, columns={"picture": "file"})
    with pytest.raises(ManifestError, match="data.columns.id=NAME_OF_THE_IMAGE_COLUMN"):
        read_manifest(path, columns=mapped | {"id": "number"})
    assert contents(read_manifest(path, columns=mapped | {"id": "file"})) == {"a.jpg": ["one", "two"]}


def test_one_picture_with_two_ids_in_two_splits_would_hide_leakage(root: Path) -> None:
    path = jsonl(
        root / "m.jsonl",
        {"image": "a.jpg", "caption": "x", "split": "train", "id": "1"},
        {"image": "a.jpg", "caption": "x", "split": "test", "id": "2"},
    )
    assert faults(path) == [("m.jsonl:2", "two ids")]


def test_image_root_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = jsonl(tmp_path_factory.mktemp("elsewhere") / "m.jsonl", {"image": "a.jpg", "caption": "x"})
    assert contents(read_manifest(path, image_root=root)) == {"a.jpg": ["x"]}
    assert [kind for _, kind in faults(path)] == ["missing file"]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_of_paths(root: Path) -> None:
    path = parquet(root / "m.parquet", image=["b.jpg", "a.jpg", "none.jpg"], captions=[["x", "y"], ["z"], ["w"]])
    with pytest.raises(ManifestError, match=r"m\.parquet row 3: .*none\.jpg"):
        read_manifest(path)
    path = parquet(root / "n.parquet", image=["b.jpg", "a.jpg", "b.jpg"], caption=["x", "z", "y"])
    assert contents(read_manifest(path)) == {"a.jpg": ["z"], "b.jpg": ["x", "y"]}


def test_parquet_that_embeds(root: Path) -> None:
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": None}, {"bytes": b"one", "path": "1.png"}]
    manifest = read_manifest(parquet(root / "m.parquet", image=images, caption=["x", "y", "z"]))
    assert contents(manifest) == {"1.png": ["x", "z"], "row-0000002": ["y"]}
    rows = [image.embedded.row for image in manifest.images if image.embedded]
    assert [manifest.rows.image_bytes(row) for row in rows] == [b"one", b"two"]
    plain = read_manifest(parquet(root / "n.parquet", image=[b"one", b"one"], caption=["x", "y"], id=[0, 0]))
    assert contents(plain) == {"0": ["x", "y"]}, "0 is an id like any other"


def test_embedded_pictures_of_one_id_must_be_one_picture(root: Path) -> None:
    images = [{"bytes": b"one", "path": "1.png"}, {"bytes": b"two", "path": "1.png"}]
    path = parquet(root / "m.parquet", image=images, caption=["x", "y"], id=["shop-1", "shop-1"])
    assert faults(path) == [("m.parquet row 2", "id twice")]


def test_folder_and_glob_of_parquets(root: Path) -> None:
    shards = root / "shards"
    shards.mkdir()
    parquet(shards / "0.parquet", image=[b"one"], caption=["x"], id=["one"])
    parquet(shards / "1.parquet", image=[b"two", b"three"], caption=["y", ""], id=["two", "three"])
    for source in (shards, shards / "*.parquet"):
        assert faults(source) == [("1.parquet row 2", "empty caption")]
    (shards / "1.parquet").unlink()
    assert contents(read_manifest(shards)) == {"one": ["x"]}


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_image_folder_with_metadata(root: Path, name: str) -> None:
    for split in ("train", "test"):
        (root / split).mkdir()
        (root / split / "p.jpg").write_bytes(b"x")
        if name.endswith("csv"):
            (root / split / name).write_text(f"file_name,text\np.jpg,of {split}\n")
        else:
            jsonl(root / split / name, {"file_name": "p.jpg", "text": f"of {split}"})
    manifest = read_manifest(root)
    assert {(image.split, image.id, *image.captions) for image in manifest.images} == {
        ("train", "train/p.jpg", "of train"),
        ("test", "test/p.jpg", "of test"),
    }


def test_metadata_above_the_split_folders(root: Path) -> None:
    (root / "train").mkdir()
    (root / "train" / "p.jpg").write_bytes(b"x")
    jsonl(root / "metadata.jsonl", {"file_name": "train/p.jpg", "text": "x"})
    assert [(image.split, image.id) for image in read_manifest(root, require_splits=["train"]).images] == [("train", "train/p.jpg")]


def test_image_folder_with_sidecars(root: Path) -> None:
    (root / "a.txt").write_text("one\n\ntwo\n")
    (root / "b.txt").write_text("three", encoding="utf-8-sig")
    (root / "sub" / "._c.jpg").write_bytes(b"left by an archive")
    assert faults(root) == [("c.jpg", "unreadable row")]
    (root / "sub" / "c.txt").write_text("four")
    assert contents(read_manifest(root)) == {"a.jpg": ["one", "two"], "b.jpg": ["three"], "sub/c.jpg": ["four"]}


@pytest.mark.parametrize("name", ["nowhere.csv", "m.json", "x" * 5000, "broken.parquet"])
def test_what_is_no_manifest(root: Path, name: str) -> None:
    (root / "m.json").write_text("[]")
    (root / "broken.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError):
        read_manifest(root / name)


def test_a_row_without_a_split_beside_others_is_a_fault(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    rows = [{"image": "a.png", "caption": "a dog", "split": "train"}, {"image": "b.png", "caption": "a cat"}]
    rows.append({"image": "c.png", "caption": "a hen", "split": "Train"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ManifestError, match=r"pairs.jsonl:2: this row has no split, others have 'Train', 'train'"):
        read_manifest(tmp_path / "pairs.jsonl")


def test_further_columns_are_kept_beside_each_caption(root: Path) -> None:
    records = [
        {"image": "b.jpg", "captions": ["x", "y"], "kind": "cat", "size": 2.5, "group": "g"},
        {"image": "a.jpg", "caption": "z", "kind": None, "size": 7, "group": None},
        {"image": "b.jpg", "caption": "w", "kind": "dog", "group": "g"},
    ]
    text = jsonl(root / "m.jsonl", *records)
    table = parquet(
        root / "m.parquet",
        image=[record["image"] for record in records],
        captions=[record.get("captions", [record.get("caption")]) for record in records],
        **{name: [record.get(name) for record in records] for name in ("kind", "size", "group")},
    )
    for source, seven in ((text, "7"), (table, 7.0)):
        a, b = read_manifest(source, slice_by=["kind", "size", "group"]).images
        assert a.columns == {"kind": [None], "size": [seven], "group": [None]}
        assert b.columns == {"kind": ["cat", "cat", "dog"], "size": [2.5, 2.5, None], "group": ["g"] * 3}
    dataset = load_split(read_manifest(text, slice_by=["kind"]), None)
    assert dataset.columns == {"kind": [None, "cat", "cat", "dog"]}
    assert read_manifest(text).images[1].columns == {}


def test_further_columns_must_be_there_and_hold_text_or_numbers(root: Path) -> None:
    path = jsonl(root / "m.jsonl", {"image": "a.jpg", "caption": "x", "box": [1, 2]}, {"image": "b.jpg", "caption": "y", "box": "one"})
    assert faults(path, slice_by=["box"]) == [("m.jsonl:1", "box is not text")]
    assert faults(path, slice_by=["kind"]) == [("m.jsonl:1", "unknown column")]


@pytest.mark.parametrize(("row", "words"), [({"split": "train"}, "none among the rows without faults"), ({}, "there is no column `split`")])
def test_a_split_whose_every_row_has_a_fault_is_not_said_to_have_no_column(root: Path, row: dict[str, str], words: str) -> None:
    path = jsonl(root / "m.jsonl", {"image": "absent.jpg", "caption": "x"} | row)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, require_splits=["train"])
    assert words in str(caught.value) and "absent.jpg' does not exist" in str(caught.value)


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "folder"])
def test_a_manifest_holds_nothing_of_what_it_does_not_need(root: Path, name: str) -> None:
    """500 rows with a column of 10,000 characters that nobody asked for: 5 MB, let go when the rows are read."""
    rows = [{"image": "a.jpg", "caption": f"caption {number}", "note": f"{number:010000d}"} for number in range(500)]
    path = root / "metadata.jsonl" if name == "folder" else root / name
    if name == "m.csv":
        path.write_text("\n".join(["image,caption,note", *(",".join(row.values()) for row in rows)]))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    del rows
    tracemalloc.start()
    try:
        manifest = read_manifest(root if name == "folder" else path)
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(len(image.captions) for image in manifest.images) == 500
    assert most > 5_000_000 and held < 500_000
