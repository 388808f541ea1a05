"""Pictures and captions to what a tower reads: ours next to transformers' own processor, on one core, in turns.

    python -m benchmarks.pictures --photographs PATH/TO/JPEGS --write
    python -m benchmarks.pictures --number 8 --rounds 2          drawn pictures, short

JPEGs (quality 90) of 500 x 375, 640 x 480 and 2000 x 1500, made of the photographs, or drawn where there are none. A round is every system
once over all pictures of a size, 32 at a time. Rates are of the processor's time, so that what else a machine does changes them less; the
disk's is not in them, as files lie in the page cache.

    transformers   SiglipProcessor on pictures that are opened, as a plain loop calls it: float32 of 224 x 224
    ours, values   decode_image, Pillow's resize, bytes to values by the table: the same bits, asserted
    ours           the same without the last, which is done where the model is: what a loader's worker does
    at scale       as ours, with data.jpeg_at_scale: other pixels, whose difference is measured
    cached         as ours, with data.cache_pixels, filled before: the same bits, asserted
    crops, cached crops    train.random_crop_min_area 0.5, without and with data.cache_pixels, whose difference is measured

--write makes results/pictures.md.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil, SiglipProcessor

from benchmarks.conclusion import title_lines
from eval.dataset.pixel_cache import PixelStore
from eval.dataset.retrieval_set import StoredImages, StringColumn, load_split
from eval.encoder.checkpoint import load_siglip
from eval.encoder.inputs import PictureBytes, image_features
from eval.manifest.manifest import read_manifest
from train.data.crops import Crops

ROOT = Path(__file__).resolve().parents[1]
SIDE, AT_ONCE, QUALITY, MIN_AREA = 224, 32, 90, 0.5
SIZES = {"500 x 375": (500, 375), "640 x 480": (640, 480), "2000 x 1500": (2000, 1500)}
SYSTEMS = ("transformers", "ours, values", "ours", "at scale", "cached", "crops", "cached crops")
Read = Callable[[int], torch.Tensor]


def drawn(number: int) -> Image.Image:
    """A picture with detail of every size, as photographs have it: noise of falling strength, octave by octave."""
    draws, total = np.random.default_rng(number), np.zeros((384, 512, 3))
    for octave in range(8):
        coarse = draws.uniform(-1, 1, (3 * 2**octave, 4 * 2**octave, 3)) * 0.6**octave
        channels = [Image.fromarray(coarse[:, :, channel].astype(np.float32)).resize((512, 384), 3) for channel in range(3)]
        total += np.stack([np.asarray(channel) for channel in channels], axis=2)
    return Image.fromarray(np.uint8(255 * (total - total.min()) / (total.max() - total.min())))


def write_pictures(folder: Path, size: tuple[int, int], originals: list[Image.Image]) -> StoredImages:
    """JPEGs of a size, as a data set."""
    paths = []
    for number, original in enumerate(originals):
        paths.append(str(folder / f"{size[0]}-{number}.jpg"))
        upright = size if original.width >= original.height else size[::-1]
        original.resize(upright, Image.Resampling.LANCZOS).save(paths[-1], quality=QUALITY)
        os.utime(paths[-1], (1e9, 1e9))
    return StoredImages(StringColumn(paths), StringColumn(paths), np.full(len(paths), -1), None, source="pictures")


def rates(systems: dict[str, Callable[[], object]], number: int, rounds: int) -> dict[str, list[float]]:
    """Items a second of the processor's time of each system in each round; the order turns from round to round."""
    found: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.process_time()
            systems[name]()
            found[name].append(number / (time.process_time() - began))
    return found


def blocks(number: int) -> Iterator[range]:
    """Indices, AT_ONCE at a time."""
    return (range(start, min(start + AT_ONCE, number)) for start in range(0, number, AT_ONCE))


def of_size(dataset: StoredImages, store: PixelStore, rounds: int) -> tuple[dict[str, list[float]], str]:
    """The rates of every system on pictures of a size, and how far they are from one another."""
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = SiglipImageProcessorPil(**settings)
    theirs = SiglipProcessor(processor, load_siglip(ROOT / "demo" / "models" / "siglip-base")[1].tokenizer)
    pictures, number = PictureBytes(processor), dataset.num_images
    plain_crops, held_crops = Crops(dataset, pictures, 0, MIN_AREA), Crops(dataset, pictures, 0, MIN_AREA, store)
    readers: dict[str, Read] = {
        "ours": pictures.reader(dataset),
        "at scale": pictures.reader(dataset, at_scale=True),
        "cached": pictures.reader(dataset, store),
        "crops": lambda image: plain_crops.read(image, 0),
        "cached crops": lambda image: held_crops.read(image, 0),
    }

    def plain() -> list[torch.Tensor]:
        return [
            theirs(images=[Image.open(dataset.path(image)) for image in block], return_tensors="pt")["pixel_values"]
            for block in blocks(number)
        ]

    def reading(read: Read) -> list[torch.Tensor]:
        return [torch.stack([read(image) for image in block]) for block in blocks(number)]

    def values(read: Read) -> list[torch.Tensor]:
        return [pictures.values(torch.stack([read(image) for image in block])) for block in blocks(number)]

    exact = torch.cat(plain())
    assert all(torch.equal(torch.cat(values(readers[name])), exact) for name in ("ours", "cached", "cached"))
    off = {
        words: _difference(reading_bytes(readers[one], number), reading_bytes(readers[other], number))
        for words, one, other in (("at scale", "at scale", "ours"), ("cached crops", "cached crops", "crops"))
    }
    systems: dict[str, Callable[[], object]] = {"transformers": plain, "ours, values": lambda: values(readers["ours"])}
    systems |= {name: (lambda read=read: reading(read)) for name, read in readers.items()}
    return rates(systems, number, rounds), "; ".join(f"{words} {text}" for words, text in off.items())


