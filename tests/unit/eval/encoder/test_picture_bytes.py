"""eval/encoder/inputs.py: the bits of each processor, from a quarter of the bytes."""


import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.encoder.inputs import PictureBytes

PROCESSORS = {
    "SigLIP base": SiglipImageProcessorPil(),
    "the demo's": SiglipImageProcessorPil(size={"height": 64, "width": 64}),
    "SigLIP 2": SiglipImageProcessorPil(size={"height": 256, "width": 256}, resample=2, do_convert_rgb=None),
    "BLIP": BlipImageProcessorPil(),
    "of other means": SiglipImageProcessorPil(image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28], rescale_factor=1 / 254),
    "without normalisation": SiglipImageProcessorPil(do_normalize=False),
}


def pictures() -> list[Image.Image]:
    draws = np.random.default_rng(3)
    return [Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8)) for height, width in ((375, 500), (97, 31), (8, 8))]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixel_values_made_of_bytes_are_the_processors_to_the_last_bit(name: str) -> None:
    processor = PROCESSORS[name]
    read = PictureBytes(processor)
    rows = torch.stack([read.read(picture) for picture in pictures()])
    expected = np.stack([processor(images=picture, return_tensors="np")["pixel_values"][0] for picture in pictures()])
    assert rows.dtype == torch.uint8 and rows.nbytes * 4 == expected.nbytes
    values = read.values(rows)
    assert values.dtype == torch.float32 and values.numpy().tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize(
    "processor",
    [
        SiglipImageProcessorPil(do_resize=False),  # then a picture's size is its own; the trial's is no square of 16
        BlipImageProcessorPil(do_rescale=False, do_normalize=False),
    ],
)
def test_a_processor_that_does_otherwise_is_asked_itself(processor: object) -> None:
    read = PictureBytes(processor)
    picture = pictures()[0]
    expected = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float32)  # type: ignore[operator]
    assert np.array_equal(read.values(read.read(picture)[None])[0].numpy(), expected)


def test_a_processor_whose_values_depend_on_the_place_gets_no_table() -> None:
    """No two neighbours are alike after it."""
    inner = SiglipImageProcessorPil(size={"height": 16, "width": 16})

    def shaded(images: Image.Image, **options: object) -> dict[str, np.ndarray]:
        values = np.asarray(inner(images=images, **options)["pixel_values"])
        return {"pixel_values": values if options.get("do_rescale") is False else values + np.linspace(0, 1, 16, dtype=np.float32)}

    read = PictureBytes(shaded)
    rows = read.read(pictures()[0])
    assert rows.dtype == torch.float32
    assert np.array_equal(read.values(rows).numpy(), shaded(pictures()[0], return_tensors="np")["pixel_values"][0])
