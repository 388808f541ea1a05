"""An image folder with a .txt next to each picture: every caption is read, or named with why its picture is not."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from eval.manifest.manifest import ManifestError, read_manifest

CASES = Path(__file__).parents[5] / "shared/cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")


def put(folder: Path, name: str, text: str | bytes | None = "a dog", kind: str = "PNG") -> None:
    """A picture and its caption; kind: of the picture; empty for a file that is none."""
    path = folder / name
    if kind:
        Image.new("L", (8, 8)).save(path, format=kind)
    else:
        path.write_bytes(b"x")
    if text is not None:
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def captions(folder: Path) -> dict[str, list[str]]:
    return {image.id: image.captions for image in read_manifest(folder).images}


def faults(folder: Path) -> dict[str, str]:
    """What is wrong, by the file's name."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    return {Path(fault.where).name: fault.what for fault in caught.value.faults}


def test_whatever_is_decoded_is_taken(tmp_path: Path) -> None:
    kinds = {"a.jpg": "JPEG", "b.JPE": "JPEG", "c.jfif": "JPEG", "d.pgm": "PPM", "e.mpo": "JPEG", "f.Png": "PNG", "g.tif": "TIFF"}
    for name, kind in kinds.items():
        put(tmp_path, name, name, kind)
    assert captions(tmp_path) == {name: [name] for name in kinds}


def test_a_caption_whose_picture_is_not_taken_is_a_fault(tmp_path: Path) -> None:
    put(tmp_path, "good.png")
    put(tmp_path, "phone.heic", kind="")
    put(tmp_path, "drawing.svg", kind="")
    put(tmp_path, "bare")
    put(tmp_path, "gone.txt", kind="")
    (tmp_path / "README.txt").write_text("what these are")
    found = faults(tmp_path)
    assert set(found) == {"phone.txt", "drawing.txt", "bare.txt", "gone.txt"}
    assert "phone.heic, is not read: HEIC and HEIF pictures are not read; convert them to .jpg" in found["phone.txt"]
    assert "drawing.svg, is not read: *.svg is none of .apng, " in found["drawing.txt"]
    assert "bare, is not read: a name without a suffix is none of .apng" in found["bare.txt"]
    assert "no picture of this name: expected gone.jpg or such" in found["gone.txt"]


def test_a_folder_of_nothing_but_heic_pictures_is_named(tmp_path: Path) -> None:
    put(tmp_path, "phone.HEIC", kind="")
    assert "convert them to .jpg" in faults(tmp_path)["phone.txt"]


def test_other_files_next_to_a_picture_are_left_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "._a.txt").write_text("left by an archive")
    assert captions(tmp_path) == {"a.png": ["a dog"]}


def test_only_line_ends_end_a_caption(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "one\x0btwo\nthree\x0cfour\r\nfive\x1csix\x1dseven\x1eeight\rnine\x85ten\u2028eleven\u2029twelve")
    whole = ["one\x0btwo", "three\x0cfour", "five\x1csix\x1dseven\x1eeight", "nine\x85ten\u2028eleven\u2029twelve"]
    assert captions(tmp_path) == {"a.png": whole}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_captions_of_every_encoding_with_a_mark(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    put(tmp_path, "a.png", f"{mark}ein Hündchen\r\nzwei\r\n".encode(encoding))
    assert captions(tmp_path) == {"a.png": ["ein Hündchen", "zwei"]}


@pytest.mark.parametrize(("picture", "text"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_caption_whose_name_is_composed_otherwise_is_its_pictures(tmp_path: Path, picture: str, text: str) -> None:
    put(tmp_path, unicodedata.normalize(picture, "café.png"), None)
    (tmp_path / unicodedata.normalize(text, "café.txt")).write_text("a cup")
    assert list(captions(tmp_path).values()) == [["a cup"]]


@needs_cases
def test_case_folder_suffixes(tmp_path: Path) -> None:
    folder = shutil.copytree(CASES / "folder_suffixes", tmp_path / "copy", ignore=shutil.ignore_patterns("README"))
    assert set(faults(folder)) == {"p5.txt", "p9.txt"}, "a .heic, and a name without a suffix"
    for name in ("p5.txt", "p9.txt"):
        (folder / name).unlink()
    assert [name[:2] for name in captions(folder)] == ["p0", "p1", "p2", "p3", "p4", "p6", "p7", "p8"]


@needs_cases
def test_case_folder_line_separators() -> None:
    assert [len(lines) for lines in captions(CASES / "folder_line_separators").values()] == [1, 1, 2]


def test_the_columns_of_metadata_have_other_usual_names_too(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,title\na.png,a red shoe\n")
    (image,) = read_manifest(tmp_path).images
    assert (image.id, image.captions) == ("a.png", ["a red shoe"])


def test_folders_are_splits_by_names_as_files_are(tmp_path: Path) -> None:
    for name in ("Training", "val2017", "dev_1"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, "a.png")
    assert read_manifest(tmp_path).splits == ["dev", "train", "val"]
    (tmp_path / "metadata.csv").write_text("file_name,text\nTraining/a.png,x\n")
    assert read_manifest(tmp_path).splits == ["train"]


def test_pictures_next_to_split_folders_are_named_or_counted(tmp_path: Path) -> None:
    for name in ("test", "test tubes", "thumbnails"):
        (tmp_path / name).mkdir()
        put(tmp_path / name, "a.png", None if name == "thumbnails" else "a dog")
    put(tmp_path, "logo.png", None)
    put(tmp_path, "root.png")
    found = faults(tmp_path)
    assert found.keys() == {"a.png", "root.png"} and "next to the split folders test; move them" in found["root.png"]
    (tmp_path / "root.txt").unlink()
    shutil.rmtree(tmp_path / "test tubes")
    manifest = read_manifest(tmp_path)
    assert [image.id for image in manifest.images] == ["test/a.png"]
    assert [Path(where).name for where, _ in manifest.rows.left_out] == ["logo.png", "root.png", "a.png"]


def test_metadata_of_split_folders_that_those_of_the_folder_hide_are_told(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    put(tmp_path / "train", "a.png", None)
    for folder in (tmp_path, tmp_path / "train"):
        (folder / "metadata.csv").write_text("file_name,text\ntrain/a.png,x\n")
    assert read_manifest(tmp_path).lines() == [f"left out  {tmp_path}: not read: train/metadata.csv"]


def test_a_split_folder_of_captions_alone_is_named(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    put(tmp_path / "train", "a.png")
    (tmp_path / "val" / "b.txt").write_text("a cat")
    assert "no picture of this name" in faults(tmp_path)["b.txt"]


def test_linked_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    put(tmp_path / "set", "a.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "set")
    assert read_manifest(tmp_path / "set").lines() == [f"left out  {tmp_path / 'set'}: not read: linked (a linked folder)"]


def test_two_files_of_captions_for_one_picture_are_a_fault(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "a.TXT").write_text("a cat")
    assert faults(tmp_path) == {"a.txt": "a.TXT is next to it, for the same picture: join them"}


def test_an_empty_name_in_metadata_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\n,x\n")
    assert "expected a path or embedded bytes, found ''" in faults(tmp_path)["metadata.csv:2"]


def test_metadata_are_read_from_the_columns_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "a.png", None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "no"}\n')
    with pytest.raises(ManifestError, match="maps caption to 'alt', which is not there"):
        read_manifest(tmp_path, columns={"caption": "alt"})
