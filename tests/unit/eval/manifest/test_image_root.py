"""An image root that most pictures are not below: the right one near it is named in one line."""

import json
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.manifest.manifest import ManifestError, RowRules, read_manifest
from eval.manifest.names import OPTIONS, calling
from rerank.answers.collection import read_collection


def made(root: Path, folder: str, names: list[str]) -> Path:
    """A manifest with a caption for each name, and the pictures in a folder."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).write_bytes(b"x")
    (root / "data").mkdir(exist_ok=True)
    manifest = root / "data" / "m.jsonl"
    manifest.write_text("".join(json.dumps({"image": name, "caption": f"picture {name}"}) + "\n" for name in names))
    return manifest


@pytest.mark.parametrize("folder", ["data/images", "data/other", "."])
def test_one_line_names_the_folder_that_has_the_pictures(tmp_path: Path, folder: str) -> None:
    manifest = made(tmp_path, folder, [f"{number}.jpg" for number in range(30)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    right = (tmp_path / folder).resolve()
    assert [(fault.where, fault.kind) for fault in caught.value.faults] == [(f"{manifest}:1", "wrong image root")]
    assert f"30 of 30 pictures are not below {str(tmp_path / 'data')!r}, such as '0.jpg'." in str(caught.value)
    assert str(caught.value).endswith(f"They are below {str(right)!r}: set data.image_root={right}")
    assert len(read_manifest(manifest, image_root=right).images) == 30


def test_pictures_that_are_not_below_the_right_root_either_are_told_at_once(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data/images", [f"{number}.jpg" for number in range(30)])
    for number in (0, 17):
        (tmp_path / "data" / "images" / f"{number}.jpg").unlink()
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    right = tmp_path / "data" / "images"
    assert f"They are below {str(right)!r}, but for 2 that are not there either, such as '0.jpg': set" in str(caught.value)


def test_pictures_are_looked_for_though_the_captions_are_in_no_known_column(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data/images", ["a.jpg", "b.jpg"])
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest, columns={"caption": "description"})
    assert [fault.kind for fault in caught.value.faults] == ["unknown column", "wrong image root"]
    (tmp_path / "data" / "images" / "b.jpg").unlink()
    for skip_missing, kinds in ((False, ["unknown column", "missing file"]), (True, ["unknown column"])):
        with pytest.raises(ManifestError) as caught:
            read_manifest(
                manifest,
                columns={"caption": "description"},
                image_root=tmp_path / "data" / "images",
                rules=RowRules(skip_missing=skip_missing),
            )
        assert [fault.kind for fault in caught.value.faults] == kinds


def test_the_manifests_folder_is_named_where_another_root_is_given(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data", ["a.jpg", "b.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=f"set --image-root={tmp_path / 'data'}$"), calling(OPTIONS):
        read_manifest(manifest, image_root=tmp_path / "empty")


def test_skipping_does_not_hide_a_wrong_root(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data/images", ["a.jpg", "b.jpg"])
    with pytest.raises(ManifestError, match=r"set data\.image_root="):
        read_manifest(manifest, rules=RowRules(skip_missing=True))


def test_pictures_that_are_nowhere_near_are_named_one_by_one(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data", ["a.jpg", "b.jpg"])
    (tmp_path / "data" / "a.jpg").unlink()
    with pytest.raises(ManifestError) as caught:
        read_manifest(manifest)
    assert [(fault.where, fault.kind) for fault in caught.value.faults] == [(f"{manifest}:1", "missing file")]


def test_of_pictures_to_search(tmp_path: Path) -> None:
    manifest = made(tmp_path, "data/images", ["a.jpg", "b.jpg"])
    (tmp_path / "two.txt").write_text("a dog\na cat\n")
    for captions in (None, str(tmp_path / "two.txt")):
        with pytest.raises(UserError, match=f"set --image-root={tmp_path / 'data' / 'images'}$"), calling(OPTIONS):
            read_collection(str(manifest), captions)
