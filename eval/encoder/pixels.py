"""Pictures as bytes: what a loader's worker sends, a quarter of the pixel values, which are made of them where the model is.

An image processor resizes bytes to bytes; what it makes of each afterwards (rescale, normalise) depends on the byte and its channel alone.
So a table of the processor's own values gives the processor's own bits, on any device.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image


class PictureBytes:
    """Turns pictures into bytes and bytes into pixel values; into pixel values at once where the processor has no such table."""

    def __init__(self, image_processor: Any) -> None:
        self._processor = image_processor
        self._tables = {torch.device("cpu"): table} if (table := self._table()) is not None else {}

    def read(self, picture: Image.Image) -> torch.Tensor:
        """One RGB picture, resized: uint8 of shape (3, H, W); float32, its pixel values, where there is no table."""
        return torch.from_numpy(np.ascontiguousarray(self._resized(picture) if self._tables else self._values(picture)))

    def values(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values, float32, of what `read` gave, of shape (N, 3, H, W); they lie where it lies."""
        if pixels.dtype != torch.uint8:
            return pixels
        if pixels.device not in self._tables:
            self._tables[pixels.device] = self._tables[torch.device("cpu")].to(pixels.device)
        table_3K = self._tables[pixels.device]
        found = torch.empty(pixels.shape, device=pixels.device)
        at_once = zip(found, pixels, strict=True) if pixels.device.type == "cpu" else [(found, pixels)]  # a picture fits into a CPU's cache
        for picture, bytes_3HW in at_once:
            for channel, table_K in enumerate(table_3K):
                part = bytes_3HW.select(-3, channel)
                picture.select(-3, channel).copy_(table_K.index_select(0, part.reshape(-1).int()).view(part.shape))
        return found

    def _values(self, picture: Image.Image, **changes: bool) -> np.ndarray:
        return np.asarray(self._processor(images=picture, return_tensors="np", **changes)["pixel_values"][0], dtype=np.float32)

    def _resized(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(self._processor(images=picture, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0])

    def _table(self) -> torch.Tensor | None:
        """The values of each byte in each channel, float32 of shape (3, 256); None where they do not give the processor's own bits."""
        ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
        try:
            table_3K = self._values(Image.fromarray(ramp), do_resize=False).reshape(3, 256)
            trial = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8))
            resized, expected = self._resized(trial), self._values(trial)
        except (TypeError, ValueError):  # it crops, pads, or takes no such arguments
            return None
        if resized.dtype != np.uint8 or resized.shape != expected.shape or expected.shape[0] != 3:
            return None
        found = np.stack([table[channel] for table, channel in zip(table_3K, resized, strict=True)])
        return torch.from_numpy(table_3K.copy()) if found.tobytes() == expected.tobytes() else None
