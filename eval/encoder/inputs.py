"""The inputs of a SigLIP checkpoint: text padded to the text tower's length without a mask, images resized to its square.

The text tower pools the LAST position, so padding is part of the input: a shorter padding, a mask, or upper case gives another embedding
(mteb#1424 lost 20 to 70 points to it). So tokenizer and image processor are checked when a checkpoint is loaded.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipImageProcessorPil

from eval.encoder.model_files import using_files
from eval.encoder.pixels import PictureBytes
from eval.encoder.tokenizer import load_tokenizer, save_tokenizer
from eval.errors import UserError

_LARGEST_PIXEL = 1e6


@dataclass(frozen=True)
class SiglipInputs:
    """Turns captions and pictures into the tensors a SigLIP checkpoint was trained on.

    Attributes:
        tokenizer: the checkpoint's own.
        image_processor: the checkpoint's own, in its Pillow version, so that results do not depend on whether torchvision is installed.
        num_tokens: length every caption is padded or cut to: the text tower's max_position_embeddings (64 in the released ones).
        image_size: side of the square, pixels.
    """

    tokenizer: Any
    image_processor: Any
    num_tokens: int
    image_size: int

    @classmethod
    def load(cls, name: str | os.PathLike[str], config: SiglipConfig, *, strip_punctuation: bool = False) -> "SiglipInputs":
        """Load the processor files of a checkpoint and check that they give the inputs that it was trained on.

        Raises:
            UserError: files are missing, or give other inputs.
        """
        name = str(name)
        with using_files(f"{name}: no usable tokenizer and image processor next to the weights"):
            tokenizer = load_tokenizer(name, strip_punctuation=strip_punctuation)
            image_processor = SiglipImageProcessorPil.from_pretrained(name, trust_remote_code=False)
            inputs = cls(tokenizer, image_processor, config.text_config.max_position_embeddings, config.vision_config.image_size)
            fault = inputs._fault(config)
        if fault:
            raise UserError(f"{name}: {fault}")
        return inputs

    def token_ids(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids of captions, int64 of shape (captions, num_tokens), padded on the right and cut where too long."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.num_tokens,
            truncation=True,
            padding_side="right",
            return_attention_mask=False,
        )
        return torch.tensor(encoded["input_ids"], dtype=torch.int64)

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Pixel values of one RGB picture, float32 of shape (3, image_size, image_size)."""
        values = self.image_processor(images=image, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    @cached_property
    def picture_bytes(self) -> PictureBytes:
        """The same in two steps: bytes, which a loader's worker sends, and the pixel values made of them."""
        return PictureBytes(self.image_processor)

    @property
    def contract(self) -> dict[str, Any]:
        """How captions and images are read, as reports record it."""
        marked, plain = self.token_ids(["a dog, runs!", "a dog runs"])
        punctuation = "stripped" if torch.equal(marked, plain) else "kept"
        return {"num_tokens": self.num_tokens, "punctuation": punctuation, "image_size": self.image_size}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the processor files in the hub's own format; a tokenizer loaded from them returns no mask, as the released ones."""
        save_tokenizer(self.tokenizer, folder)
        self.image_processor.save_pretrained(folder)

    def _fault(self, config: SiglipConfig) -> str:
        """Why these are not the inputs that the checkpoint was trained on; empty: they are."""
        upper, lower = self.token_ids(["A Dog RUNS", "a dog runs"])
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        num_known, num_embedded = len(self.tokenizer), config.text_config.vocab_size
        square = (3, self.image_size, self.image_size)
        wide = Image.new("RGB", (3 * self.image_size, self.image_size), (255, 0, 0))
        if len(lower) != self.num_tokens:
            return f"captions come out {len(lower)} tokens long; the text tower wants {self.num_tokens}"
        if not torch.equal(upper, lower):
            return "the tokenizer keeps capitals; SigLIP was trained on lower case (do_lower_case in tokenizer_config.json)"
        if pad is None or int(lower[-1]) != pad or int(lower[0]) == pad:
            return "the tokenizer does not pad on the right with its padding token; SigLIP pools the last position"
        if eos not in (None, pad, int(lower[lower != pad][-1])):
            return f"the tokenizer does not end a caption with {self.tokenizer.eos_token!r}, as the text tower was trained"
        if num_known > num_embedded:
            return f"the tokenizer knows {num_known} tokens, the text tower {num_embedded}: these are files of different models"
        if (shape := tuple(self.pixels(wide).shape)) != square:
            return f"images come out {shape}; the vision tower wants {square}"
        if not float(self.pixels(wide).abs().max()) < _LARGEST_PIXEL:
            return "pixel values come out larger than a million, or not as numbers; see image_mean, image_std and rescale_factor"
        return ""
