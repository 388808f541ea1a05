"""Small models of every kind in the hub's format, and one fault at a time in their files: for tests of what a loader makes of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from rerank.convert.convert import convert
from rerank.scorers.checkpoint import config_content, tokenizer_content
from rerank.scorers.load import load_scorer
from tests.siglip2 import write_siglip2
from tests.tiny_blip import write_tiny_blip
from tests.unit.rerank.scorers.albef import albef_files
from tests.unit.rerank.scorers.tiny_cross_encoders import FAMILIES

CAPTIONS = ["a red circle", "two dogs run on the grass below a blue sky"]
VALUES: list[Any] = [None, True, False, "", "large", -1, 0, 1, 2, 3, 48, 2**31, 2**63, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf")]
VALUES += [[], [1], [0.5, 0.5], [0.0, 0.0, 0.0], {}, {"a": 1}, {"height": 0, "width": 8}, "../model.safetensors", "/dev/zero", [[[]]]]
VALUES += ["é" * 300]
WHOLE: list[bytes] = [b"", b"{}", b"[]", b"null", b"3", b'"x"', b"[" * 100_000, b"\xff\xfe\x00binary\x00" * 9, b'{"model_type": "bert"}']
DROPPED = object()


class Pictures:
    """Two pictures of noise."""

    num_images = 2

    def load_image(self, image: int, /) -> Image.Image:
        return Image.fromarray(np.random.default_rng(image).integers(0, 256, (33, 45, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Figures:
    """What a model makes of pictures and captions, and what of its files decides that."""

    scores: np.ndarray
    content: str


def siglip_figures(folder: str) -> Figures:
    model, inputs = load_siglip(folder)
    scores = embed_images(model, inputs, Pictures()) @ embed_captions(model, inputs, CAPTIONS).T
    words = inputs.tokenizer
    settings = {key: value for key, value in words.init_kwargs.items() if folder not in str(value)}
    content = tokenizer_content(words) if hasattr(words, "backend_tokenizer") else [words.get_vocab(), settings]
    return Figures(scores, repr((config_content(model.config), content, inputs.image_processor.to_dict(), words.pad_token_id)))


def scorer_figures(folder: str) -> Figures:
    scorer = load_scorer(folder, device="cpu")
    return Figures(np.stack([scorer.score(Pictures().load_image(image), CAPTIONS) for image in range(2)]), scorer.fingerprint)


def write_albef(folder: Path) -> None:
    place = folder.with_name("albef-release")
    words = albef_files.write_tokenizer(place)
    torch.save(albef_files.released(albef_files.random_tensors(), tuned=True), place / "tuned.pth")
    convert(str(place / "tuned.pth"), folder, tokenizer=str(words))


def shard(folder: Path, target: Path) -> None:
    """The same model with its weights in two shards and an index."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for place in set(places.values()):
        save_file({name: tensors[name] for name in places if places[name] == place}, target / place, metadata={"format": "pt"})
    content = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(content))


KINDS: dict[str, Callable[[str], Figures]] = {"siglip": siglip_figures, "siglip-sharded": siglip_figures, "siglip2": siglip_figures}
KINDS |= dict.fromkeys(("blip", *FAMILIES, "albef"), scorer_figures)


def write_models(folder: Path, siglip: Path) -> None:
    """Write a model of each kind into a folder of its name."""
    shutil.copytree(siglip, folder / "siglip")
    shard(siglip, folder / "siglip-sharded")
    write_siglip2(folder / "siglip2", CAPTIONS)
    write_tiny_blip(folder / "blip")
    for kind, family in FAMILIES.items():
        family.write(folder / kind)
    write_albef(folder / "albef")


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a file: it holds other bytes, half of its own, or one value in it is another or is dropped."""

    file: str
    keys: tuple[Any, ...] = ()
    value: Any = DROPPED
    whole: bytes | None = None

    def __str__(self) -> str:
        if self.whole is not None:
            return f"{self.file} = {self.whole[:20]!r}"
        return f"{self.file} {'.'.join(map(str, self.keys))} = {'dropped' if self.value is DROPPED else repr(self.value)[:40]}"

    def copy(self, folder: Path, target: Path) -> None:
        """A copy of a model's folder with this fault; files that are as they were are linked."""
        target.mkdir()
        for path in folder.iterdir():
            if path.name != self.file:
                (target / path.name).hardlink_to(path)
        if self.whole is not None:
            (target / self.file).write_bytes(self.whole)
            return
        content = json.loads((folder / self.file).read_text("utf-8"))
        if self.keys:
            section = content
            for key in self.keys[:-1]:
                section = section[key]
            if self.value is DROPPED:
                del section[self.keys[-1]]
            else:
                section[self.keys[-1]] = self.value
        (target / self.file).write_text(json.dumps(content), "utf-8")


def faults_of(folder: Path, number: int) -> Fault:
    """The fault of a number, of the very many that a model's folder can have; any number from 0 is one."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix not in (".safetensors", ".bin"))
    number, file = number // len(files), files[number % len(files)]
    number, kind = number // 8, number % 8
    raw = (folder / file).read_bytes()
    if kind == 0 or not file.endswith(".json"):
        choices = [*WHOLE, raw[: len(raw) // 2], raw[:-1], raw[: len(raw) // 3]]
        return Fault(file, whole=choices[number % len(choices)])
    places = list(places_in(json.loads(raw)))
    number, keys = number // len(places), places[number % len(places)]
    return Fault(file, keys, DROPPED if kind == 1 else VALUES[number % len(VALUES)])


def places_in(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a JSON file is; of a long list or vocabulary the first few."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for count, (key, value) in enumerate(items):
        if count < 40:
            yield (*before, key)
            yield from places_in(value, (*before, key))
