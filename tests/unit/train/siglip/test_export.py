"""train/siglip/export.py and train/model/random_init.py: folders that plain transformers loads, holding what was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, SiglipModel, pipeline

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from tests.shared_files import age
from tests.small_job import TINY, SmallWorld, load
from train.config.model import ModelConfig, ScratchConfig
from train.model.random_init import write_scratch
from train.model.siglip import TunedModel, build_model
from train.siglip.card import usage
from train.siglip.export import export_model


def trained(world: SmallWorld, **keys: Any) -> TunedModel:
    """A model whose every trainable weight has moved."""
    tuned = build_model(ModelConfig(base=str(world.base), **keys), str(world.base))
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in tuned.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draws))
    return tuned


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_plain_transformers_reads_what_was_trained(small_world: SmallWorld, tmp_path: Path, lora: Any) -> None:
    tuned = trained(small_world, lora=lora)
    export_model(tuned, tmp_path / "export", "a card\n")
    dataset = load(small_world.manifest, "test")
    model = SiglipModel.from_pretrained(tmp_path / "export").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "export")
    assert model.dtype == torch.float32 and not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]
    pictures = [dataset.load_image(image) for image in range(dataset.num_images)]
    batch = processor(
        text=list(dataset.captions), images=pictures, padding="max_length", max_length=TINY.num_tokens, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        images = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        texts = model.get_text_features(input_ids=batch["input_ids"]).pooler_output
    ours = tuned.siglip.eval(), tuned.inputs
    for theirs, own in ((images, embed_images(*ours, dataset)), (texts, embed_captions(*ours, dataset.captions))):
        np.testing.assert_allclose(torch.nn.functional.normalize(theirs, dim=1).numpy(), own, atol=1e-5, rtol=0)
    assert model.logit_bias.item() == tuned.siglip.logit_bias.item() != -10.0
    assert (tmp_path / "export" / "README.md").read_text() == "a card\n"


def test_an_export_replaces_the_one_before_and_sweeps_what_killed_ones_left(small_world: SmallWorld, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_model(trained(small_world), folder, "card")
    (folder / "old.json").write_text("of the one before")
    for name in (".export.99.tmp", ".export.98.old"):
        (tmp_path / name).mkdir()
        age(tmp_path / name)
    export_model(trained(small_world), folder, "card")
    assert [path.name for path in tmp_path.iterdir()] == ["export"] and not (folder / "old.json").exists()


def test_a_folder_that_is_no_export_is_left_alone(small_world: SmallWorld, tmp_path: Path) -> None:
    tuned = trained(small_world)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "file").write_text("a file")
    for name, held in (("home", "thesis.txt"), ("run", "checkpoints"), ("file", "file")):
        with pytest.raises(UserError, match=f"no earlier export.*{held}"):
            export_model(tuned, tmp_path / name, "card")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work" and (tmp_path / "run" / "checkpoints").is_dir()


def test_a_failed_export_leaves_the_old_one(small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = trained(small_world)
    export_model(tuned, tmp_path / "export", "card")
    before = (tmp_path / "export" / "model.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eval.atomic.sync", fail)
    with pytest.raises(OSError, match="No space"):
        export_model(trained(small_world, lora={"rank": 2}), tmp_path / "export", "card")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == before


def test_scratch_follows_from_the_seed_and_loads(small_world: SmallWorld, tmp_path: Path) -> None:
    dataset = load(small_world.manifest)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed)
        write_scratch(tmp_path / name, TINY, dataset, seed)
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"} <= files and "spiece.tmp" not in files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    (one, inputs), (other, _) = load_siglip(tmp_path / "a"), load_siglip(tmp_path / "c")
    assert hash_weights(one) != hash_weights(other)
    assert (one.logit_scale.item(), one.logit_bias.item()) == (pytest.approx(np.log(10.0)), -10.0)
    assert (inputs.num_tokens, inputs.image_size) == (12, 16)
    ids = inputs.token_ids(["A red CIRCLE at the left!", "a red circle at the left", "a blue square at the top"])
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])
    unknown = inputs.tokenizer.unk_token_id
    assert unknown not in inputs.token_ids(list(dataset.captions))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert load_file(tmp_path / "a" / "model.safetensors")["logit_bias"].dtype == torch.float32


def test_too_few_captions_for_a_tokenizer_are_named(tmp_path: Path, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load(small_world.manifest)
    monkeypatch.setattr(dataset, "captions", ["!"])
    with pytest.raises(UserError, match="model.scratch"):
        write_scratch(tmp_path / "a", ScratchConfig(vocab_size=64), dataset, 0)


@pytest.mark.parametrize(("num_tokens", "length"), [(64, 64), (12, None), (80, 64)])
def test_the_pipeline_of_transformers_is_right_at_64_tokens_and_refuses_less(
    small_world: SmallWorld, tmp_path: Path, num_tokens: int, length: int | None
) -> None:
    """It pads to 64 whatever the text tower wants; more than that goes wrong without a word, as the card of such a model says."""
    write_scratch(tmp_path / "base", TINY.model_copy(update={"num_tokens": num_tokens}), load(small_world.manifest), seed=1)
    model, inputs = load_siglip(tmp_path / "base")
    export_model(TunedModel(model, inputs, "0"), tmp_path / "export", usage(inputs))
    card, labels = (tmp_path / "export" / "README.md").read_text(), ["a red circle at the left", "A blue BAR, number 3!", ""]
    picture = load(small_world.manifest, "test").load_image(0)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "export"), device="cpu")
    if length is None:
        assert "this text tower refuses them" in card
        with pytest.raises(ValueError, match="Sequence length must be less than max_position_embeddings"):
            classify(picture, candidate_labels=labels, hypothesis_template="{}")
        return
    found = {one["label"]: one["score"] for one in classify(picture, candidate_labels=labels, hypothesis_template="{}")}
    with torch.no_grad():
        logits = model(input_ids=inputs.token_ids(labels), pixel_values=inputs.pixels(picture)[None]).logits_per_image[0]
    is_right = np.allclose([found[label] for label in labels], logits.sigmoid().numpy(), atol=1e-6, rtol=1e-4)
    assert is_right == (num_tokens == 64) == ("which is right here" in card) == ("Do not use it" not in card)
