"""Crops and flips: additional views of a split's images, made when they are embedded.

Shape letters: I images, V views of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from eval.dataset.retrieval_set import RetrievalSet

CROP_SHARE = 0.8
"""Width and height of a crop, as a share of the image's."""
# Share of the remaining width that is left of the crop, and of the remaining height above it. The centre first: captions are about it.
_PLACES = {"centre": (0.5, 0.5), "top left": (0.0, 0.0), "top right": (1.0, 0.0), "bottom left": (0.0, 1.0), "bottom right": (1.0, 1.0)}


def crop(image: Image.Image, *, left: float, above: float) -> Image.Image:
    """The part of an image that is CROP_SHARE as wide and high, at least a pixel; `left` and `above` say where, in [0, 1]."""
    width, height = (max(1, round(CROP_SHARE * side)) for side in image.size)
    x, y = round(left * (image.width - width)), round(above * (image.height - height))
    return image.crop((x, y, x + width, y + height))


VIEWS: dict[str, dict[str, Callable[[Image.Image], Image.Image]]] = {
    "crops": {f"crop {place}": partial(crop, left=left, above=above) for place, (left, above) in _PLACES.items()},
    "flips": {"mirrored": ImageOps.mirror},
}
"""Name of the method -> its views by name, the most trusted first: functions, which data-loading processes may have to pickle."""


@dataclass
class ImageViews:
    """Views of a split's images as images of their own (`eval.encoder.encoder.ImageSource`): view v of image i is number i x V + v.

    Attributes:
        name: the method, a key of VIEWS.
    """

    dataset: RetrievalSet
    name: str
    _last: tuple[int, Image.Image] | None = field(default=None, init=False, repr=False)

    @property
    def num_images(self) -> int:
        """Number of views, of all images together."""
        return self.dataset.num_images * len(VIEWS[self.name])

    @property
    def offsets(self) -> np.ndarray:
        """Those of image i are offsets[i]:offsets[i + 1]; int64 of shape (I + 1,)."""
        return np.arange(self.dataset.num_images + 1, dtype=np.int64) * len(VIEWS[self.name])

    @property
    def names(self) -> list[str]:
        """Of each view, for messages."""
        return [f"{image} ({view})" for image in self.dataset.image_ids for view in VIEWS[self.name]]

    def of(self, item: int) -> list[str]:
        """The names of the views of an image."""
        return list(VIEWS[self.name])

    def load_image(self, image: int, /) -> Image.Image:
        """One view, RGB; an image whose views follow one another is decoded once.

        Raises:
            eval.dataset.images.ImageError: the image cannot be decoded.
        """
        transforms = list(VIEWS[self.name].values())
        number, view = divmod(image, len(transforms))
        if self._last is None or self._last[0] != number:
            self._last = number, self.dataset.load_image(number)
        return transforms[view](self._last[1])

    def record(self) -> dict[str, Any]:
        """What report.json says of them."""
        return {
            "name": self.name,
            "source": self.name,
            "num_items": self.dataset.num_images,
            "num_with": self.dataset.num_images,
            "num_views": self.num_images,
            "views": self.of(0),
        }
