"""The ingredients of a soup: SigLIP checkpoints of one architecture that read captions and images in the same way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.encoder.checkpoint import hash_weights, load_siglip, load_siglip_config
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from train.config.job import JobConfig
from train.config.load import read_run, read_yaml
from train.config.reranker import is_reranker
from train.engine.export_folder import chosen_checkpoint, plain_state
from train.model.siglip import TunedModel
from train.siglip.export import load_checkpoint

_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
_ARCHITECTURE = {
    "vision_config": ("image_size", "patch_size", "num_channels", *_SHAPE, "vision_use_head"),
    "text_config": ("vocab_size", "max_position_embeddings", "projection_size", *_SHAPE),
}
_PROBES = (
    "A Dog, RUNS! twelve (12) times; don't stop: 3.5% of a naïve café - e-mail x@y.z #1",
    "",
    "  two   blanks, über 日本語 🙂 and <pad> </s> <unk>",
    "a photo of a very very very " * 12 + "long name",
)
_PROBED_SIDES = ((61, 37), (40, 97))


@dataclass(frozen=True)
class Ingredient:
    """A checkpoint by name, its weights not loaded yet.

    Attributes:
        name: as it was asked for; a run's with the step, RUN_FOLDER@STEP.
        config: of the architecture, as transformers reads it.
        inputs: its tokenizer and image processor.
        run: the run it is a checkpoint of, and the step; None: a folder, or a model of the hub.
    """

    name: str
    config: Any
    inputs: SiglipInputs
    run: tuple[JobConfig, int] | None = None

    @property
    def folder(self) -> Path | None:
        """Where it lies; None: on the hub."""
        place = Path(self.name) if self.run is None else self.run[0].run_folder
        return place.resolve() if place.is_dir() else None

    def load(self) -> TunedModel:
        """A plain model with its weights, adapters merged, on the CPU; `base_sha256` is the hash of these weights.

        Raises:
            UserError: the weights cannot be read.
        """
        if self.run is None:
            siglip, _ = load_siglip(self.name)
        else:
            run, step = self.run
            siglip = load_checkpoint(run, str(step))[0].siglip
            if run.model.lora is not None:  # only then a second model is in memory
                merged, (siglip, _) = plain_state(siglip), load_siglip(run.base)
                siglip.load_state_dict(merged)
        return TunedModel(siglip.eval(), self.inputs, hash_weights(siglip))


def read_ingredients(names: Sequence[str]) -> list[Ingredient]:
    """The checkpoints asked for, each once, all of one kind.

    Args:
        names: a folder or hub id; RUN_FOLDER, its best checkpoint; or RUN_FOLDER@STEP.

    Raises:
        UserError: fewer than two, one twice, one that cannot be read, or two that do not go together.
    """
    if len(names) < 2:
        raise UserError(f"a soup takes two checkpoints or more; found {len(names)}: {list(names)}")
    found = [read_ingredient(name) for name in names]
    for one, other in combinations(found, 2):
        steps = [ingredient.run and ingredient.run[1] for ingredient in (one, other)]
        if one.name == other.name or (one.folder is not None and one.folder == other.folder and steps[0] == steps[1]):
            raise UserError(f"{one.name} is there twice (as {other.name}): it would count double. Name each checkpoint once")
    for other in found[1:]:
        check_alike(found[0], other)
    return found


def read_ingredient(name: str) -> Ingredient:
    """One checkpoint by its name; see `read_ingredients`.

    Raises:
        UserError: it is not there, or no SigLIP.
    """
    path = Path(name)
    folder, at, which = name.rpartition("@")
    if is_run(path):
        return _of_run(path, "best")
    if at and not path.is_dir() and is_run(Path(folder)):
        return _of_run(Path(folder), which)
    for step in (path, path / "step-STEP"):
        if step.parent.name == "checkpoints" and is_run(step.parents[1]):
            raise UserError(
                f"{name}: a checkpoint of a run is named RUN_FOLDER@STEP; give {step.parents[1]}@{step.name.removeprefix('step-')}"
            )
    config = load_siglip_config(name)
    return Ingredient(name, config, SiglipInputs.load(name, config))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, and not a checkpoint by itself."""
    return (folder / "config.yaml").is_file() and not (folder / "config.json").is_file()


def _of_run(folder: Path, which: str) -> Ingredient:
    if is_reranker(read_yaml(folder / "config.yaml")):
        raise UserError(f"{folder}: a run that tunes a cross-encoder; a soup is made of SigLIP checkpoints")
    run = read_run(folder)
    step = chosen_checkpoint(run, which)[2]
    config = load_siglip_config(run.base)
    inputs = SiglipInputs.load(run.base, config, strip_punctuation=run.model.strip_punctuation)
    return Ingredient(f"{folder}@{step}", config, inputs, (run, step))


def check_alike(one: Ingredient, other: Ingredient) -> None:
    """Refuse two checkpoints whose weights do not mean the same, one by one.

    Raises:
        UserError: naming what differs: fields of config.json, the tokenizer, or the image processor.
    """
    both = f"{one.name} and {other.name}"
    if differing := _architecture_differences(one.config, other.config):
        raise UserError(
            f"{both} are of different architectures: {'; '.join(differing[:5])}. A soup averages weights one by one: take checkpoints "
            "tuned from one base, or put different models together with python -m eval --ensemble"
        )
    if fault := tokenizer_difference(one.inputs, other.inputs):
        raise UserError(
            f"{both} read captions with different tokenizers: {fault}. The mean of weights trained on other token ids means nothing"
        )
    if fault := picture_difference(one.inputs, other.inputs):
        raise UserError(f"{both} read pictures in different ways: {fault}. Take checkpoints with one image processor")


def _architecture_differences(one: Any, other: Any) -> list[str]:
    return [
        f"{tower}.{key}: {first} against {second}"
        for tower, keys in _ARCHITECTURE.items()
        for key in keys
        if (first := getattr(getattr(one, tower), key, None)) != (second := getattr(getattr(other, tower), key, None))
    ]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def tokenizer_difference(one: SiglipInputs, other: SiglipInputs) -> str:
    """What tells two tokenizers apart, in words: their words, or what they make of captions made to be hard; empty: nothing."""
    if one.num_tokens != other.num_tokens:
        return f"captions of {one.num_tokens} and of {other.num_tokens} tokens"
    words, others = (inputs.tokenizer.get_vocab() for inputs in (one, other))
    if words != others:
        changed = _differing(words, others)
        return f"{len(changed)} words have another number or none, e.g. {changed[:3]}"
    ids_PL, others_PL = (inputs.token_ids(_PROBES).numpy() for inputs in (one, other))
    if (differing := (ids_PL != others_PL).any(axis=1)).any():
        return f"other token ids of {_PROBES[int(differing.argmax())]!r:.90}"
    return ""


def picture_difference(one: SiglipInputs, other: SiglipInputs) -> str:
    """What tells two image processors apart, in words, by what they make of pictures of noise; empty: nothing."""
    draws = np.random.default_rng(0)
    for width, height in _PROBED_SIDES:
        picture = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if not np.array_equal(one.pixels(picture).numpy(), other.pixels(picture).numpy()):
            settings, others = (inputs.image_processor.to_dict() for inputs in (one, other))
            said = "; ".join(f"{key}: {settings.get(key)} against {others.get(key)}" for key in _differing(settings, others)[:5])
            return f"other pixels of the same picture ({said or 'of the same settings'})"
    return ""
