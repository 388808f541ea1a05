"""Row `pictures`: from the bytes of a photograph to pixel values, as a loader's worker and the step do it, on one core."""

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

NUM_PICTURES, SIZE, BATCH = 96, (640, 480), 32
WORDS = ("dog", "cat", "runs", "through", "green", "grass", "near", "old", "house", "red", "door", "two", "children")


def photographs(folder: Path, number: int = NUM_PICTURES, size: tuple[int, int] = SIZE) -> Path:
    """Drawn noise at the size, and about the bytes, of COCO's photographs, as FOLDER/pictures/N.jpg; captions.jsonl with one caption of
    each. Returns FOLDER."""
    (folder / "pictures").mkdir(parents=True)
    draws = np.random.default_rng(0)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for place in range(number):
            coarse = [Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (6, 24, 96)]
            layers = np.stack([np.asarray(layer.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) for layer in coarse])
            pixels = np.einsum("k,khwc->hwc", np.array([0.5, 0.3, 0.2], dtype=np.float32), layers)
            name = f"pictures/{place:04d}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
            row = {"image": name, "captions": [" ".join(draws.choice(WORDS, 9)) + f" {place} {caption}" for caption in range(5)]}
            file.write(json.dumps(row) + "\n")
    return folder


def prepare(row: str, place: Path) -> None:
    """Write the photographs."""
    photographs(place / "photographs")


def measure(row: str, system: str, place: Path) -> dict[str, Any]:
    """Seconds for the photographs. The limit is what Pillow needs to decode them and to resize them, alone."""
    torch.set_num_threads(1)
    paths = sorted((place / "photographs" / "pictures").glob("*.jpg"))
    contents = [path.read_bytes() for path in paths]
    work = _ours(place) if system == "ours" else _theirs(contents)
    work(0, BATCH)
    began = time.perf_counter()
    for first in range(0, len(paths), BATCH):
        work(first, first + BATCH)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    for content in contents:
        Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return {"seconds": seconds, "amount": len(paths), "floor": time.perf_counter() - began}


def _ours(place: Path) -> Any:
    from transformers import SiglipImageProcessorPil

    from eval.dataset.retrieval_set import load_split
    from eval.encoder.inputs import PictureBytes
    from eval.manifest.manifest import read_manifest

    dataset = load_split(read_manifest(place / "photographs" / "captions.jsonl"), None)
    reader = PictureBytes(SiglipImageProcessorPil())

    def work(first: int, last: int) -> torch.Tensor:
        return reader.values(torch.stack([reader.read(dataset.load_image(image)) for image in range(first, last)]))

    return work


def _theirs(contents: list[bytes]) -> Any:
    from transformers import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil()

    def work(first: int, last: int) -> Any:
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents[first:last]]
        return processor(images=pictures, return_tensors="pt")["pixel_values"]

    return work
