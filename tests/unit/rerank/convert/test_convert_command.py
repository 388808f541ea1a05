"""`python -m rerank.convert`: ALBEF's .pth and hub folders that hold only a .bin; nothing but tensors is ever unpickled."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rerank.convert.__main__ import main
from rerank.scorers.albef.release import interpolated
from rerank.scorers.load import load_scorer
from tests.shared_files import age, modes, umask
from tests.unit.rerank.scorers.albef import albef_files as files


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


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o027, 0o640)])
def test_its_files_are_as_open_as_the_umask_says(tmp_path: Path, words: str, mask: int, expected: int) -> None:
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    with umask(mask):
        assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 0
    assert modes(tmp_path / "made") == {expected}
    assert "extra_special_tokens" not in json.loads((tmp_path / "made" / "tokenizer_config.json").read_text())


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


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_with_a_pickled_object_in_it_is_refused_and_never_run(tmp_path: Path, words: str, capsys, zipped: bool) -> None:
    content = files.released(files.random_tensors(), tuned=True) | {"args": files.Trap(tmp_path / "ran")}
    source = saved(tmp_path / "model.pth", content, _use_new_zipfile_serialization=zipped)
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    error = capsys.readouterr().err
    assert "mkdir" in error and "can run any command" in error and "no switch" in error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "made").exists() and not list(tmp_path.glob(".made*"))


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


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda tensor: tensor.to(torch.complex64)], ids=["sparse", "complex"])
def test_weights_that_are_no_dense_real_numbers_are_refused(tmp_path: Path, words: str, capsys, change) -> None:
    tensors = files.random_tensors()
    tensors["itm_head.weight"] = change(tensors["itm_head.weight"])
    assert main([saved(tmp_path / "a.pth", {"model": tensors}), "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    assert "something else under itm_head.weight" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_text_tower_that_never_looks_at_the_image_is_refused(tmp_path: Path, words: str, capsys) -> None:
    tensors = {name: tensor for name, tensor in files.random_tensors().items() if "crossattention" not in name}
    assert main([saved(tmp_path / "a.pth", {"model": tensors}), "--output", str(tmp_path / "made"), "--tokenizer", words]) == 2
    assert "no layer of its text tower attends to the image" in capsys.readouterr().err


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
    age(tmp_path / ".made.123.tmp")
    source = saved(tmp_path / "model.pth", files.released(files.random_tensors(), tuned=True))
    assert main([source, "--output", str(tmp_path / "made"), "--tokenizer", words]) == 0
    assert not list(tmp_path.glob(".made*"))
