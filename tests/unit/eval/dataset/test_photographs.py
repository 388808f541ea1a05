"""Real photographs with the captions people wrote, where they are at hand."""

from pathlib import Path

import pytest

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import read_manifest

DATA = Path(__file__).parents[5] / "shared" / "data"
ORIGINALS, VAL = DATA / "flickr8k_originals" / "captions.jsonl", DATA / "flickr8k" / "val.parquet"


@pytest.mark.skipif(not ORIGINALS.exists(), reason="the photographs are not here")
def test_originals_read_and_decode() -> None:
    manifest = read_manifest(ORIGINALS)
    assert len(manifest.images) == 120 and sum(len(image.captions) for image in manifest.images) == 600
    for split in manifest.splits:
        dataset = load_split(manifest, split)
        for image in range(0, dataset.num_images, 6):
            picture = dataset.load_image(image)
            assert picture.mode == "RGB" and max(picture.size) == 500


@pytest.mark.skipif(not VAL.exists(), reason="the photographs are not here")
def test_embedded_photographs_read_and_decode() -> None:
    manifest = read_manifest(VAL, require_splits=["val"])
    dataset = load_split(manifest, "val")
    assert (dataset.num_images, dataset.num_captions) == (1000, 5000)
    assert {dataset.load_image(image).size for image in range(0, 1000, 50)} == {(160, 160)}
    assert (dataset.positives("image_to_text").counts >= 5).all()
