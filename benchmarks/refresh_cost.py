"""What a refresh of the negatives costs, counted and not measured: FLOP of both towers, pictures decoded, captions tokenised, bytes.

    python -m benchmarks.refresh_cost

Of COCO's train split (2017) with SigLIP base, on one GPU. Counted are multiplications and additions of matrix products, two for each pair;
what a device makes of its peak is an assumption, and said. Host and device work at the same time, so a stage takes what the slower takes.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

DEPTH, WIDTH = 64, 768
_TOWER = {"hidden_size": WIDTH, "num_hidden_layers": 12, "intermediate_size": 3072}
VISION = SimpleNamespace(**_TOWER, image_size=224, patch_size=16, num_channels=3)
TEXT = SimpleNamespace(**_TOWER, max_position_embeddings=64, projection_size=WIDTH)
"""The towers of siglip-base-patch16-224, by transformers' names."""
COCO = (118_287, 591_753)
"""Images and captions of train2017."""
PEAK_TFLOPS = {"fp32": 67.0, "bf16": 989.0}
"""Of an H200 (NVIDIA's data sheet): float32 without tensor cores, for TF32 is off; bf16 dense."""
SHARE_OF_PEAK = {"fp32": 0.5, "bf16": 0.3}
"""Assumed, of towers and of the search. benchmarks/gpu.py and benchmarks/scale/costs.py count with the same."""
PICTURES_A_CORE, CACHED_FACTOR = 218.0, 8.0
"""JPEGs of 640 x 480 a second and core (results/pictures.md, ours); and how much faster they come from the cache of pixels. That page has
41 times where the pixels lie in memory; 8 are assumed, 1,744 a second and core, for which a disk gives 16 cores 4.2 GB/s."""
TEXTS_A_CORE = 10_800.0
"""Captions a second that SigLIP's own tokenizer takes on one core of a shared machine."""


RULES_SECONDS = (4.0, 3.0)
"""Of rules and table for 118,000 images with 64 candidates each on one core, before and now; several processes share them now."""


def tower_flop(width: int, layers: int, mlp: int, tokens: int) -> float:
    """FLOP of a transformer's layers for one item: four projections, two products of attention, two layers of the MLP."""
    macs_a_token = 4 * width**2 + 2 * tokens * width + 2 * width * mlp
    return 2.0 * layers * tokens * macs_a_token


def image_flop(config: Any) -> float:
    """FLOP of one picture: patches, layers, and the head that pools by attention. `config`: of transformers, of the vision tower."""
    width, tokens = config.hidden_size, (config.image_size // config.patch_size) ** 2
    patches = 2.0 * tokens * width * config.num_channels * config.patch_size**2
    head = 2.0 * (tokens * 2 * width**2 + 2 * width**2 + 2 * tokens * width + 2 * width * config.intermediate_size)
    return patches + tower_flop(width, config.num_hidden_layers, config.intermediate_size, tokens) + head


def text_flop(config: Any) -> float:
    """FLOP of one caption, padded to the tower's length. `config`: of transformers, of the text tower."""
    width, tokens = config.hidden_size, config.max_position_embeddings
    return tower_flop(width, config.num_hidden_layers, config.intermediate_size, tokens) + 2.0 * width * config.projection_size


@dataclass(frozen=True)
class Refresh:
    """One refresh of the negatives of a split on one GPU.

    Attributes:
        precision: of the towers.
        cores: that decode pictures.
        pictures_cached: whether pictures come from the cache of resized ones.
        tokens_cached: whether captions are tokenised already.
        rules_seconds: of rules, table and report on the host.
    """

    precision: str
    cores: int
    pictures_cached: bool
    tokens_cached: bool
    rules_seconds: float
    num_images: int = COCO[0]
    num_captions: int = COCO[1]

    def stages(self) -> list[tuple[str, str, float, float]]:
        """(stage, what is counted, seconds of the host, seconds of the device)."""
        rate = PEAK_TFLOPS[self.precision] * SHARE_OF_PEAK[self.precision] * 1e12
        images = self.num_images * image_flop(VISION)
        texts = self.num_captions * text_flop(TEXT)
        search = 2.0 * self.num_images * self.num_captions * WIDTH
        pictures_a_second = self.cores * PICTURES_A_CORE * (CACHED_FACTOR if self.pictures_cached else 1)
        tokenising = 0.0 if self.tokens_cached else self.num_captions / TEXTS_A_CORE
        pixels, rows = self.num_images * 3 * 224**2, 4.0 * WIDTH * (self.num_images + self.num_captions)
        found = 12.0 * DEPTH * self.num_images
        exact = PEAK_TFLOPS["fp32"] * SHARE_OF_PEAK["fp32"] * 1e12
        return [
            ("pictures", f"{images / 1e15:.2f} PFLOP, {pixels / 1e9:.1f} GB sent", self.num_images / pictures_a_second, images / rate),
            ("captions", f"{texts / 1e15:.2f} PFLOP", tokenising, texts / rate),
            ("search", f"{search / 1e15:.2f} PFLOP in fp32, {rows / 1e9:.1f} GB of rows on disk", 0.0, search / exact),
            ("rules and table", f"{found / 1e9:.2f} GB of candidates", self.rules_seconds, 0.0),
        ]

    @property
    def seconds(self) -> float:
        """Of all stages one after the other, each as long as the slower of host and device."""
        return sum(max(host, device) for _, _, host, device in self.stages())

    @property
    def seconds_in_turn(self) -> float:
        """The same where the device waits for the host in every stage, and the host for the device."""
        return sum(host + device for _, _, host, device in self.stages())


def cases() -> dict[str, Refresh]:
    """By what they are called: as it was, and as it is, with what a machine may have."""
    return {
        "before: fp32": Refresh("fp32", 16, pictures_cached=False, tokens_cached=False, rules_seconds=RULES_SECONDS[0]),
        "now: bf16": Refresh("bf16", 16, pictures_cached=False, tokens_cached=False, rules_seconds=RULES_SECONDS[1]),
        "now: bf16, pictures and tokens cached": Refresh(
            "bf16", 16, pictures_cached=True, tokens_cached=True, rules_seconds=RULES_SECONDS[1]
        ),
    }


def lines() -> list[str]:
    """The counted table, as Markdown."""
    found = ["| refresh of COCO, one H200, 16 cores | stage | counted | host, s | device, s |", "|---|---|---|---|---|"]
    for name, case in cases().items():
        found += [f"| {name} | {stage} | {what} | {host:.0f} | {device:.0f} |" for stage, what, host, device in case.stages()]
        found.append(f"| {name} | **all: {case.seconds:.0f} s** | in turn {case.seconds_in_turn:.0f} s | | |")
    return found


def main() -> None:
    """The command."""
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
