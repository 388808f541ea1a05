"""train/data/crops.py, and what of a picture a training batch reads: crops out of a cache, JPEGs at scale."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import SiglipImageProcessorPil

from eval.dataset.images import decode_image
from eval.dataset.pixel_cache import PixelStore
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.inputs import PictureBytes
from eval.manifest.manifest import read_manifest
from tests.small_job import SmallWorld
from train.config.job import JobConfig
from train.data.batches import Parts, PictureReader
from train.data.crops import Crops

SIDE = 16
READ = PictureBytes(SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}))


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture as photographs are: no detail of the size of a pixel."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write(folder: Path, sizes: list[tuple[int, int]], kind: str = "png") -> RetrievalSet:
    for number, size in enumerate(sizes):
        path = folder / f"{number}.{kind}"
        smooth(*size, number).save(path, **({"quality": 95} if kind == "jpg" else {}))
        os.utime(path, (1e9, 1e9))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{number}.{kind},a {number}\n" for number in range(len(sizes))))
    return load_split(read_manifest(folder / "pairs.csv"), None)


def test_crops_out_of_a_cache_are_the_same_crops(tmp_path: Path) -> None:
    """Of a picture no larger than square and margin to the last bit; of a larger one up to what scaling twice does to smooth pictures."""
    dataset = write(tmp_path, [(22, 20), (9, 12), (120, 90), (20, 90)])  # the smallest crops have half the area, so the margin ends at 23
    plain, store = Crops(dataset, READ, 3, 0.5), PixelStore(0.01, tmp_path / "cache")
    first, again = Crops(dataset, READ, 3, 0.5, store), Crops(dataset, READ, 3, 0.5, PixelStore(0.01, tmp_path / "cache"))
    for epoch in range(4):
        for image in range(4):
            expected, made, held = (crops.read(image, epoch) for crops in (plain, first, again))
            assert torch.equal(made, held)  # whether it was there or not
            if image < 2:
                assert torch.equal(held, expected)
            else:
                off = (held.int() - expected.int()).abs().float()
                assert off.mean() < 2.5 and off.max() <= 24
    assert not torch.equal(plain.read(2, 0), plain.read(2, 1))
    without = Crops(dataset, READ, 3, 0.5, PixelStore(0.01, tmp_path / "0.png"))  # a cache that cannot be made changes no bit
    assert torch.equal(without.read(2, 1), again.read(2, 1))


def test_jpegs_are_decoded_at_scale_only_where_it_is_asked_and_apart_in_the_cache(tmp_path: Path) -> None:
    dataset, store = write(tmp_path, [(64, 64), (30, 90), (200, 150)], "jpg"), PixelStore(0.01, tmp_path / "cache")
    whole, scaled = (PictureReader(dataset, READ, 0, Parts(jpeg_at_scale=which)) for which in (False, True))
    kept = [PictureReader(dataset, READ, 0, Parts(jpeg_at_scale=which, pixels=store)) for which in (False, True)]
    for image in range(3):
        exact = READ.read(Image.open(dataset.path(image)))
        opened = Image.open(dataset.path(image))
        opened.draft(None, (SIDE, SIDE))
        assert opened.size == {0: (16, 16), 1: (30, 90), 2: (25, 19)}[image]
        coarse = READ.read(opened.convert("RGB"))
        for _ in range(2):
            assert torch.equal(whole.pixels(image, 0), exact) and torch.equal(kept[0].pixels(image, 0), exact)
            assert torch.equal(scaled.pixels(image, 0), coarse) and torch.equal(kept[1].pixels(image, 0), coarse)
        assert torch.equal(exact, coarse) == (image == 1)
        assert (exact.int() - coarse.int()).abs().float().mean() < 4


def test_what_is_no_jpeg_is_decoded_in_full(tmp_path: Path) -> None:
    file = io.BytesIO()
    smooth(64, 48).save(file, "PNG")
    assert decode_image(file.getvalue(), at_least=(16, 16)).size == (64, 48)
    file = io.BytesIO()
    smooth(64, 48).convert("L").save(file, "JPEG")
    grey = decode_image(file.getvalue(), at_least=(16, 16))
    assert (grey.size, grey.mode) == ((32, 24), "RGB")


def test_what_scaled_jpegs_do_not_go_with_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="fewer pixels than the model reads.*data.cache_pixels goes with crops"):
        JobConfig.model_validate(small_world.record(tmp_path, data__jpeg_at_scale=True, train__random_crop_min_area=0.5))
    with pytest.raises(ValidationError, match="leave data.jpeg_at_scale out"):
        JobConfig.model_validate(small_world.record(tmp_path, data__jpeg_at_scale=True, model__freeze=["image"]))
    record = small_world.record(tmp_path, data__jpeg_at_scale=True, model__freeze=["image"], model__cache_frozen=False)
    assert JobConfig.model_validate(record).data.jpeg_at_scale


def test_the_cache_may_come_and_go_between_a_run_and_its_continuation_unless_crops_come_out_of_it(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    plain, cropped = (
        JobConfig.model_validate(small_world.record(tmp_path, train__random_crop_min_area=area)).free_keys for area in (1, 0.5)
    )
    assert "data.cache_pixels" in plain and "data.cache_pixels" not in cropped and "data.jpeg_at_scale" not in plain
