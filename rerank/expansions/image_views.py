"""Crops and flips: further views of a split's pictures, cut when they are embedded.

Shape letters: I images, V views of an image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from eval.dataset.retrieval_set import RetrievalSet

CROP_SHARE = 0.8
"""Of a picture's width and height that a crop keeps."""
# Share of the room that is left which goes to the left of the crop, and above it. The centre first: there stands what captions speak of.
_PLACES = {"centre": (0.5, 0.5), "top left": (0.0, 0.0), "top right": (1.0, 0.0), "bottom left": (0.0, 1.0), "bottom right": (1.0, 1.0)}


@dataclass(frozen=True)
class View:
    """One way to look at a picture: what it is called, and the picture it makes."""

    name: str
    of: Callable[[Image.Image], Image.Image]


def crop(picture: Image.Image, left: float, above: float) -> Image.Image:
    """The part of a picture that is CROP_SHARE as wide and high, at least a pixel; `left` and `above` say where, in [0, 1]."""
    width, height = (max(1, round(CROP_SHARE * side)) for side in picture.size)
    x, y = round(left * (picture.width - width)), round(above * (picture.height - height))
    return picture.crop((x, y, x + width, y + height))


@dataclass(frozen=True)
class _Crop:
    """A crop at one place; a class, for data-loading processes may have to pickle it."""

    left: float
    above: float

    def __call__(self, picture: Image.Image) -> Image.Image:
        return crop(picture, self.left, self.above)


VIEWS = {
    "crops": tuple(View(f"crop {place}", _Crop(*shares)) for place, shares in _PLACES.items()),
    "flips": (View("mirrored", ImageOps.mirror),),
}
"""Name of the method -> its views, the most trusted first."""


@dataclass
class ImageViews:
    """Further views of a split's pictures as pictures of their own (`eval.encoder.encoder.ImageSource`): view v of
    image i is number i x V + v."""

    dataset: RetrievalSet
    name: str
    views: Sequence[View]
    source: str = ""
    _last: tuple[int, Image.Image] | None = field(default=None, init=False, repr=False)

    @property
    def num_images(self) -> int:
        """Number of views, of all images together."""
        return self.dataset.num_images * len(self.views)

    @property
    def offsets(self) -> np.ndarray:
        """Those of image i are offsets[i]:offsets[i + 1]; int64 of shape (I + 1,)."""
        return np.arange(self.dataset.num_images + 1, dtype=np.int64) * len(self.views)

    @property
    def names(self) -> list[str]:
        """Of each view, for messages."""
        return [f"{image} ({view.name})" for image in self.dataset.image_ids for view in self.views]

    def of(self, item: int) -> list[str]:
        """What the views of an image are called."""
        return [view.name for view in self.views]

    def load_image(self, image: int, /) -> Image.Image:
        """One view, RGB; a picture whose views follow one another is decoded once.

        Raises:
            eval.dataset.images.ImageError: the picture cannot be decoded.
        """
        number, view = divmod(image, len(self.views))
        if self._last is None or self._last[0] != number:
            self._last = number, self.dataset.load_image(number)
        return self.views[view].of(self._last[1])

    def record(self) -> dict[str, Any]:
        """What a report says of them."""
        return {
            "name": self.name,
            "source": self.source,
            "num_items": self.dataset.num_images,
            "num_with": self.dataset.num_images,
            "num_views": self.num_images,
            "views": [view.name for view in self.views],
        }

    def describe(self) -> str:
        """The same in a line."""
        what = ", ".join(view.name for view in self.views)
        return f"{self.source}: {len(self.views)} view(s) of each of {self.dataset.num_images:,} image(s): {what}"