def reading_bytes(read: Read, number: int) -> torch.Tensor:
    """All pictures' bytes."""
    return torch.stack([read(image) for image in range(number)])


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    off = (found.int() - expected.int()).abs().numpy()
    return f"mean {off.mean():.2f}, 99% within {np.percentile(off, 99):.0f}, most {off.max()} of 255"


def cosines(datasets: dict[str, StoredImages]) -> str:
    """Cosines of the demo's small SigLIP between a JPEG in full and at scale, next to those between different pictures."""
    model, inputs = load_siglip(ROOT / "demo" / "models" / "siglip-base")
    found = []
    for name, dataset in datasets.items():
        with torch.no_grad():
            whole, scaled = (
                image_features(
                    model,
                    inputs.picture_bytes.values(
                        reading_bytes(inputs.picture_bytes.reader(dataset, at_scale=at_scale), dataset.num_images)
                    ),
                )
                for at_scale in (False, True)
            )
        same, others = (whole * scaled).sum(1), (whole @ whole.T)[~torch.eye(len(whole), dtype=torch.bool)]
        found.append(f"{name}: least {same.min():.4f}, mean {same.mean():.4f} (between different pictures {others.mean():.3f})")
    return "; ".join(found)


def of_texts(rounds: int) -> dict[str, list[float]]:
    """Captions a second: the tokenizer, and the table of a run's texts."""
    _, inputs = load_siglip(ROOT / "demo" / "models" / "siglip-base")
    captions = load_split(read_manifest(ROOT / "demo" / "data" / "scenes.parquet"), "train").captions[:2048]
    table = inputs.with_tokens_of([captions])
    assert table.tokens is not None and torch.equal(table.token_ids(captions), inputs.token_ids(captions))
    parts = [captions[start : start + 256] for start in range(0, len(captions), 256)]
    return rates(
        {"tokenizer": lambda: [inputs.token_ids(part) for part in parts], "table": lambda: [table.token_ids(part) for part in parts]},
        len(captions),
        rounds,
    )


def row(name: str, found: dict[str, list[float]], base: str) -> str:
    """A row of a table: of each system the median rate, and how often as fast as the base it was, median and spread over the rounds."""
    cells = []
    for system, values in found.items():
        ratios = sorted(value / other for value, other in zip(values, found[base], strict=True))
        ratio = "" if system == base else f", x {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells.append(f"{sorted(values)[len(values) // 2]:,.0f}{ratio}")
    return f"| {name} | " + " | ".join(cells) + " |"


def page(rows: list[str], texts: str, said: list[str], source: str, rounds: int) -> str:
    """The page."""
    import PIL
    import transformers

    words = [word if not Path(word).is_dir() else "PATH/TO/JPEGS" for word in sys.argv[1:]]
    command = " ".join(words)
    lines = [
        *title_lines("pictures", "Pictures and captions to what a tower reads"),
        f"`python -m benchmarks.pictures {command}`; {source}, JPEG quality {QUALITY}, to {SIDE} x {SIDE}; one core,",
        f"{rounds} rounds in turns, Pillow {PIL.__version__}, transformers {transformers.__version__}, a shared machine: read the ratios.",
        "Rates are of the processor's time; x: as often as transformers' own processor in the same round, median (least to most).",
        "",
        "| pictures a second | " + " | ".join(SYSTEMS) + " |",
        "|" + "---|" * (len(SYSTEMS) + 1),
        *rows,
        "",
        "| captions a second | tokenizer | table of the run's texts |",
        "|---|---|---|",
        texts,
        "",
        "Ours and cached: the bits of transformers' own processor, asserted. Differences of bytes from ours, or from crops:",
        "",
        *[f"- {line}" for line in said],
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="a folder of JPEGs; without, pictures are drawn")
    parser.add_argument("--number", type=int, default=32, help="pictures of each size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write results/pictures.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    files = [] if asked.photographs is None else sorted(asked.photographs.glob("*.jpg"))[: asked.number]
    originals = [Image.open(file).convert("RGB") for file in files] or [drawn(number) for number in range(asked.number)]
    source = f"{len(originals)} {'photographs' if files else 'drawn pictures'} of each size"
    with tempfile.TemporaryDirectory() as folder:
        from huggingface_hub import constants

        constants.HF_ASSETS_CACHE = folder  # where tables of tokens are
        datasets = {name: write_pictures(Path(folder), size, originals) for name, size in SIZES.items()}
        rows, said = [], []
        for name, dataset in datasets.items():
            found, off = of_size(dataset, PixelStore(0.5, Path(folder) / "pixels", num_files=2), asked.rounds)
            rows.append(row(name, found, "transformers"))
            said.append(f"{name}: {off}")
            print(rows[-1], flush=True)
        said.append(f"cosines at scale, by the demo's small checkpoint: {cosines(datasets)}")
        text = page(rows, row("demo, 24 tokens", of_texts(asked.rounds), "tokenizer"), said, source, asked.rounds)
    print(text)
    if asked.write:
        (ROOT / "results" / "pictures.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
