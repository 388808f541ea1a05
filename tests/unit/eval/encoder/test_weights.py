"""SigLIP checkpoints with a pytorch_model.bin alone: the same model, converted once into a complete copy; only tensors are read."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.errors import UserError, WriteError
from tests.bin_checkpoints import bin_folder, in_hub_cache
from tests.shared_files import age
from tests.unit.rerank.scorers.albef.albef_files import Trap


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the copies go."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "siglip-tuner" / "safetensors"


def forbid_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("unpickled again")

    monkeypatch.setattr("torch.load", refuse)


def copies(assets: Path) -> list[Path]:
    return [path for path in assets.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("shards", [0, 3])
def test_the_same_model_and_read_once(
    tiny_siglip: Path, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: int
) -> None:
    expected, _ = load_siglip(tiny_siglip)
    assert capsys.readouterr().err.count("no safetensors") == 0
    folder = bin_folder(tiny_siglip, tmp_path / "bin", shards)
    model, _ = load_siglip(folder)
    assert hash_weights(model) == hash_weights(expected)
    assert (model.name_or_path, model.config.name_or_path) == (str(folder), str(folder))
    (copy,) = copies(assets)
    said = [line for line in capsys.readouterr().err.splitlines() if "no safetensors" in line]
    name = "pytorch_model.bin.index.json" if shards else "pytorch_model.bin"
    assert said == [f"no safetensors in {folder}: {name} was read with weights_only=True into {copy}"]
    forbid_unpickling(monkeypatch)
    again, _ = load_siglip(folder)
    assert hash_weights(again) == hash_weights(expected) and "no safetensors" not in capsys.readouterr().err
    assert not list(assets.glob(".*.tmp"))


def test_a_copy_follows_from_the_content_not_from_the_path(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    for place in ("one", "two"):
        load_siglip(bin_folder(tiny_siglip, tmp_path / place))
    assert len(copies(assets)) == 1
    tensors = torch.load(tmp_path / "two" / "pytorch_model.bin", weights_only=True)
    tensors["logit_bias"] += 1
    torch.save(tensors, tmp_path / "two" / "pytorch_model.bin")
    changed, _ = load_siglip(tmp_path / "two")
    assert len(copies(assets)) == 2
    assert torch.equal(changed.logit_bias, load_siglip(tmp_path / "one")[0].logit_bias + 1)


def test_safetensors_win(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "both")
    (folder / "model.safetensors").write_bytes((tiny_siglip / "model.safetensors").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert hash_weights(load_siglip(folder)[0]) == hash_weights(load_siglip(tiny_siglip)[0]) and not assets.exists()


def test_a_hub_id_from_the_cache_offline(tiny_siglip: Path, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub stores it, with links into blobs/ named by SHA-256, so that the file need not be hashed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = in_hub_cache(tmp_path / "hub", "someone/siglip", tiny_siglip)
    blob = snapshot.parents[1] / "blobs" / ("ab" * 32)
    blob.parent.mkdir()
    (snapshot / "pytorch_model.bin").rename(blob)
    (snapshot / "pytorch_model.bin").symlink_to(os.path.relpath(blob, snapshot))
    assert hash_weights(load_siglip("someone/siglip")[0]) == hash_weights(load_siglip(tiny_siglip)[0])
    assert [path.name for path in copies(assets)] == ["ab" * 32]
    with pytest.raises(UserError, match="someone/else"):
        load_siglip("someone/else")


def _load(folder: Path) -> str:
    return hash_weights(load_siglip(folder)[0])


def test_processes_at_once_make_one_copy(tiny_siglip: Path, tmp_path: Path, assets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert set(pool.map(_load, [folder] * 4, chunksize=1)) == {_load(tiny_siglip)}
    assert capfd.readouterr().err.count("was read with weights_only=True") == 1 and len(copies(assets)) == 1


def test_leftovers_of_a_killed_process_are_removed(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin")
    load_siglip(folder)
    (copy,) = copies(assets)
    torn = assets / f".{copy.name}.0123.tmp"
    copy.rename(torn)
    (torn / "model.safetensors").write_bytes(b"half of")
    age(torn)
    assert _load(folder) == _load(tiny_siglip) and copies(assets) == [copy] and not torn.exists()


def test_others_may_read_the_copy_by_the_umask(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    before = os.umask(0o027)
    try:
        load_siglip(bin_folder(tiny_siglip, tmp_path / "bin"))
    finally:
        os.umask(before)
    (copy,) = copies(assets)
    assert stat.S_IMODE((copy / "model.safetensors").stat().st_mode) == 0o640


def evil(path: Path) -> None:
    torch.save({"logit_bias": torch.zeros(1), "stray": Trap(path.parent / "ran")}, path)


def number(path: Path) -> None:
    torch.save({"logit_bias": torch.zeros(1), "steps": 3}, path)


def nested(path: Path) -> None:
    torch.save({"state_dict": {"logit_bias": torch.zeros(1)}}, path)


def sparse(path: Path) -> None:
    torch.save({"logit_bias": torch.zeros(1).to_sparse()}, path)


def text(path: Path) -> None:
    path.write_text("<html>no such page</html>")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (evil, r"pytorch_model.bin was not read: it holds posix\.mkdir"),
        (number, "pytorch_model.bin: expected tensors by name; found something else"),
        (nested, "expected tensors by name"),
        (sparse, "logit_bias are sparse or quantized"),
        (text, "pytorch_model.bin is no file of torch.save"),
    ],
)
def test_anything_but_tensors_is_refused(tiny_siglip: Path, tmp_path: Path, assets: Path, spoil, message: str) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin")
    spoil(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=message) as caught:
        load_siglip(folder)
    assert caught.value.exit_code == 2 and not (folder / "ran").exists()
    assert not copies(assets) and not list(assets.glob(".*.tmp"))


def test_shards_that_are_not_there_or_elsewhere_are_named(tiny_siglip: Path, tmp_path: Path) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin", shards=2)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="names pytorch_model-00002-of-00002.bin, which is not there"):
        load_siglip(folder)
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["logit_bias"] = "../away.bin"
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"found \.\./away\.bin"):
        load_siglip(folder)


def test_a_copy_that_cannot_be_written_or_is_damaged(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin")
    (tmp_path / "assets").write_text("a file where a folder is wanted")
    with pytest.raises(WriteError, match="could not write the safetensors copy.*HF_ASSETS_CACHE"):
        load_siglip(folder)
    (tmp_path / "assets").unlink()
    load_siglip(folder)
    (copy,) = copies(assets)
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged .*remove that folder"):
        load_siglip(folder)


def test_tied_tensors_are_written_apart(tiny_siglip: Path, tmp_path: Path, assets: Path) -> None:
    folder = bin_folder(tiny_siglip, tmp_path / "bin")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["a_tied_copy"] = tensors["logit_bias"]
    torch.save(tensors, folder / "pytorch_model.bin")
    assert _load(folder) == _load(tiny_siglip)
    written = load_file(copies(assets)[0] / "model.safetensors")
    assert torch.equal(written["a_tied_copy"], written["logit_bias"])
