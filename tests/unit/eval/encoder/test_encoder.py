"""Embeddings against transformers' own forward, and the grid of blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, SiglipModel, SiglipProcessor, SiglipTokenizer

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from eval.execution import Execution
from eval.manifest.manifest import ManifestImage


def picture_set(paths: list[Path]) -> RetrievalSet:
    images = [ManifestImage(f"{n:03d}", None, path, None, 1, None, [f"a dog {n}"], "here") for n, path in enumerate(paths)]
    return RetrievalSet(images, None, source="memory", split=None)


def test_embeddings_equal_transformers(tiny_siglip: Path, pictures: list[Path], sentences: list[str]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    processor = SiglipProcessor(
        AutoImageProcessor.from_pretrained(tiny_siglip, backend="pil"), SiglipTokenizer.from_pretrained(tiny_siglip)
    )
    theirs = SiglipModel.from_pretrained(tiny_siglip).eval()
    images = [Image.open(path).convert("RGB") for path in pictures]
    batch = processor(text=sentences[:40], images=images, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    batch.pop("attention_mask", None)  # the text tower pools the last position: a mask would change the embedding
    with torch.no_grad():
        expected = theirs(**batch)
    ours_images = embed_images(model, inputs, picture_set(pictures), block=16)
    ours_captions = embed_captions(model, inputs, sentences[:40], block=16)
    assert ours_images.dtype == ours_captions.dtype == np.float32
    np.testing.assert_allclose(ours_images, expected.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours_captions, expected.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours_images, axis=1), 1, atol=1e-5)
    assert np.abs(ours_captions[0] - ours_captions[1]).max() > 0.01, "inputs must move the embedding, or this test shows nothing"


@pytest.mark.parametrize("block", [1, 7, 40, 64, 256])
def test_any_block_size(tiny_siglip: Path, pictures: list[Path], sentences: list[str], block: int) -> None:
    model, inputs = load_siglip(tiny_siglip)
    dataset = picture_set(pictures)
    np.testing.assert_allclose(embed_images(model, inputs, dataset, block=block), embed_images(model, inputs, dataset), atol=1e-5)
    captions = sentences[:50]
    np.testing.assert_allclose(embed_captions(model, inputs, captions, block=block), embed_captions(model, inputs, captions), atol=1e-5)


def test_a_block_of_pieces_knows_which_pictures_are_empty(tiny_siglip: Path, pictures: list[Path], tmp_path: Path) -> None:
    model, inputs = load_siglip(tiny_siglip)
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    dataset = picture_set([tmp_path / "broken.png" if number in (3, 35) else path for number, path in enumerate(pictures)])
    pieces = embed_images(model, inputs, dataset, block=256, remedy=None, execution=Execution(num_workers=1))
    assert np.flatnonzero(~pieces.any(axis=1)).tolist() == [3, 35]
    np.testing.assert_allclose(pieces, embed_images(model, inputs, dataset, remedy=None), atol=1e-5)


def test_half_precision_is_that_of_the_towers_alone(tiny_siglip: Path, pictures: list[Path], sentences: list[str]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    dataset, half = picture_set(pictures), Execution(precision="bf16")
    exact = embed_images(model, inputs, dataset), embed_captions(model, inputs, sentences[:50])
    found = embed_images(model, inputs, dataset, execution=half), embed_captions(model, inputs, sentences[:50], execution=half)
    for one, other in zip(exact, found, strict=True):
        assert other.dtype == np.float32 and not np.array_equal(one, other)
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-6)  # a unit vector of float32, not one of bf16
        assert (one * other).sum(axis=1).min() > 0.999
    assert embed_captions(model, inputs, sentences[:50]).tobytes() == exact[1].tobytes(), "nothing is left of it"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bits(tiny_siglip: Path, pictures: list[Path], num_workers: int) -> None:
    model, inputs = load_siglip(tiny_siglip)
    dataset = picture_set(pictures)
    expected = embed_images(model, inputs, dataset, block=16)
    seen: list[int] = []
    found = embed_images(model, inputs, dataset, block=16, execution=Execution(num_workers=num_workers, on_progress=seen.append))
    assert found.tobytes() == expected.tobytes() and seen == [16, 16, 8]


def test_a_row_does_not_depend_on_its_block_mates(tiny_siglip: Path, sentences: list[str]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    both = embed_captions(model, inputs, sentences[:100])
    again = embed_captions(model, inputs, sentences[:99] + ["dog " * 30])
    assert both[:99].tobytes() == again[:99].tobytes() and both[99].tobytes() != again[99].tobytes()


def test_a_model_in_training_is_measured_in_evaluation_mode_and_given_back(tiny_siglip: Path, sentences: list[str]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    expected = embed_captions(model, inputs, sentences[:5])
    model.train()
    assert embed_captions(model, inputs, sentences[:5]).tobytes() == expected.tobytes()
    assert model.training


@pytest.mark.parametrize("num_workers", [0, 1])
def test_undecodable_picture_is_named_or_becomes_zeros(tiny_siglip: Path, pictures: list[Path], tmp_path: Path, num_workers: int) -> None:
    model, inputs = load_siglip(tiny_siglip)
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    dataset = picture_set([*pictures[:4], broken, *pictures[4:6]])
    with pytest.raises(UserError, match=r"broken\.png: cannot be decoded"):
        embed_images(model, inputs, dataset, block=3, execution=Execution(num_workers=num_workers))
    found = embed_images(model, inputs, dataset, block=3, execution=Execution(num_workers=num_workers), remedy=None)
    assert not found[4].any()
    np.testing.assert_allclose(np.delete(found, 4, axis=0), embed_images(model, inputs, picture_set(pictures[:6])), atol=1e-5)


def test_weights_that_are_not_finite_are_an_error(tiny_siglip: Path, pictures: list[Path], sentences: list[str]) -> None:
    model, inputs = load_siglip(tiny_siglip)
    with torch.no_grad():
        model.vision_model.head.probe.fill_(torch.nan)
        model.text_model.head.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"6 image embedding\(s\) of 6 are not finite, e.g. of \[0, 1, 2, 3, 4\]"):
        embed_images(model, inputs, picture_set(pictures[:6]))
    with pytest.raises(UserError, match=r"not finite, e.g. of \['a', 'b', 'c', 'd', 'e'\]: the weights or the precision are broken"):
        embed_images(model, inputs, picture_set(pictures[:6]), names="abcdef")
    with pytest.raises(UserError) as caught:
        embed_captions(model, inputs, sentences[:3])
    assert f"3 caption embedding(s) of 3 are not finite, e.g. of {[text[:80] for text in sentences[:3]]}" in str(caught.value)


def test_pictures_of_a_block_that_do_not_decode_are_named_together(tiny_siglip: Path, pictures: list[Path], tmp_path: Path) -> None:
    model, inputs = load_siglip(tiny_siglip)
    broken = [tmp_path / f"broken-{number}.png" for number in range(7)]
    for path in broken:
        path.write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        embed_images(model, inputs, picture_set([*pictures[:2], *broken]))
    told = str(caught.value)
    assert all(f"{path}: cannot be decoded: no picture of a known format (JPEG, " in told for path in broken[:5])
    assert "broken-5" not in told and "; and 2 more near them. Every picture must decode" in told and "0x" not in told
