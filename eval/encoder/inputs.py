"""What goes into a SigLIP checkpoint and what comes out: text padded to the text tower's length without a mask, images resized to its
square, unit vectors.

The text tower pools the LAST position, so padding is part of the input: a shorter padding, a mask, or upper case gives another embedding
(mteb#1424 lost 20 to 70 points to it). So tokenizer and image processor are checked when a checkpoint is loaded.

A loader's worker sends pictures as bytes, a quarter of the pixel values, which are made of them where the model is: an image processor
resizes bytes to bytes, and what it makes of each afterwards (rescale, normalise) depends on the byte and its channel alone. So a table of
the processor's own values gives the processor's own bits, on any device. The bytes are those of Pillow's resize, called without the
processor where trial pictures come out of both alike; pictures that were resized before are read from a cache
(eval/dataset/pixel_cache.py).
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

from eval.dataset.token_table import open_table
from eval.encoder.hub import model_folder
from eval.encoder.identity import tokenizer_values
from eval.encoder.model_files import using_files
from eval.encoder.tokenizer import load_tokenizer, save_tokenizer
from eval.errors import SettingError
from eval.processes import Processes

if TYPE_CHECKING:
    from eval.dataset.pixel_cache import PixelStore
    from eval.dataset.token_table import TokenTable

_LARGEST_PIXEL = 1e6
_TRIALS = ((61, 83), (480, 91), (33, 700), (9, 9))
"""(height, width) of the pictures on which Pillow's resize is compared with a processor's."""


class PictureBytes:
    """Turns pictures into bytes and bytes into pixel values; into pixel values at once where the processor has no such table."""

    def __init__(self, image_processor: Any) -> None:
        self._processor = image_processor
        self._tables = {torch.device("cpu"): table} if (table := self._table()) is not None else {}
        self.plain_resize = self._plain_resize() if self._tables else None
        """(width, height) and Pillow's filter, where the bytes are those of its resize; None where the processor is asked."""

    def read(self, picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> torch.Tensor:
        """One RGB picture, resized: uint8 of shape (3, H, W); float32, its pixel values, where there is no table.

        Args:
            box: left, top, right and bottom of the part of it, where `plain_resize` is not None.
        """
        if self.plain_resize is not None and picture.mode == "RGB":
            return torch.from_numpy(np.ascontiguousarray(np.asarray(picture.resize(*self.plain_resize, box)).transpose(2, 0, 1)))
        return torch.from_numpy(np.ascontiguousarray(self._resized(picture) if self._tables else self._values(picture)))

    def reader(self, source: Any, store: "PixelStore | None" = None, *, at_scale: bool = False) -> Callable[[int], torch.Tensor]:
        """What reads an image of a source (eval/encoder/encoder.py), by index, as `read`; out of a cache where it is there.

        What it gives raises `eval.dataset.images.ImageError` for an image that does not decode.

        Args:
            at_scale: JPEGs are decoded to no more than half the size where that is no smaller than the square (`decode_image`); of a source
                whose `load_image` can.
        """
        blank = self.read(Image.new("RGB", (8, 8)))
        size = (blank.shape[2], blank.shape[1])
        recipe = self._recipe() + (" JPEGs at scale" if at_scale else "")
        cache = None if store is None or blank.dtype != torch.uint8 else store.cache(recipe, blank.nbytes)

        def read(image: int) -> torch.Tensor:
            return self.read(source.load_image(image, size) if at_scale else source.load_image(image))

        if store is None or cache is None:
            return read
        return lambda image: torch.from_numpy(store.read(cache, source, image, lambda: read(image).numpy())).view(blank.shape)

    def values(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixel values, float32, of what `read` gave, of shape (N, 3, H, W); they lie where it lies."""
        if pixels.dtype != torch.uint8:
            return pixels
        if pixels.device not in self._tables:
            self._tables[pixels.device] = self._tables[torch.device("cpu")].to(pixels.device)
        table_3K = self._tables[pixels.device]
        found = torch.empty(pixels.shape, device=pixels.device)
        if pixels.device.type == "cpu":  # a picture at a time, which fits into its cache
            for picture, bytes_3HW in zip(found.view(-1, *pixels.shape[-3:]), pixels.reshape(-1, *pixels.shape[-3:]), strict=True):
                for channel, table_K in enumerate(table_3K.numpy()):
                    np.take(table_K, bytes_3HW[channel].numpy(), out=picture[channel].numpy(), mode="clip")
            return found
        for channel, table_K in enumerate(table_3K):
            part = pixels.select(-3, channel)
            found.select(-3, channel).copy_(table_K.index_select(0, part.reshape(-1).int()).view(part.shape))
        return found

    def _values(self, picture: Image.Image, **changes: bool) -> np.ndarray:
        return np.asarray(self._processor(images=picture, return_tensors="np", **changes)["pixel_values"][0], dtype=np.float32)

    def _resized(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(self._processor(images=picture, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0])

    def _plain_resize(self) -> tuple[tuple[int, int], int] | None:
        """As `plain_resize`: by trial pictures, some larger than the processor's square and some smaller."""
        size, draws = getattr(self._processor, "size", None), np.random.default_rng(1)
        try:
            found = (int(size["width"]), int(size["height"])), int(self._processor.resample)  # type: ignore[index]
            for shape in _TRIALS:
                trial = Image.fromarray(draws.integers(0, 256, (*shape, 3), dtype=np.uint8))
                plain = np.asarray(trial.resize(*found)).transpose(2, 0, 1)
                expected = self._resized(trial)
                if expected.dtype != np.uint8 or not np.array_equal(plain, expected):
                    return None
        except (KeyError, TypeError, ValueError, AttributeError):  # it has no such settings
            return None
        return found

    def _recipe(self) -> str:
        """What the bytes of a picture follow from besides the picture and the libraries that decode and resize it."""
        if self.plain_resize is not None:
            return json.dumps(self.plain_resize)
        named = [transformers.__version__, type(self._processor).__name__, self._processor.to_dict()]
        return json.dumps(named, default=str, sort_keys=True)

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


def image_features(model: SiglipModel, pixels: torch.Tensor) -> torch.Tensor:
    """Unit image embeddings, float32 of shape (N, D), from pixel values of shape (N, 3, H, W). Differentiable."""
    return normalize(_at_least_float32(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def text_features(model: SiglipModel, token_ids_NL: torch.Tensor) -> torch.Tensor:
    """Unit text embeddings, float32 of shape (N, D), from padded token ids. Differentiable. No mask: see above."""
    return normalize(_at_least_float32(model.text_model(input_ids=token_ids_NL).pooler_output), dim=-1)


def _at_least_float32(features: torch.Tensor) -> torch.Tensor:
    """Features widened from half precision: a bf16 product near 10 has steps of 0.06 (docs/numerics.md). float64 stays."""
    return features if features.dtype == torch.float64 else features.float()


@dataclass(frozen=True)
class SiglipInputs:
    """Turns captions and pictures into the tensors a SigLIP checkpoint was trained on.

    Attributes:
        tokenizer: the checkpoint's own.
        image_processor: the checkpoint's own, in its Pillow version, so that results do not depend on whether torchvision is installed.
        num_tokens: length every caption is padded or cut to: the text tower's max_position_embeddings (64 in the released ones).
        image_size: side of the square, pixels.
        tokens: token ids of some texts, made before (`with_tokens_of`); None: of none.
    """

    tokenizer: Any
    image_processor: Any
    num_tokens: int
    image_size: int
    tokens: "TokenTable | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, name: str | os.PathLike[str], config: SiglipConfig, *, strip_punctuation: bool = False) -> "SiglipInputs":
        """Load the processor files of a checkpoint and check that they give the inputs that it was trained on.

        Raises:
            UserError: files are missing, or give other inputs.
        """
        name = str(name)
        folder = str(model_folder(name))
        with using_files(f"{name}: no usable tokenizer and image processor next to the weights"):
            tokenizer = load_tokenizer(folder, strip_punctuation=strip_punctuation)
            image_processor = SiglipImageProcessorPil.from_pretrained(folder, trust_remote_code=False)
            inputs = cls(tokenizer, image_processor, config.text_config.max_position_embeddings, config.vision_config.image_size)
            fault = inputs._fault(config)
        if fault:
            raise SettingError("model", f"{name}: {fault}")
        return inputs

    def token_ids(self, captions: Sequence[str]) -> torch.Tensor:
        """Token ids of captions, int64 of shape (captions, num_tokens), padded on the right and cut where too long."""
        if self.tokens is not None:
            return torch.from_numpy(self.tokenised(captions)[0])
        return torch.from_numpy(self._padded(captions))

    def _padded(self, captions: Sequence[str]) -> np.ndarray:
        """As `token_ids`, an array, of the tokenizer."""
        encoded = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.num_tokens,
            truncation=True,
            padding_side="right",
            return_attention_mask=False,
        )
        return np.array(encoded["input_ids"], dtype=np.int64)

    def tokenised(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(token ids, as `token_ids`, an array; whether the caption is longer, bool of shape (captions,))."""
        if self.tokens is None:
            return self._tokenised(captions)
        ids_NL, is_cut_N, known_N = _looked_up(self.tokens, captions)
        if not known_N.all():
            unknown = np.flatnonzero(~known_N)
            ids_NL[unknown], is_cut_N[unknown] = self._tokenised([captions[place] for place in unknown.tolist()])
        return ids_NL, is_cut_N

    def with_tokens_of(self, texts: Sequence[Sequence[str]], processes: Processes = Processes()) -> "SiglipInputs":
        """The same, which knows the token ids of some sets of texts; call on every process, which share what is to be made."""
        named = json.dumps([tokenizer_values(self.tokenizer), transformers.__version__], sort_keys=True)
        sizes = self.num_tokens, len(self.tokenizer)
        table = open_table(named, (_text_keys, self._tokenised), sizes, texts, processes)
        return replace(self, tokens=table)

    def _tokenised(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As `tokenised`, of the tokenizer; a repeated caption is read once."""
        number: dict[str, int] = {}
        text_C = [number.setdefault(caption, len(number)) for caption in captions]
        texts = list(number)
        whole = self.tokenizer(texts, padding=False, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        ids_TL = np.full((len(texts), self.num_tokens), self.tokenizer.pad_token_id, dtype=np.int64)
        for row_L, ids in zip(ids_TL, whole, strict=True):
            if len(ids) <= self.num_tokens:
                row_L[: len(ids)] = ids
        is_cut_T = np.array([len(ids) > self.num_tokens for ids in whole], dtype=bool)
        if is_cut_T.any():
            ids_TL[is_cut_T] = self._padded([texts[place] for place in np.flatnonzero(is_cut_T).tolist()])
        return ids_TL[text_C], is_cut_T[text_C]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Pixel values of one RGB picture, float32 of shape (3, image_size, image_size)."""
        values = self.image_processor(images=image, return_tensors="np")["pixel_values"][0]
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

    @cached_property
    def picture_bytes(self) -> PictureBytes:
        """The same in two steps: bytes, which a loader's worker sends, and the pixel values made of them."""
        return PictureBytes(self.image_processor)

    @cached_property
    def keeps_punctuation(self) -> bool:
        """True if punctuation reaches the text tower, as with SigLIP 2."""
        marked, plain = self.token_ids(["a dog, runs!", "a dog runs"])
        return not torch.equal(marked, plain)

    @property
    def contract(self) -> dict[str, Any]:
        """How captions and images are read, as reports record it."""
        punctuation = "kept" if self.keeps_punctuation else "stripped"
        return {"num_tokens": self.num_tokens, "punctuation": punctuation, "image_size": self.image_size}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the processor files in the hub's own format; a tokenizer loaded from them returns no mask, as the released ones, and a
        processor pads captions to the text tower's length (`save_tokenizer`).

        preprocessor_config.json is what transformers 4 reads, processor_config.json what transformers 5 writes.
        """
        save_tokenizer(self.tokenizer, folder, self.num_tokens)
        self.image_processor.save_pretrained(folder)
        SiglipProcessor(self.image_processor, self.tokenizer).to_json_file(Path(folder) / "processor_config.json")

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


def _looked_up(table: "TokenTable", texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(padded token ids, int64 of shape (texts, num_tokens); whether a text is longer; whether it is in the table at all)."""
    first_N, second_N = _text_keys(texts).T
    first_T, second_T = table.keys_2T
    place_N = np.minimum(np.searchsorted(first_T, first_N), len(first_T) - 1)
    known_N = (first_T[place_N] == first_N) & (second_T[place_N] == second_N)
    rows = table.rows_T[place_N]
    return rows[:, :-1].astype(np.int64), rows[:, -1] > 0, known_N


def _text_keys(texts: Sequence[str]) -> np.ndarray:
    """128-bit hashes of texts, uint64 of shape (texts, 2)."""
    digests = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
