"""Hub folders that hold their weights only as a .bin, through `python -m rerank.convert`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rerank.convert.__main__ import main
from rerank.scorers.load import load_scorer
from tests.bin_checkpoints import bin_folder, in_hub_cache
from tests.unit.rerank.scorers.albef.albef_files import Trap


@pytest.mark.parametrize("shards", [0, 3])
def test_a_hub_folder_scores_the_same_bits_after_conversion(tmp_path: Path, tiny_blip: Path, noise, capsys, shards: int) -> None:
    source = bin_folder(tiny_blip, tmp_path / "source", shards)
    (source / "tf_model.h5").write_text("another framework's")
    (source / "notes").mkdir()
    (source / "notes" / "card.md").write_text("a card")
    assert main([str(source), "--output", str(tmp_path / "made")]) == 0
    assert "read back as blip" in capsys.readouterr().out
    assert (tmp_path / "made" / "notes" / "card.md").read_text() == "a card"
    assert not [path.name for path in (tmp_path / "made").iterdir() if path.suffix in (".bin", ".h5")]
    assert len(list((tmp_path / "made").glob("*.safetensors"))) == max(1, shards)
    captions = ["a dog", "the red circle"]
    expected = load_scorer(str(tiny_blip), device="cpu").score(noise(1), captions)
    assert np.array_equal(load_scorer(str(tmp_path / "made"), device="cpu").score(noise(1), captions), expected)


def test_a_file_beside_the_weights_that_cannot_be_read_is_no_failure_to_write(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    source = bin_folder(tiny_blip, tmp_path / "source")
    (source / "README.md").symlink_to(tmp_path / "blob that is gone")
    assert main([str(source), "--output", str(tmp_path / "made")]) == 2
    assert "README.md: cannot be read: a link to nothing" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path, tiny_blip: Path) -> None:
    source = bin_folder(tiny_blip, tmp_path / "source")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    tensors["a_tied_copy"] = tensors["itm_head.weight"]
    tensors["itm_head.weight"] = tensors["itm_head.weight"].t().contiguous().t()  # not contiguous either
    torch.save(tensors, source / "pytorch_model.bin")
    assert main([str(source), "--output", str(tmp_path / "made")]) == 0
    written = load_file(tmp_path / "made" / "model.safetensors")
    assert torch.equal(written["a_tied_copy"], written["itm_head.weight"])


def test_a_hub_folder_that_cannot_be_a_matcher_leaves_nothing(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    source = bin_folder(tiny_blip, tmp_path / "source")
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if "itm_head" not in name}, source / "pytorch_model.bin")
    assert main([str(source), "--output", str(tmp_path / "made")]) == 2
    error = capsys.readouterr().err
    assert "itm_head" in error and str(source) in error and ".tmp" not in error
    assert not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))


def test_an_index_that_lies_is_refused(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    source = bin_folder(tiny_blip, tmp_path / "source", shards=2)
    index = json.loads((source / "pytorch_model.bin.index.json").read_text())
    for change, message in (({"never_there": "pytorch_model-00001-of-00002.bin"}, "never_there"), ({"away": "../away.bin"}, "../away.bin")):
        changed = index["weight_map"] | change
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": changed}))
        assert main([str(source), "--output", str(tmp_path / "made")]) == 2
        assert message in capsys.readouterr().err


def named_config(architecture: str = "BlipForImageTextRetrieval", model_type: str = "blip") -> dict:
    return {"model_type": model_type, "architectures": [architecture]}


def test_a_folder_that_needs_no_conversion_and_a_source_that_is_nothing(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    output = ["--output", str(tmp_path / "made")]
    for name, config in (("void", None), ("text", named_config("BertForSequenceClassification", "bert")), ("bare", named_config())):
        (tmp_path / name).mkdir()
        if config:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    for source, message in (
        ([str(tiny_blip)], "as safetensors already"),
        ([str(tmp_path / "void")], "holds no config.json"),
        ([str(tmp_path / "text")], "text-text reranker"),
        ([str(tmp_path / "bare")], "expected pytorch_model.bin"),
        (["/no/where.pth"], "expected a .pth file, a folder"),
        ([str(tiny_blip), "--image-size", "64"], "are for ALBEF's .pth"),
    ):
        assert main([*source, *output]) == 2
        assert message in capsys.readouterr().err


def test_a_hub_id_is_converted_from_the_hubs_files(tmp_path: Path, tiny_blip: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, from a cache laid out as huggingface_hub lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    in_hub_cache(tmp_path / "cache", "someone/itm", tiny_blip)
    assert main(["nobody/nothing", "--output", str(tmp_path / "made")]) == 2
    assert "nobody/nothing is not in the hub's cache" in capsys.readouterr().err
    assert main(["someone/itm", "--output", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "model.safetensors").is_file()


def test_a_hub_folder_with_an_object_in_its_bin_is_refused(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    folder = bin_folder(tiny_blip, tmp_path / "source")
    torch.save({"stray": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert main([str(folder), "--output", str(tmp_path / "made")]) == 2
    assert "mkdir" in capsys.readouterr().err and not (tmp_path / "ran").exists() and not (tmp_path / "made").exists()
