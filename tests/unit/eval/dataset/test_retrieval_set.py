"""Ids, order, and what is positive, against the rule of docs/captions.md read word for word."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.captions import caption_hash, normalise
from eval.dataset.retrieval_set import RetrievalSet, StringColumn, load_split
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage, read_manifest

SPELLINGS = ["A dog.", "a dog", "a cat", "A CAT !", "two dogs", "two dogs run", "red", "blue"]


def picture(name: str, captions: list[str], group: str | None = None, num_bytes: int = 7) -> ManifestImage:
    return ManifestImage(name, "test", None, None, num_bytes, group, captions, "here")


def retrieval_set(images: Sequence[ManifestImage]) -> RetrievalSet:
    return RetrievalSet(images, None, source="memory", split="test")


@st.composite
def image_lists(draw: st.DrawFn) -> list[ManifestImage]:
    num_images = draw(st.integers(1, 7))
    groups = st.sampled_from([None, None, "0", "1", "g"])
    captions = st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=4)
    return [picture(f"i{number}", draw(captions), draw(groups)) for number in range(num_images)]


def brute_force(images: list[ManifestImage]) -> list[list[bool]]:
    """docs/captions.md: positive iff the normalised caption equals one of any image in the image's group (no group: the image itself)."""
    captions = [caption for image in images for caption in image.captions]
    rows = []
    for image in images:
        group = [other for other in images if other is image or (image.group is not None and other.group == image.group)]
        true = {normalise(caption) for other in group for caption in other.captions}
        rows.append([normalise(caption) in true for caption in captions])
    return rows


@settings(deadline=None)
@given(image_lists(), st.randoms(use_true_random=False))
def test_positives_equal_the_rule_applied_literally(images: list[ManifestImage], shuffler: random.Random) -> None:
    expected = brute_force(images)
    shuffled = list(images)
    shuffler.shuffle(shuffled)
    dataset = retrieval_set(shuffled)
    assert list(dataset.image_ids) == [image.id for image in images]
    found = dataset.is_positive(np.arange(dataset.num_images)[:, None], dataset.caption_hash_C[None, :])
    assert found.tolist() == expected
    to_text, to_image = dataset.positives("image_to_text"), dataset.positives("text_to_image")
    assert [to_text.of(image).tolist() for image in range(dataset.num_images)] == [np.flatnonzero(row).tolist() for row in expected]
    columns = np.array(expected).T
    assert [to_image.of(caption).tolist() for caption in range(dataset.num_captions)] == [np.flatnonzero(row).tolist() for row in columns]
    assert to_text.counts.tolist() == [sum(row) for row in expected]


def test_positive_is_not_transitive() -> None:
    dataset = retrieval_set([picture("a", ["x", "y"]), picture("b", ["Y.", "z"]), picture("c", ["z"])])
    hashes = np.array([caption_hash(text) for text in ("x", "y", "z", "w")])
    assert dataset.is_positive(np.arange(3)[:, None], hashes).tolist() == [
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, False],
    ]


def test_a_group_called_like_a_number_is_not_an_image_without_group() -> None:
    dataset = retrieval_set([picture("a", ["x"], None), picture("b", ["y"], "0"), picture("c", ["z"], "0")])
    assert [dataset.positives("image_to_text").of(image).tolist() for image in range(3)] == [[0], [1, 2], [1, 2]]


def test_ids_and_places() -> None:
    dataset = retrieval_set([picture("b", ["two", "one"]), picture("a", ["three"])])
    assert list(dataset.image_ids) == ["a", "b"]
    assert list(dataset.caption_ids) == ["a#0", "b#0", "b#1"] == [dataset.caption_id(caption) for caption in range(3)]
    assert list(dataset.captions) == ["three", "two", "one"]
    assert dataset.caption_image_C.tolist() == [0, 1, 1]


def test_unknown_direction_is_an_error() -> None:
    with pytest.raises(KeyError, match="both"):
        retrieval_set([picture("a", ["x"])]).positives("both")


def test_sha256_follows_from_the_split_and_not_from_its_order() -> None:
    base = [picture("a", ["x", "y"]), picture("b", ["z"])]
    name = retrieval_set(base).sha256()
    assert retrieval_set(base[::-1]).sha256() == name
    changed = [
        [picture("a", ["x", "y"]), picture("b", ["Z"])],
        [picture("a", ["x"]), picture("b", ["y", "z"])],
        [picture("a", ["y", "x"]), picture("b", ["z"])],
        [picture("a", ["x", "y"]), picture("c", ["z"])],
        [picture("a", ["x", "y"], "g"), picture("b", ["z"], "g")],
        [picture("a", ["x", "y"]), picture("b", ["z"], num_bytes=8)],
        base[:1],
    ]
    names = [retrieval_set(images).sha256() for images in changed]
    assert len({name, *names}) == len(changed) + 1


@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5), max_size=20),
    st.integers(-25, 25),
    st.integers(-25, 25),
)
def test_string_column_is_a_list_of_strings(strings: list[str], start: int, stop: int) -> None:
    column = StringColumn(strings)
    assert list(column) == strings and len(column) == len(strings)
    if strings:
        assert column[0] == strings[0] and column[np.int64(len(strings) - 1)] == strings[-1]
    if 0 <= start <= stop:
        assert column[start:stop] == strings[start:stop]


def test_splits_are_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "m.csv").write_text("image,caption,split\na.jpg,one,train\na.jpg,two,test\n")
    manifest = read_manifest(tmp_path / "m.csv")
    assert load_split(manifest, "test").num_captions == 1
    with pytest.raises(UserError, match=r"has the splits \['test', 'train'\]: say which"):
        load_split(manifest, None)
    with pytest.raises(UserError, match="no row has split 'val'"):
        load_split(manifest, "val")


def test_a_picture_is_known_by_its_bytes_in_a_file_or_in_the_table(tmp_path: Path) -> None:
    data = [bytes([number]) * 90 for number in range(3)]
    for number, content in enumerate(data):
        (tmp_path / f"{number}.png").write_bytes(content)
    columns = {"caption": ["a", "b", "c"], "id": ["x", "y", "z"]}
    pq.write_table(pa.table(columns | {"image": [f"{number}.png" for number in range(3)]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table(columns | {"image": [{"bytes": content, "path": None} for content in data]}), tmp_path / "bytes.parquet")
    for name in ("paths.parquet", "bytes.parquet"):
        dataset = load_split(read_manifest(str(tmp_path / name)), None)
        assert [dataset.image_digest(image) for image in range(3)] == [hashlib.sha256(content).digest() for content in data]
