"""The input contract: the tensors of transformers' own processor; checkpoints that break it are refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoTokenizer, BertConfig, SiglipModel, SiglipProcessor, SiglipTokenizer

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.errors import UserError


def test_inputs_equal_the_processor_of_transformers(tiny_siglip: Path, sentences: list[str], pictures: list[Path]) -> None:
    _, inputs = load_siglip(tiny_siglip)
    processor = SiglipProcessor(
        AutoImageProcessor.from_pretrained(tiny_siglip, backend="pil"), SiglipTokenizer.from_pretrained(tiny_siglip)
    )
    captions = [*sentences[:20], "A DOG, runs!", "dog " * 40, "unknown \u72ac", ""]
    images = [Image.open(path).convert("RGB") for path in pictures[:8]]
    theirs = processor(text=captions, images=images, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    ours = inputs.token_ids(captions)
    assert ours.dtype == torch.int64 and torch.equal(ours, theirs["input_ids"])
    np.testing.assert_array_equal(torch.stack([inputs.pixels(image) for image in images]).numpy(), theirs["pixel_values"].numpy())
    assert torch.equal(inputs.token_ids(captions[:1]), ours[:1]), "a caption's tokens do not depend on its batch-mates"


def test_saved_inputs_are_the_same_inputs(tiny_siglip: Path, tmp_path: Path, sentences: list[str], pictures: list[Path]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    model.save_pretrained(tmp_path)
    inputs.save(tmp_path)
    again, inputs_again = load_siglip(tmp_path)
    assert hash_weights(model) == hash_weights(again)
    assert torch.equal(inputs.token_ids(sentences), inputs_again.token_ids(sentences))
    image = Image.open(pictures[0]).convert("RGB")
    assert torch.equal(inputs.pixels(image), inputs_again.pixels(image))


def test_plain_transformers_gets_no_mask_from_what_was_saved(tiny_siglip: Path, tmp_path: Path) -> None:
    """transformers writes no model_input_names, and a reader of the export would silently get a mask, so other embeddings."""
    _, inputs = load_siglip(tiny_siglip)
    inputs.save(tmp_path)
    assert set(AutoTokenizer.from_pretrained(tmp_path)(["a dog"])) == {"input_ids"}


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def keep_capitals(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)


def wrong_size(folder: Path) -> None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            edit_json(folder / name, size={"height": 48, "width": 48})


def small_vocabulary(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    config["text_config"]["vocab_size"] -= 5
    name = "text_model.embeddings.token_embedding.weight"
    weights[name] = weights[name][:-5].clone()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["vision_model.head.probe"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_model.head.weight"] = weights["text_model.head.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def other_kind(folder: Path) -> None:
    BertConfig().save_pretrained(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    for name in ("spiece.model", "tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (keep_capitals, "keeps capitals"),
        (wrong_size, r"images come out \(3, 48, 48\); the vision tower wants \(3, 32, 32\)"),
        (small_vocabulary, "files of different models"),
        (lose_weights, "missing or of another shape.*vision_model.head.probe"),
        (other_shape, "do not fit|another shape"),
        (no_weights, "no weights in model.safetensors or pytorch_model.bin"),
        (cut_weights, "damaged"),
        (other_kind, "expected a SigLIP checkpoint.*'bert'"),
        (no_config, "without config.json"),
        (no_tokenizer, "no usable tokenizer"),
    ],
)
def test_checkpoints_that_break_the_contract(tiny_siglip: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_siglip, folder)
    damage(folder)
    with pytest.raises(UserError, match=f"(?s)damaged.*({message})"):
        load_siglip(folder)


def test_nothing_of_that_name() -> None:
    with pytest.raises(UserError, match="no such folder is here, and nobody/nothing-of-that-name is not in the hub's cache"):
        load_siglip("nobody/nothing-of-that-name")


def test_half_precision_is_widened_and_the_hash_is_of_the_content(tiny_siglip: Path, tmp_path: Path) -> None:
    model, inputs = load_siglip(tiny_siglip)
    name = hash_weights(model)
    SiglipModel.from_pretrained(tiny_siglip, dtype=torch.float16).save_pretrained(tmp_path)
    inputs.save(tmp_path)
    half, _ = load_siglip(tmp_path)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32} and not half.training
    assert hash_weights(half) != name
    with torch.no_grad():
        model.logit_bias += 1
    assert hash_weights(model) != name
