"""Small BLIP cross-encoders with random weights, in the hub's own file formats, and a data set in memory."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipConfig, BlipForImageTextRetrieval

from tests.tiny_blip import write_processor, write_tiny_blip
from tests.unit.rerank.scorers.tiny_cross_encoders import changed_copy


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, and much slower on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer BLIP cross-encoder; its vocabulary is two larger than its tokenizer's, as the released one's is."""
    folder = tmp_path_factory.mktemp("blip") / "tiny"
    write_tiny_blip(folder)
    return folder


@pytest.fixture(scope="session")
def base_blip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BlipForImageTextRetrieval]:
    """BLIP base's towers at their released width, depth and heads, on small pictures: a folder with the processors, and the model."""
    folder = tmp_path_factory.mktemp("blip") / "base"
    num_tokens = write_processor(folder, image_pixels=64)
    config = BlipConfig(
        text_config={"vocab_size": num_tokens + 2, "num_attention_heads": 12, "bos_token_id": num_tokens, "sep_token_id": 3},
        vision_config={"image_size": 64, "patch_size": 16, "initializer_range": 0.02},
    )
    torch.manual_seed(0)
    return folder, BlipForImageTextRetrieval(config).eval()


@pytest.fixture
def changed_blip(tiny_blip: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that copies the tiny cross-encoder with its config or its weights changed."""

    def change(config: Callable[[dict], None] | None = None, weights: Callable[[dict], None] | None = None, without: str = "") -> Path:
        return changed_copy(tiny_blip, tmp_path / "changed", config, weights, without)

    return change


def random_image(seed: int, width: int = 45, height: int = 33) -> Image.Image:
    """A picture of noise, not square."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def noise() -> Callable[..., Image.Image]:
    """A function that draws a picture of noise from a seed."""
    return random_image


class MemorySet:
    """A data set in memory that counts how often each image is loaded."""

    def __init__(self, num_images: int, captions: list[str]) -> None:
        self.image_ids = [f"image-{i}" for i in range(num_images)]
        self.caption_ids = [f"image-{i}#{i}" for i in range(len(captions))]
        self.captions = captions
        self.loaded: list[int] = []

    def load_image(self, image: int) -> Image.Image:
        self.loaded.append(image)
        return random_image(image)

    def image_digest(self, image: int) -> bytes:
        return hashlib.sha256(random_image(image).tobytes()).digest()


@pytest.fixture(scope="session")
def memory_set() -> Callable[[int, list[str]], MemorySet]:
    """A function that makes a data set in memory of so many images and these captions."""
    return MemorySet
