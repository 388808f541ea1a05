"""Crops and flips as images, and additional views as vectors: every view embedded as if it were alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.execution import Execution
from eval.manifest.manifest import read_manifest
from rerank.combine.embedded_sets import embed_views
from rerank.expansions.additional_texts import CaptionExpansions
from rerank.expansions.image_views import VIEWS, ImageViews
from rerank.expansions.parse import parse_expansion
from tests.small_job import SmallWorld
from tests.unit.rerank.combine.expansion_set import split_of


def views_of(dataset: RetrievalSet, method: str) -> ImageViews:
    views = parse_expansion(method).of(dataset)
    assert isinstance(views, ImageViews)
    return views


@pytest.fixture
def numbered(tmp_path: Path) -> RetrievalSet:
    """Two pictures whose every pixel says where it is: red its column, green its row, blue its picture."""
    for number, (width, height) in enumerate([(10, 20), (15, 5)]):
        pixels_HWC = np.zeros((height, width, 3), dtype=np.uint8)
        pixels_HWC[..., 0], pixels_HWC[..., 1], pixels_HWC[..., 2] = np.arange(width), np.arange(height)[:, None], number
        Image.fromarray(pixels_HWC).save(tmp_path / f"{number}.png")
    (tmp_path / "m.jsonl").write_text("".join(f'{{"image": "{number}.png", "caption": "c{number}"}}\n' for number in range(2)))
    return load_split(read_manifest(tmp_path / "m.jsonl"), None)


def test_crops_are_the_centre_and_the_corners(numbered: RetrievalSet) -> None:
    views = views_of(numbered, "crops")
    assert (views.num_images, views.offsets.tolist(), views.name) == (10, [0, 5, 10], "crops")
    corners = []
    for number in range(10):
        picture = np.asarray(views.load_image(number))
        assert picture.shape[:2] == ((16, 8) if number < 5 else (4, 12))  # four fifths of each side
        assert (picture[..., 2] == number // 5).all()
        corners.append(tuple(picture[0, 0, :2].tolist()))
    assert corners[:5] == [(1, 2), (0, 0), (2, 0), (0, 4), (2, 4)]
    assert corners[5:] == [(2, 0), (0, 0), (3, 0), (0, 1), (3, 1)]
    assert views.names[5] == "1.png (crop centre)" and views.of(0)[1] == "crop top left"


def test_flips_are_mirrored(numbered: RetrievalSet) -> None:
    views = views_of(numbered, "flips")
    assert views.num_images == 2 and views.record()["views"] == ["mirrored"]
    for number in range(2):
        assert np.array_equal(np.asarray(views.load_image(number)), np.asarray(numbered.load_image(number))[:, ::-1])


def test_a_picture_of_one_pixel_has_views_too() -> None:
    one = Image.new("RGB", (1, 1), (1, 2, 3))
    crops = parse_expansion("crops").of(split_of(["x"]))
    assert isinstance(crops, ImageViews) and [view(one).size for view in VIEWS[crops.name].values()] == [(1, 1)] * 5


def test_a_picture_is_decoded_once_for_its_views_and_only_when_asked(numbered: RetrievalSet, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    load = numbered.load_image
    monkeypatch.setattr(numbered, "load_image", lambda image: decoded.append(image) or load(image))
    views = views_of(numbered, "crops")
    assert decoded == []
    for number in range(10):
        views.load_image(number)
    assert decoded == [0, 1]


def test_a_picture_that_does_not_decode_says_which(small_world: SmallWorld, numbered: RetrievalSet) -> None:
    model, inputs = load_siglip(small_world.base)
    Path(numbered.image_place(1)).write_bytes(b"no picture")
    with pytest.raises(Exception, match="1.png: cannot be decoded") as caught:
        embed_views(model, inputs, views_of(numbered, "flips"), np.zeros((2, 4), dtype=np.float32))
    assert not isinstance(caught.value, ImageError)  # told once, by the encoder


def test_image_views_are_embedded_as_the_pictures_they_are(small_world: SmallWorld, numbered: RetrievalSet, tmp_path: Path) -> None:
    model, inputs = load_siglip(small_world.base)
    own_ID = embed_images(model, inputs, numbered)
    views = embed_views(model, inputs, views_of(numbered, "flips"), own_ID)
    for number in range(2):
        ImageOps.mirror(numbered.load_image(number)).save(tmp_path / f"mirrored-{number}.png")
    (tmp_path / "n.jsonl").write_text("".join(f'{{"image": "mirrored-{number}.png", "caption": "c"}}\n' for number in range(2)))
    expected = embed_images(model, inputs, load_split(read_manifest(tmp_path / "n.jsonl"), None))
    assert np.array_equal(views.additional_XD, expected) and views.vectors_ND is own_ID and views.offsets.tolist() == [0, 1, 2]
    again = embed_views(model, inputs, views_of(numbered, "flips"), own_ID, execution=Execution(num_workers=2))
    assert np.array_equal(again.additional_XD, expected)


def test_texts_are_embedded_item_by_item_and_one_said_often_once(small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = load_siglip(small_world.base)
    own_CD = embed_captions(model, inputs, ["a red bar", "a blue bar", "an owl"])
    texts = ["one red thing", "a bar", "one blue thing", "a bar"]
    embedded: list[int] = []
    views = embed_views(
        model, inputs, CaptionExpansions(texts, np.array([0, 2, 4, 4]), "x", "y"), own_CD, execution=Execution(on_progress=embedded.append)
    )
    assert sum(embedded) == 3
    assert views.offsets.tolist() == [0, 2, 4, 4] and views.vectors_ND is own_CD
    for number, text in enumerate(texts):
        assert np.array_equal(views.additional_XD[number], embed_captions(model, inputs, [text])[0])
    nothing = embed_views(model, inputs, CaptionExpansions([], np.zeros(4, dtype=np.int64), "x", "y"), own_CD)
    assert nothing.additional_XD.shape == (0, own_CD.shape[1]) and nothing.offsets.tolist() == [0, 0, 0, 0]
