"""What each format may have wrong with it: a fault that names the file and the place, and what to do."""

import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.errors import UserError
from eval.files import PICTURE_BYTES
from eval.manifest.formats.file_names import split_of
from eval.manifest.manifest import Manifest, ManifestError, RowRules, read_manifest
from rerank.answers.pictures import read_rows
from tests.unit.eval.manifest.written_formats import COLOURS, dump, picture, pictures, tar_of


def found(source: Path | str, **options: Any) -> list[tuple[str, str]]:
    """(place without its folder, what) of every fault."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, **options)
    return [(fault.where.rsplit("/", 1)[-1], fault.what) for fault in caught.value.faults]


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_manifest(source, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def contents(manifest: Manifest) -> dict[tuple[str | None, str], list[str]]:
    return {(image.split, image.id): image.captions for image in manifest.images}


# Text that spreadsheets write


def test_a_line_that_is_not_utf_8_is_named_with_its_encoding_and_the_remedy(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    text = "image;caption\r\na.jpg;a dog\r\nb.jpg;ein Café für Hunde\r\n"
    (tmp_path / "m.csv").write_bytes(text.encode("cp1252"))
    ((place, what),) = found(tmp_path / "m.csv")
    assert place == "m.csv:3"
    for words in ("seems to be Windows-1252", "Café für Hunde", "CSV UTF-8", "iconv -f WINDOWS-1252 -t UTF-8"):
        assert words in what
    (tmp_path / "m.csv").write_bytes(b"image;caption\na.jpg;\x81\x8d\n")
    assert found(tmp_path / "m.csv") == [("m.csv:2", "not UTF-8 text; save the file as UTF-8")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf_16_and_utf_32_are_read_by_their_mark_in_csv_and_jsonl(tmp_path: Path, encoding: str) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "m.csv").write_bytes("image\tcaption\r\na.jpg\tein Café\r\n".encode(encoding))
    (tmp_path / "m.jsonl").write_bytes('{"image": "a.jpg", "caption": "ein Café"}\r\n'.encode(encoding))
    (tmp_path / "m.json").write_bytes('[{"image": "a.jpg", "caption": "ein Café"}]'.encode(encoding))
    for name in ("m.csv", "m.jsonl", "m.json"):
        assert contents(read_manifest(tmp_path / name)) == {(None, "a.jpg"): ["ein Café"]}


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_utf_16_that_was_cut_is_named(tmp_path: Path, name: str) -> None:
    pictures(tmp_path, "jpg")
    text = "image,caption\na.jpg,one\nb.jpg,two" if name == "m.csv" else '{"image": "a.jpg", "caption": "one"}\n{}'
    (tmp_path / name).write_bytes(text.encode("utf-16")[:-1])
    assert any("truncated data; nothing from this" in what for _, what in found(tmp_path / name))


def test_utf_16_without_its_mark_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("image,caption\na.jpg,x\n".encode("utf-16-le"))
    assert "zero bytes" in refusal(tmp_path / "m.csv") or "NUL" in refusal(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("image;caption", ";"),
        ("image;caption, in words", ";"),
        ("image|caption", "|"),
        ("image\tcaption;long", "\t"),
        ("image,caption;x", ","),
    ],
)
def test_the_separator_is_the_one_under_which_the_header_has_known_columns(tmp_path: Path, header: str, separator: str) -> None:
    (tmp_path / "m.csv").write_text(header + "\n")
    rows = refusal(tmp_path / "m.csv", columns={"group": "nowhere"})
    assert f"columns found: {header.split(separator)}" in rows


def test_rows_that_do_not_agree_with_the_header_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "m.csv").write_text("image;caption\na.jpg;a dog; a cat\nb.jpg,a hen\n")
    assert found(tmp_path / "m.csv") == [
        ("m.csv:2", "3 cells where the header has 2; quote captions that hold ';'"),
        ("m.csv:3", "1 cells where the header has 2; quote captions that hold ';'"),
    ]


def test_lines_are_counted_from_the_line_that_says_the_separator(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "m.csv").write_text('sep=;\nimage;caption\na.jpg;"two\nlines"\nnone.jpg;x\n')
    assert [place for place, _ in found(tmp_path / "m.csv")] == ["m.csv:5"]


def test_a_quote_that_swallows_rows_is_named(tmp_path: Path) -> None:
    """By the rules of CSV these are two rows; they were four. A caption of two lines is no such case."""
    pictures(tmp_path, "jpg")
    (tmp_path / "m.tsv").write_text('caption\timage\n"left open\ta.jpg\na dog\tb.jpg\nended"\tc.jpg\n"two\nlines, or more"\ta.jpg\n')
    (tmp_path / "n.csv").write_text('caption,image\n"left open,a.jpg\nended",c.jpg\n')
    assert [place for place, _ in found(tmp_path / "n.csv")] == ["n.csv:2"]
    ((place, what),) = found(tmp_path / "m.tsv")
    assert place == "m.tsv:2" and "lines 2 to 4, which look like rows of their own; close its quote" in what


@pytest.mark.parametrize("names", [("a.mpo", "b.mpo"), ("a.jpf", "b.jpf"), ("a.HEIC", "b.HEIC"), ("0", "12"), ("img_1", "img_2")])
@pytest.mark.parametrize("text", ['"a dog\n{},a cat"', '"a dog, brown\n{},a cat"', '"a dog\n{},a cat, grey"'])
def test_two_rows_joined_by_an_open_quote_are_named(tmp_path: Path, names: tuple[str, str], text: str) -> None:
    """Whatever the pictures are called."""
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "m.csv").write_text(f"image,caption\n{names[0]},{text.format(names[1])}\n")
    ((place, what),) = found(tmp_path / "m.csv")
    assert place == "m.csv:2" and "look like rows of their own" in what
    (tmp_path / "m.csv").write_text(f'image,caption\n{names[0]},"two\nlines, or more, of 2"\n{names[1]},x\n')
    assert list(contents(read_manifest(tmp_path / "m.csv")).values()) == [["two\nlines, or more, of 2"], ["x"]]


def test_a_table_without_header_is_known_by_every_suffix_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.mpo").write_bytes(b"x")
    (tmp_path / "m.tsv").write_text("a dog\ta.mpo\n")
    assert contents(read_manifest(tmp_path / "m.tsv")) == {(None, "a.mpo"): ["a dog"]}


def test_urls_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "Train_GCC-training.tsv").write_text("a dog\thttps://example.com/a.jpg\na cat\thttp://example.com/b\n")
    faults = found(tmp_path / "Train_GCC-training.tsv")
    assert [place for place, _ in faults] == ["Train_GCC-training.tsv:1", "Train_GCC-training.tsv:2"]
    assert all("nothing is fetched from a manifest. Download the pictures" in what for _, what in faults)


def test_text_goes_before_title_and_two_columns_of_images_are_no_choice_of_ours(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "m.csv").write_text("filepath,text,title\na.jpg,x,y\n")
    assert contents(read_manifest(tmp_path / "m.csv")) == {(None, "a.jpg"): ["x"]}
    (tmp_path / "n.csv").write_text("filepath,path,text\na.jpg,a.jpg,y\n")
    assert "no column 'image'; columns found: ['filepath', 'path', 'text']" in refusal(tmp_path / "n.csv")
    assert contents(read_manifest(tmp_path / "m.csv", columns={"caption": "title"})) == {(None, "a.jpg"): ["y"]}


@pytest.mark.parametrize(("name", "words"), [("m.xlsx", "Save As, CSV UTF-8"), ("m.tar.gz", "decompress it"), ("m.odd", "docs/data.md")])
def test_other_files_are_named_with_the_remedy(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    assert words in refusal(tmp_path / name)


# Names of files


def test_the_split_that_a_name_says() -> None:
    said = {
        "train-00000-of-00002.parquet": "train",
        "validation-00000.parquet": "validation",
        "captions_val2017.json": "val",
        "Train_GCC-training.tsv": "train",
        "cc3m-test-0001.tar": "test",
        "DEV.csv": "dev",
        "latest.csv": None,
        "trainees.csv": None,
        "train_and_test.csv": None,
        "00000.tar": None,
    }
    assert {name: split_of(Path(name)) for name in said} == said


def test_one_file_given_alone_has_no_split_by_its_name(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(f"image,caption\n{'a' if name == 'train.csv' else 'b'}.jpg,x\n")
    assert contents(read_manifest(tmp_path / "train.csv")) == {(None, "a.jpg"): ["x"]}
    both = {("train", "a.jpg"): ["x"], ("test", "b.jpg"): ["x"]}
    assert contents(read_manifest(tmp_path)) == contents(read_manifest(tmp_path / "*.csv")) == both
    assert contents(read_manifest(tmp_path / "{train,test}.csv")) == both
    (tmp_path / "more.csv").write_text("image,caption\nc.jpg,x\n")
    assert any("this row has no split" in what for _, what in found(tmp_path / "*.csv"))


def test_files_between_braces_that_are_not_there_are_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "s-01.tar", [("a.png", picture("a")), ("a.txt", b"x")])
    assert "1 of 2 files are not there, the first: " in refusal(tmp_path / "s-{01..02}.tar")
    assert "s-02.tar" in refusal(tmp_path / "s-{01..02}.tar")
    assert "no such file" in refusal(tmp_path / "s-{03..04}.tar")
    assert "more than 1,000,000 files" in refusal(tmp_path / "s-{000000..999999}{0..9}.tar")


def test_files_of_several_folders_need_an_image_root(tmp_path: Path) -> None:
    for name in "ab":
        pictures(tmp_path / name, "jpg", name)
        dump(tmp_path / name / "m.json", [{"image": f"{name}.jpg", "caption": "x"}])
    assert "data.image_root" in refusal(tmp_path / "*" / "m.json")


def test_the_only_table_of_a_folder_is_its_manifest(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures")
    (tmp_path / "pairs.csv").write_text("file_name;text\npictures/a.png;a dog\n")
    assert contents(read_manifest(tmp_path)) == {(None, "pictures/a.png"): ["a dog"]}
    (tmp_path / "more.csv").write_text("file_name;text\npictures/b.png;a cat\n")
    [(_, what)] = found(tmp_path)  # an image folder without captions
    assert what.startswith("no caption for any of its 3 pictures: write each one's captions into a .txt of its name next to it, or ")


def test_an_image_folder_stays_one_whatever_lies_in_it(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", names="a")
    (tmp_path / "pictures" / "a.txt").write_text("a dog")
    (tmp_path / "pictures.tar").write_bytes(b"the archive it came in")
    dump(tmp_path / "train.json", {"of": "something else"})
    assert contents(read_manifest(tmp_path)) == {(None, "pictures/a.png"): ["a dog"]}


# JSON


def test_json_that_is_no_manifest_is_named_by_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    assert "by rows: DATAFRAME.to_json(PATH" in refusal(dump(path, {"image": {"0": "a.jpg"}, "caption": {"0": "x"}}))
    assert "found an object with the keys ['a', 'b']" in refusal(dump(path, {"a": 1, "b": 2}))
    assert "found str" in refusal(dump(path, "text"))
    path.write_text('[{"image": "a.jpg", "caption": "x"},')
    assert "m.json: not JSON: Expecting value: line 1" in refusal(path)
    path.write_text("[" * 100_000)
    assert "m.json: not JSON: " in refusal(path)
    path.write_text('[{"image": "a.jpg", "caption": "x", "caption": "y"}]')
    assert "the key 'caption' is there twice" in refusal(path)
    path.rename(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_text('{"image": "a.jpg", "caption": "x", "caption": "y"}')
    assert "m.jsonl:1: not a JSON object on one line: the key 'caption' is there twice" in refusal(tmp_path / "m.jsonl")


def test_elements_of_a_list_are_named_by_their_number(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    path = dump(tmp_path / "m.json", [{"image": "a.jpg", "caption": "x"}, 7, {"image": "none.jpg", "caption": "x"}, {"image": "b.jpg"}])
    assert [place for place, _ in found(path)] == ["m.json element 2", "m.json element 3", "m.json element 4"]


def test_faults_of_coco_captions(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    images: list[Any] = [{"id": id_, "file_name": f"{name}.jpg"} for id_, name in ((1, "a"), (2, "b"), (1, "c"))]
    images += [{"id": 3}, {"file_name": "x"}]
    annotations: list[Any] = [{"image_id": 1, "caption": "x"}, {"image_id": 9, "caption": "x"}]
    annotations += [{"image_id": 1, "bbox": []}, {"image_id": [], "caption": "x"}]
    faults = found(dump(tmp_path / "captions.json", {"images": images, "annotations": annotations}))
    assert {place.removeprefix("captions.json ") for place, _ in faults} == {
        *("image 2", "image 3", "image 4", "image 5"),
        *("annotation 2", "annotation 3", "annotation 4"),
    }
    assert dict(faults)["captions.json image 2"].startswith("the caption is null"), "b.jpg has none"
    assert "captions are in captions_*.json" in dict(faults)["captions.json annotation 3"]


def test_ids_of_coco_pictures_are_paths_below_the_image_root(tmp_path: Path) -> None:
    pictures(tmp_path / "val2017", "jpg")
    value = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "x", "id": 5}]}
    path = dump(tmp_path / "annotations" / "captions_val2017.json", value)
    assert contents(read_manifest(path)) == {(None, "val2017/a.jpg"): ["x"]}
    assert contents(read_manifest(path, image_root=tmp_path)) == {(None, "val2017/a.jpg"): ["x"]}
    assert contents(read_manifest(path, image_root=tmp_path / "val2017")) == {(None, "a.jpg"): ["x"]}
    assert contents(read_manifest(path, columns={"id": "image_id"})) == {(None, "1"): ["x"]}
    assert [what for _, what in found(path, image_root=tmp_path / "annotations")][0].endswith("Is data.image_root right?")


@pytest.mark.parametrize("there", ["ab", "b", ""])
def test_the_folders_of_coco_are_found_though_pictures_are_missing(tmp_path: Path, there: str) -> None:
    pictures(tmp_path / "train2017", "jpg", "c")
    pictures(tmp_path / "val2017", "jpg", there)
    (tmp_path / "val2017").mkdir(exist_ok=True)
    for split, names in (("train2017", "c"), ("val2017", "ab")):
        images = [{"id": name, "file_name": f"{name}.jpg"} for name in names]
        annotations = [{"image_id": name, "caption": name} for name in names]
        dump(tmp_path / "annotations" / f"captions_{split}.json", {"images": images, "annotations": annotations})
    for root in (None, tmp_path):
        manifest = read_manifest(tmp_path, image_root=root, rules=RowRules(skip_missing=True))
        expected = {("val", f"val2017/{name}.jpg"): [name] for name in there}
        assert contents(manifest) == {("train", "train2017/c.jpg"): ["c"], **expected}
        assert [row.image for row in manifest.skipped] == [f"val2017/{name}.jpg" for name in "ab" if name not in there]


def test_faults_of_karpathys_splits(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    images = [{"filename": "a.jpg", "sentences": [{"raw": "x"}, {"tokens": []}]}, {"filename": "b.jpg", "sentences": []}]
    images += [{"sentences": []}, 7]  # type: ignore[list-item]
    faults = found(dump(tmp_path / "dataset.json", {"images": images}))
    assert sorted(place for place, _ in faults) == [f"dataset.json image {number}" for number in (1, 2, 3, 4)]


# Flickr


def test_pictures_of_no_list_are_of_the_split_unlisted(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tone\nb.jpg#0\ttwo\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    assert contents(read_manifest(tmp_path / "Flickr8k.token.txt")) == {("train", "a.jpg"): ["one"], ("unlisted", "b.jpg"): ["two"]}
    (tmp_path / "Flickr_8k.testImages.txt").write_text("a.jpg\n")
    assert found(tmp_path / "Flickr8k.token.txt") == [("Flickr_8k.testImages.txt:1", "'a.jpg' is in the list of 'train' too")]


def test_pictures_of_a_list_without_a_caption_are_counted(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0\tone\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\n")
    for source in ("Flickr8k.token.txt", "*.token.txt"):
        left_out = read_manifest(tmp_path / source).rows.left_out
        assert left_out == [(f"{tmp_path}/Flickr_8k.trainImages.txt:2", "a list names this picture, which has no caption")]


def test_lines_of_flickr_that_are_none_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    (tmp_path / "results_20130124.token").write_text("a.jpg#0\tone\n\nb.jpg two\n")
    assert [place for place, _ in found(tmp_path / "results_20130124.token")] == ["results_20130124.token:3"]
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\na.jpg| 0| one\nb.jpg| two\n")
    assert [place for place, _ in found(tmp_path / "results.csv")] == ["results.csv:3"]


# Shards


PAIR = [("a.png", picture("a")), ("a.txt", b"a dog")]


def test_keys_that_two_shards_have_are_named_by_the_shard(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        members = [("0.png", picture(name)), ("0.txt", b"x"), (f"{name}.png", picture(name)), (f"{name}.txt", b"y")]
        tar_of(tmp_path / f"{split}-0.tar", members)
    manifest = read_manifest(tmp_path)
    assert contents(manifest) == {("train", "train-0/0"): ["x"], ("train", "a"): ["y"], ("test", "test-0/0"): ["x"], ("test", "b"): ["y"]}
    assert load_split(manifest, "test").load_image(1).getpixel((0, 0)) == COLOURS["b"]


def test_what_a_sample_says_of_itself(tmp_path: Path) -> None:
    """A key ends at the first dot; lists of the JSON go before texts, texts before its caption; other keys are columns."""
    both = json.dumps({"captions": ["one", "two"], "kind": "dog", "split": "val"}).encode()
    one = json.dumps({"caption": "not this", "kind": "cat", "split": "val"}).encode()
    members = [("a.seg.png", b"a mask"), ("a.jpg", picture("a")), ("a.json", both), ("a.txt", b"three")]
    members += [("b.txt", b"\xef\xbb\xbftwo\nlines\n"), ("b.json", one), ("b.jpg", picture("b")), ("README.md", b"of the data")]
    tar_of(tmp_path / "s.tar", members)
    manifest = read_manifest(tmp_path / "s.tar", slice_by=["kind"], columns={"group": "key"}, require_splits=[])
    a, b = manifest.images
    assert (a.captions, a.split, a.columns, a.group) == (["one", "two"], "val", {"kind": ["dog", "dog"]}, "a")
    assert (b.captions, b.columns, b.group) == (["two\nlines"], {"kind": ["cat"]}, "b")


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", [*PAIR, ("README.md", b"x"), ("LICENSE", b"x"), ("._a.png", b"left by macOS")])
    manifest = read_manifest(tmp_path / "s.tar")
    assert contents(manifest) == {(None, "a"): ["a dog"]}
    (said,) = manifest.lines()
    assert "2 row(s) are left out" in said and "s.tar: README" in said and "s.tar: 'LICENSE'" in said


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([*PAIR, *PAIR], "is there twice"),
        ([*PAIR, ("b.txt", b"a cat")], "b: expected one picture, found ['txt']"),
        ([*PAIR, ("a.jpg", b"x")], "a: expected one picture, found ['png', 'jpg']"),
        ([*PAIR, ("b.png", b"x")], "b: the caption is null"),
        ([*PAIR, ("b.png", b""), ("b.txt", b"x")], "b: expected a path or embedded bytes"),
        ([*PAIR, ("b.png", b"x"), ("b.txt", b"\xff")], "b: .txt: not UTF-8 text"),
        ([*PAIR, ("b.png", b"x"), ("b.json", b"[1]")], "b: .json: expected an object, found list"),
        ([*PAIR, ("b.png", b"x"), ("b.json", b"[" * 100_000)], "b: .json: not JSON"),
        ([*PAIR, ("../b.png", b"x")], "'../b.png': its name leads out of the shard"),
        ([*PAIR, ("/b.png", b"x")], "'/b.png': its name leads out of the shard"),
        ([], "the manifest has no rows"),
    ],
)
def test_faults_of_samples(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    message = refusal(tar_of(tmp_path / "s.tar", members))
    assert words in message and "s.tar" in message


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_shard_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "s.tar", PAIR)
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("b.png")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    assert "s.tar: 'b.png': is a link, a device or a sparse file" in refusal(path)


def header(name: str, num_bytes: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = num_bytes, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def test_members_that_claim_too_much_are_refused_unread(tmp_path: Path) -> None:
    """A picture of more than is allowed, in a sparse file; a long name of a terabyte; fewer than no bytes, which leads back for ever."""
    with (tmp_path / "big.tar").open("wb") as file:
        file.write(header("a.png", PICTURE_BYTES + 1))
        file.seek(512 + (PICTURE_BYTES + 512) // 512 * 512)
        file.write(header("a.txt", 1) + b"x".ljust(512, b"\0") + bytes(1024))
    assert f"a picture of {PICTURE_BYTES + 1:,} bytes" in refusal(tmp_path / "big.tar")
    (tmp_path / "name.tar").write_bytes(header("a", 2**40, tarfile.GNUTYPE_LONGNAME) + bytes(10240))
    assert "cannot be read as a .tar: a header of 1,099,511,627,776 bytes" in refusal(tmp_path / "name.tar")
    negative = bytearray(header("a.png", 0))
    negative[124:136] = (256**12 - 512).to_bytes(12, "big")
    negative[148:156] = b" " * 8
    negative[148:156] = f"{sum(negative):06o}\0 ".encode()
    (tmp_path / "negative.tar").write_bytes(bytes(negative) + bytes(10240))
    assert "cannot be read as a .tar: 'a.png' claims -512 bytes" in refusal(tmp_path / "negative.tar")


def test_a_shard_that_is_not_whole_is_named(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "s.tar", [*PAIR, ("b.png", picture("b")), ("b.txt", b"x")]).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in (end, end - 512, 3 * 512, 700, 100, 0):
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        assert "s.tar: " in refusal(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(whole[:end])
    assert "has no end: it was cut off" in refusal(tmp_path / "s.tar")
    (tmp_path / "s.tar").write_bytes(whole + whole)
    assert f"another archive appended, at byte {end:,}" in refusal(tmp_path / "s.tar")


def test_a_compressed_shard_is_named_with_the_remedy(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz"):
        pass
    (tmp_path / "s.tar").write_bytes(file.getvalue())
    assert "compressed by gzip; decompress it with gunzip" in refusal(tmp_path / "s.tar")


def first_pixel(dataset: RetrievalSet, image: int) -> Any:
    return dataset.load_image(image).getpixel((0, 0))


def test_forked_workers_read_their_own_pictures(tmp_path: Path) -> None:
    members = [member for name in "abc" for member in ((f"{name}.png", picture(name)), (f"{name}.txt", b"x"))]
    dataset = load_split(read_manifest(tar_of(tmp_path / "s.tar", members)), None)
    assert first_pixel(dataset, 0) == COLOURS["a"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(first_pixel, [(dataset, number % 3) for number in range(12)]) == list(COLOURS.values()) * 4


def test_a_shard_that_changes_while_in_use_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", PAIR)
    dataset = load_split(read_manifest(path), None)
    before = dataset.picture_stamp(0)
    path.write_bytes(path.read_bytes()[:530])
    assert load_split(read_manifest(tar_of(tmp_path / "t.tar", PAIR)), None).picture_stamp(0) != before
    with pytest.raises(ImageError, match=r"image 'a' \(embedded\): .*bytes too early"):
        dataset.load_image(0)
    path.unlink()
    with pytest.raises(ImageError, match="image 'a'"):
        dataset.image_digest(0)


def test_pictures_of_a_shard_need_no_captions_to_be_searched(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", [("a.png", picture("a")), ("b.png", picture("b"))])
    found = read_rows(str(path), columns={})
    assert list(found.image_ids) == ["a", "b"] and found.load_image(1).getpixel((0, 0)) == COLOURS["b"]


# img2dataset


def test_a_record_of_downloads_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tar_of(tmp_path / "00000.tar", PAIR)
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    assert "00000.parquet: img2dataset's record of downloads cannot be read" in refusal(tmp_path)
    pq.write_table(pa.table({"other": [1]}), tmp_path / "00000.parquet")
    assert contents(read_manifest(tmp_path)) == {(None, "a"): ["a dog"]}


def test_faults_of_downloaded_files(tmp_path: Path) -> None:
    pictures(tmp_path / "00000")
    dump(tmp_path / "00000_stats.json", {})
    (tmp_path / "00000" / "a.txt").write_bytes(b"\xff")
    (tmp_path / "00000" / "b.json").write_text("[]")
    faults = dict(found(tmp_path))
    assert faults.keys() == {"a.txt", "b.json", "c.png"}
    assert "not UTF-8 text" in faults["a.txt"] and "found list" in faults["b.json"] and "caption is null" in faults["c.png"]


def record(path: Path, *keys: str) -> None:
    pq.write_table(pa.table({"key": keys, "status": ["success"] * len(keys), "error_message": pa.nulls(len(keys), pa.string())}), path)


def test_downloads_that_were_interrupted_or_lost_pictures(tmp_path: Path) -> None:
    for shard, name in (("00000", "a"), ("00001", "b")):
        pictures(tmp_path / shard, "jpg", name)
        (tmp_path / shard / f"{name}.txt").write_text("x")
    record(tmp_path / "00000.parquet", "a", "gone")
    manifest = read_manifest(tmp_path)
    assert contents(manifest) == {(None, "00000/a.jpg"): ["x"], (None, "00001/b.jpg"): ["x"]}
    assert list(manifest.rows.left_out) == [(f"{tmp_path}/00000.parquet row 2", "downloaded, but not there any more")]
    (tmp_path / "00000" / "gone.json").write_text("{}")
    assert [place for place, _ in found(tmp_path)] == ["gone.json"]


def test_lost_samples_of_downloaded_shards_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        tar_of(tmp_path / f"0000{number}.tar", PAIR if number != 1 else [])
        record(tmp_path / f"0000{number}.parquet", "a", "gone")
    lost = read_manifest(tmp_path).rows.left_out
    assert [Path(where).name for where, _ in lost] == [
        *("00000.parquet row 2", "00001.parquet row 1"),
        *("00001.parquet row 2", "00002.parquet row 2"),
    ]


# BEIR


def judged(folder: Path, corpus: list[Any], queries: list[Any], qrels: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    pictures(folder, "jpg")
    return folder


def test_judgements_that_name_nothing_and_items_that_are_there_twice(tmp_path: Path) -> None:
    corpus = [{"_id": "a", "image": "a.jpg"}, {"_id": "a", "image": "b.jpg"}, {"image": "c.jpg"}]
    folder = judged(tmp_path, corpus, [{"_id": 1, "text": "x"}], "1\ta\t1\n2\tz\t1\n1\ta\tmuch\n1\ta\n")
    assert dict(found(folder)).keys() == {"corpus.jsonl:2", "corpus.jsonl:3", "test.tsv:2", "test.tsv:3", "test.tsv:4"}


def test_a_query_of_two_pictures_is_a_caption_of_both_and_what_is_not_judged_is_counted(tmp_path: Path) -> None:
    corpus = [{"_id": name, "image": f"{name}.jpg"} for name in "abc"]
    queries = [{"_id": "q", "text": "x"}, {"_id": "none", "text": "y"}]
    folder = judged(tmp_path, corpus, queries, "query-id\tcorpus-id\tscore\nq\ta\t2\nq\tb\t0.5\nq\tc\t0\n")
    manifest = read_manifest(folder)
    assert contents(manifest) == {("test", "a"): ["x"], ("test", "b"): ["x"]}
    assert [(where.rsplit("/", 1)[-1], why) for where, why in manifest.rows.left_out] == [
        ("test.tsv:4", "score 0"),
        ("corpus.jsonl:3", "no judgement names this picture"),
        ("queries.jsonl:2", "no judgement names this text"),
    ]


def test_exactly_one_side_has_pictures(tmp_path: Path) -> None:
    image, text = [{"_id": "a", "image": "a.jpg"}], [{"_id": "q", "text": "x"}]
    assert "both of corpus and queries has pictures" in refusal(judged(tmp_path, image, image, "a\ta\t1\n"))
    assert "neither of corpus and queries has pictures" in refusal(judged(tmp_path, text, text, "q\tq\t1\n"))
    (tmp_path / "qrels" / "test.tsv").unlink()
    assert "no qrels/SPLIT.tsv" in refusal(tmp_path)


# What is no plain file


@pytest.mark.parametrize(
    "name", ["s.tar", "m.json", "m.txt", "Flickr_8k.trainImages.txt", "qrels/test.tsv", "00000/a.txt", "00000.parquet"]
)
def test_a_fifo_is_refused_in_place_of_any_file(tmp_path: Path, name: str) -> None:
    """Opening one would wait for ever for a writer."""
    source = tmp_path / name
    if name.startswith("Flickr"):
        source = tmp_path / "Flickr8k.token.txt"
        source.write_text("a.jpg#0\tone\n")
    elif name.startswith("qrels"):
        source = judged(tmp_path, [{"_id": "a", "image": "a.jpg"}], [{"_id": "q", "text": "x"}], "")
        (tmp_path / name).unlink()
    elif name.startswith("00000"):
        source = tmp_path
        pictures(tmp_path / "00000", names="a")
        dump(tmp_path / "00000_stats.json", {})
    os.mkfifo(tmp_path / name)
    assert "found a FIFO" in refusal(source)


def test_files_of_several_kinds_are_refused_in_a_pattern_and_told_in_a_folder(tmp_path: Path) -> None:
    pictures(tmp_path, "jpg")
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": ["x"]}), tmp_path / "train.parquet")
    (tmp_path / "data").mkdir()
    for name in ("val.csv", "test.txt", "data/extra.csv"):
        (tmp_path / name).write_text("image,caption\nb.jpg,x\n")
    (tmp_path / "b.tar.gz").write_bytes(b"x")
    for pattern in ("*", "{train.parquet,val.csv}", "{train.parquet,b.tar.gz}", "{train.parquet,data}", "{train.parquet,a.jpg}"):
        assert "files of several kinds: " in refusal(tmp_path / pattern)
    assert contents(read_manifest(tmp_path / "*.parquet")) == {("train", "a.jpg"): ["x"]}
    manifest = read_manifest(tmp_path)
    assert contents(manifest) == {("train", "a.jpg"): ["x"]}
    assert manifest.lines() == [f"left out  {tmp_path}: not read: b.tar.gz, test.txt, val.csv, data/extra.csv"]
    (tmp_path / "train.parquet").rename(tmp_path / "train_val.parquet")
    (tmp_path / "train_val.csv").write_text("image,caption\na.jpg,x\n")
    assert "train_val.csv" in read_manifest(tmp_path).lines()[0]


def test_a_pattern_takes_the_shards_of_img2dataset_and_not_its_records(tmp_path: Path) -> None:
    tar_of(tmp_path / "00000.tar", PAIR)
    pq.write_table(pa.table({"key": ["a"], "status": ["success"], "error_message": [None]}), tmp_path / "00000.parquet")
    dump(tmp_path / "00000_stats.json", {})
    for source in (tmp_path, tmp_path / "*"):
        manifest = read_manifest(source)
        assert contents(manifest) == {(None, "a"): ["a dog"]} and manifest.lines() == []
