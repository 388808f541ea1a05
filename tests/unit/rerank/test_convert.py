"""`python -m rerank.convert`: ALBEF's .pth and hub folders that hold only a .bin; nothing but tensors is ever unpickled."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rerank.albef_release import interpolated
from rerank.convert import main
from rerank.scorer import load_scorer
from tests.unit.rerank import albef_files as files


@pytest.fixture
def words(tmp_path: Path) -> str:
    return str(files.write_tokenizer(tmp_path / "words"))


def saved(place: Path, content: object, **how) -> str:
    torch.save(content, place, **how)
    return str(place)


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_release_becomes_a_folder_with_its_own_weights(tmp_path: Path, words: str, noise, capsys, tuned: bool, zipped: bool) -> None:
    tensors = files.random_tensors()
    source = saved(tmp_path / "model.pth", files.released(tensors, tuned=tuned), _use_new_zipfile_serialization=zipped)
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 0
    written = load_file(tmp_path / "made" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    printed = capsys.readouterr().out
    num_momentum = sum(name.startswith("visual_encoder.") for name in tensors) + 1 + (not tuned)
    assert f"dropped: {num_momentum} of momentum copies" in printed
    assert "dropped: 3 of queues" in printed and "dropped: 2 of contrastive heads" in printed
    assert ("masked-language head" in printed) == (not tuned)
    assert "read back as albef, which reads pictures at 32 x 32 pixels" in printed
    assert not list(tmp_path.glob(".made*"))
    assert np.isfinite(load_scorer(str(tmp_path / "made"), device="cpu").score(noise(1), ["a dog", "a cat"])).all()


def test_another_picture_size_interpolates_the_positions(tmp_path: Path, words: str) -> None:
    tensors = files.random_tensors()
    source = saved(tmp_path / "model.pth", files.released(tensors, tuned=True))
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words, "--image-size", "48"]) == 0
    written = load_file(tmp_path / "made" / "model.safetensors")["visual_encoder.pos_embed"]
    before = tensors["visual_encoder.pos_embed"]
    assert written.shape == (1, 37, files.WIDTH)
    assert torch.equal(written[:, 0], before[:, 0])
    np.testing.assert_allclose(written[0, 1:].numpy(), bicubic(before[0, 1:].double().numpy(), 4, 6), atol=1e-5)
    assert load_scorer(str(tmp_path / "made"), device="cpu").reads.image_width == 48


def bicubic(grid: np.ndarray, side: int, new_side: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, corners not aligned, edges repeated; the grid row by row, shape (side * side, V)."""

    def kernel(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.25 * t**3 - 2.25 * t**2 + 1
        return -0.75 * t**3 + 3.75 * t**2 - 6 * t + 3 if t < 2 else 0.0

    weights = np.zeros((new_side, side))
    for new in range(new_side):
        centre = (new + 0.5) * side / new_side - 0.5
        for old in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[new, min(max(old, 0), side - 1)] += kernel(centre - old)
    square = grid.reshape(side, side, -1)
    return np.einsum("rs,ct,stv->rcv", weights, weights, square).reshape(new_side * new_side, -1)


def test_interpolating_to_the_same_size_changes_nothing() -> None:
    positions = torch.randn(1, 17, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(interpolated(positions, 4), positions, atol=1e-6, rtol=0)


class Trap:
    """An object whose unpickling leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_a_pickled_object_in_it_is_refused_and_never_run(tmp_path: Path, words: str, capsys, zipped: bool) -> None:
    content = files.released(files.random_tensors(), tuned=True) | {"args": Trap(tmp_path / "ran")}
    source = saved(tmp_path / "model.pth", content, _use_new_zipfile_serialization=zipped)
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    error = capsys.readouterr().err
    assert "mkdir" in error and "can run any command" in error and "no switch" in error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))


def test_a_hub_folder_with_an_object_in_its_bin_is_refused(tmp_path: Path, tiny_blip: Path, capsys) -> None:
    folder = bin_folder(tiny_blip, tmp_path / "source")
    torch.save({"stray": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert main([str(folder), "--output", str(tmp_path / "made")]) == 2
    assert "mkdir" in capsys.readouterr().err and not (tmp_path / "ran").exists() and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(1)}}, r"expected ALBEF's tensors"),
        ([1, 2], "expected ALBEF's tensors"),
        ({"model": {"visual_encoder.pos_embed": 3, "visual_encoder.patch_embed.proj.weight": 4}}, "something else under"),
    ],
)
def test_files_of_other_things_are_refused(tmp_path: Path, capsys, content: object, message: str) -> None:
    assert main([saved(tmp_path / "model.pth", content), "--output", str(tmp_path / "made")]) == 2
    assert message in capsys.readouterr().err


def test_files_that_are_torn_or_no_pickle_are_refused(tmp_path: Path, capsys) -> None:
    whole = Path(saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True)))
    torn = tmp_path / "torn.pth"
    torn.write_bytes(whole.read_bytes()[:20000])
    (tmp_path / "text.pth").write_text("no weights here")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("torn.pth", "text.pth", "empty.pth"):
        assert main([str(tmp_path / name), "--output", str(tmp_path / "made")]) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_every_missing_and_every_unknown_tensor_is_named(tmp_path: Path, words: str, capsys) -> None:
    tensors = files.random_tensors()
    gone = sorted(name for name in tensors if name.startswith(("itm_head", "text_encoder.encoder.layer.3.crossattention.self")))
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
    assert main([saved(tmp_path / "a.pth", {"model": kept}), "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    assert f"{len(gone)} missing: {', '.join(gone)}" in capsys.readouterr().err
    more = tensors | {f"grounding_head.{number}.weight": torch.zeros(2) for number in range(7)}
    assert main([saved(tmp_path / "b.pth", {"model": more}), "--output", str(tmp_path / "made"), "--tokenizer", words]) == 0
    printed = capsys.readouterr().out
    assert all(f"grounding_head.{number}.weight" in printed for number in range(7))


def test_blip_in_its_original_form_is_told_apart(tmp_path: Path, words: str, capsys) -> None:
    tensors = files.random_tensors()
    for number in range(files.FUSION_LAYER):  # BLIP looks at the image in every layer
        later = f"text_encoder.encoder.layer.{files.FUSION_LAYER}.crossattention"
        tensors |= {
            name.replace(f"layer.{files.FUSION_LAYER}.", f"layer.{number}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(later)
        }
    assert main([saved(tmp_path / "blip.pth", {"model": tensors}), "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    assert "Salesforce/blip-itm-base-coco" in capsys.readouterr().err


def test_the_tokenizer_must_be_had_and_fit(tmp_path: Path, words: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    output = ["--output", str(tmp_path / "made")]
    assert main([source, *output, "--tokenizer", "nobody/no-such-tokenizer"]) == 2
    assert "--tokenizer FOLDER with bert-base-uncased's vocab.txt" in capsys.readouterr().err
    (tmp_path / "void").mkdir()
    assert main([source, *output, "--tokenizer", str(tmp_path / "void")]) == 2
    assert "expected a folder with vocab.txt or tokenizer.json" in capsys.readouterr().err
    (tmp_path / "void" / "vocab.txt").write_text("\n".join(files.SPECIAL) + "\n")
    assert main([source, *output, "--tokenizer", str(tmp_path / "void")]) == 2
    assert "it has 5 tokens, and the text tower has 21" in capsys.readouterr().err
    assert main([source, *output, "--tokenizer", words, "--image-size", "50"]) == 2
    assert "--image-size 50" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten_and_what_cannot_be_written_says_so(tmp_path: Path, words: str, capsys) -> None:
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    assert main([source, "--output", str(taken), "--tokenizer", words]) == 2
    assert "would be lost" in capsys.readouterr().err and (taken / "precious.txt").read_text() == "mine"
    assert main([source, "--output", str(taken / "precious.txt" / "below"), "--tokenizer", words]) == 4
    assert "could not write" in capsys.readouterr().err
    (tmp_path / "free").mkdir()
    assert main([source, "--output", str(tmp_path / "free"), "--tokenizer", words]) == 0


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, words: str, capsys) -> None:
    """A limit on the size of a file stands in for the disk: the weights no longer fit, the small files do."""
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        code = main([source, "--output", str(tmp_path / "made"), "--tokenizer", words])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 4 and "could not write" in capsys.readouterr().err
    assert not list(tmp_path.glob("*made*"))


def test_what_a_killed_writer_left_is_swept(tmp_path: Path, words: str) -> None:
    (tmp_path / ".made.123.tmp").mkdir()
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 0
    assert not list(tmp_path.glob(".made*"))


def bin_folder(folder: Path, place: Path, shards: int = 0) -> Path:
    """The same checkpoint with its weights only as pytorch_model.bin, in one file or in shards."""
    place.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (place / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    if not shards:
        torch.save(tensors, place / "pytorch_model.bin")
        return place
    names = sorted(tensors)
    weight_map = {name: f"pytorch_model-{number % shards + 1:05d}-of-{shards:05d}.bin" for number, name in enumerate(names)}
    for shard in set(weight_map.values()):
        torch.save({name: tensors[name] for name in names if weight_map[name] == shard}, place / shard)
    (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return place


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
    repository = tmp_path / "cache" / "models--someone--itm"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    bin_folder(tiny_blip, repository / "snapshots" / ("0" * 40))
    assert main(["nobody/nothing", "--output", str(tmp_path / "made")]) == 2
    assert "could not be had" in capsys.readouterr().err
    assert main(["someone/itm", "--output", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "model.safetensors").is_file()
