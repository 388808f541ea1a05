"""Pictures too long and thin for image processors that keep the aspect ratio and round both sides down to whole patches."""

import math
from typing import Any

from PIL import Image

_LONGER_OVER_SHORTER = 1333 / 800  # how far the longer side may exceed the processor's shorter one (ViLT's and BridgeTower's processors)
_ROUNDED_UP = 0.5 - 1e-6  # they round to whole pixels before they round down to patches; the rest is for float noise


def within_aspect(image: Image.Image, image_processor: Any) -> Image.Image:
    """The picture, its short side stretched if the processor would round it down to nothing.

    ViLT's and BridgeTower's processors shrink a picture until its longer side is at most 1333/800 of `size.shortest_edge`, then round
    both sides down to multiples of `size_divisor`. Beyond a ratio of about 20 at 384 pixels nothing is left of the short side and
    transformers raises. Any other picture is returned as it is, so its score is transformers' own.
    """
    longest = int(_LONGER_OVER_SHORTER * image_processor.size["shortest_edge"])
    short, long = sorted(image.size)
    least = math.ceil(long * (image_processor.size_divisor - _ROUNDED_UP) / longest)
    if short >= least:
        return image
    stretched = (image.width, least) if image.width > image.height else (least, image.height)
    return image.resize(stretched, Image.Resampling.BICUBIC)
