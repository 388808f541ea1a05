"""Random crops: cut out of the picture as it is, or out of one that a cache holds with a margin (data.cache_pixels).

With the margin the smallest crop still has as many pixels as the model's square, so a crop is scaled down twice instead of once, by the
same filter; a picture that is no larger than square and margin is held as it is, and its crops are the same to the last bit.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.inputs import PictureBytes
from train.data.order import CROP, generator

if TYPE_CHECKING:
    from eval.dataset.pixel_cache import PixelStore

_SIZE_BYTES = 8


class Crops:
    """Crops of the images of a split by (seed, image, epoch)."""

    def __init__(
        self, dataset: RetrievalSet, pixels: PictureBytes, seed: int, min_area: float, store: "PixelStore | None" = None
    ) -> None:
        """Args:
        min_area: smallest share of the image's area in a crop.
        store: where pictures with a margin are cached; not used with a processor that does more than Pillow's resize.
        """
        self._dataset, self._pixels, self._seed, self._min_area = dataset, pixels, seed, min_area
        self._store = store if pixels.plain_resize is not None else None
        if self._store is not None and pixels.plain_resize is not None:
            (width, height), self._filter = pixels.plain_resize
            self._most = tuple(math.ceil(side / math.sqrt(min_area)) for side in (width, height))
            picture_bytes = _SIZE_BYTES + 3 * self._most[0] * self._most[1]
            self._cache = self._store.cache(f"whole, at most {self._most}, filter {self._filter}", picture_bytes)

    def read(self, image: int, epoch: int) -> torch.Tensor:
        """The crop of an image in an epoch, as `PictureBytes.read`.

        Raises:
            eval.dataset.images.ImageError: the image does not decode.
        """
        draws = generator(self._seed, CROP, image, epoch)
        if self._store is None:
            return self._pixels.read(random_crop(self._dataset.load_image(image), self._min_area, draws))
        if self._cache is None:
            held = self._with_margin(image)
        else:
            held = self._store.read(self._cache, self._dataset, image, lambda: self._with_margin(image))
        width, height = held[:_SIZE_BYTES].view(np.uint32).tolist()
        side_x, side_y = min(width, self._most[0]), min(height, self._most[1])
        picture = Image.frombuffer("RGB", (side_x, side_y), held[_SIZE_BYTES:].tobytes(), "raw", "RGB", 0, 1)
        left, top, right, bottom = crop_box(width, height, self._min_area, draws)
        if (side_x, side_y) == (width, height):
            return self._pixels.read(picture.crop((left, top, right, bottom)))
        x, y = side_x / width, side_y / height
        return self._pixels.read(picture, (left * x, top * y, right * x, bottom * y))

    def _with_margin(self, image: int) -> np.ndarray:
        """A picture's width and height, uint32, then its bytes, row by row, no larger than square and margin; uint8."""
        picture = self._dataset.load_image(image)
        size = np.array(picture.size, dtype=np.uint32)
        small = picture.resize((min(picture.width, self._most[0]), min(picture.height, self._most[1])), self._filter)
        return np.concatenate([size.view(np.uint8), np.asarray(small).reshape(-1)])


def crop_box(width: int, height: int, min_area: float, draws: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random rectangle of the image's aspect ratio, min_area to 1 of its area, pixels."""
    side = float(np.sqrt(draws.uniform(min_area, 1.0)))
    across, down = max(1, round(width * side)), max(1, round(height * side))
    left, top = int(draws.integers(width - across + 1)), int(draws.integers(height - down + 1))
    return left, top, left + across, top + down


def random_crop(picture: Image.Image, min_area: float, draws: np.random.Generator) -> Image.Image:
    """Crop a random rectangle of the image's aspect ratio, min_area to 1 of its area."""
    return picture.crop(crop_box(picture.width, picture.height, min_area, draws))
