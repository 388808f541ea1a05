"""SigLIP 2: its text inputs against plain transformers with prepared captions, whatever the defaults of a checkpoint's files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GemmaTokenizer,
    Siglip2Config,
    Siglip2Tokenizer,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
    SiglipTokenizer,
)

from eval.__main__ import main
from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import hash_weights, load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.encoder.tokenizer import rewrite_tokenizer_config, save_tokenizer
from eval.errors import UserError
from eval.manifest.manifest import ManifestImage
from tests.siglip2 import IMAGE_SIZE, NUM_TOKENS, write_siglip2

CAPTIONS = ["A DOG, runs!", "the Red circle - on a 'square'", "dog " * 40, "unknown \u72ac", "", "  two  blanks ", "A" * 90, "dog. " * 3]


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory: pytest.TempPathFactory, sentences: list[str]) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "tiny", sentences)


def by_hand(folder: Path, captions: list[str], pictures: list[Path]) -> dict[str, torch.Tensor]:
    """Plain transformers' embeddings of captions lower-cased by hand, padded on the right to the tower's length, with no mask."""
    processor = SiglipProcessor(SiglipImageProcessorPil.from_pretrained(folder), GemmaTokenizer.from_pretrained(folder))
    images = [Image.open(path).convert("RGB") for path in pictures]
    return processor(
        text=[caption.lower() for caption in captions],
        images=images,
        padding="max_length",
        max_length=NUM_TOKENS,
        truncation=True,
        padding_side="right",
        return_attention_mask=False,
        return_tensors="pt",
    )


def test_ids_and_embeddings_equal_plain_transformers(siglip2: Path, sentences: list[str], pictures: list[Path]) -> None:
    model, inputs = load_siglip(siglip2)
    captions = CAPTIONS + sentences[:20]
    batch = by_hand(siglip2, captions, pictures[:8])
    assert set(batch) == {"input_ids", "pixel_values"}
    assert torch.equal(inputs.token_ids(captions), batch["input_ids"])
    assert torch.equal(inputs.token_ids(captions[1:2])[0], batch["input_ids"][1]), "no caption depends on its batch-mates"
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(siglip2).eval()(**batch)
    images = [ManifestImage(f"{n:03d}", None, path, None, 1, None, [f"a dog {n}"], "here") for n, path in enumerate(pictures[:8])]
    dataset = RetrievalSet(images, None, source="memory", split=None)
    np.testing.assert_allclose(embed_captions(model, inputs, captions), expected.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(embed_images(model, inputs, dataset), expected.image_embeds.numpy(), atol=1e-5)


def test_the_ids_by_hand(siglip2: Path) -> None:
    """Lower case, the marks kept, <eos> (1) once at the end, also of what was cut, <pad> (0) on the right."""
    _, inputs = load_siglip(siglip2)
    pieces = inputs.tokenizer.get_vocab()
    short, long = inputs.token_ids(["DOG!", "dog " * 40]).tolist()
    dog = [pieces[piece] for piece in inputs.tokenizer.tokenize("dog")]
    assert short == [*dog, pieces["!"], 1] + [0] * (NUM_TOKENS - len(dog) - 2)
    assert len(long) == NUM_TOKENS and long[-1] == 1 and 0 not in long and long.count(1) == 1


def edit(folder: Path, **values: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without_end(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def left_with_mask(folder: Path) -> None:
    edit(folder, padding_side="left", model_input_names=["input_ids", "attention_mask"], model_max_length=10**30)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: edit(folder, tokenizer_class="GemmaTokenizerFast"),
        lambda folder: edit(folder, tokenizer_class="Siglip2Tokenizer"),
        lambda folder: edit(folder, do_lower_case=False),
        left_with_mask,
        without_end,
    ],
)
def test_whatever_the_files_say_by_default(siglip2: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(siglip2, folder)
    change(folder)
    assert torch.equal(load_siglip(folder)[1].token_ids(CAPTIONS), load_siglip(siglip2)[1].token_ids(CAPTIONS))


def test_the_class_of_transformers_gives_the_same_ids(siglip2: Path) -> None:
    theirs = Siglip2Tokenizer.from_pretrained(siglip2)(CAPTIONS, padding="max_length", max_length=NUM_TOKENS, truncation=True)
    assert load_siglip(siglip2)[1].token_ids(CAPTIONS).tolist() == theirs["input_ids"]


@pytest.mark.parametrize("strip", [False, True])
def test_what_is_saved_gives_plain_transformers_the_same(
    siglip2: Path, tmp_path: Path, sentences: list[str], pictures: list[Path], strip: bool
) -> None:
    """Also without setting padding side, mask or case, as a user of an export would call it."""
    model, inputs = load_siglip(siglip2, strip_punctuation=strip)
    model.save_pretrained(tmp_path)
    inputs.save(tmp_path)
    captions, image = CAPTIONS + sentences[:20], Image.open(pictures[0]).convert("RGB")
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is SiglipProcessor
    batch = processor(text=captions, images=[image], padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "pixel_values"} and torch.equal(batch["input_ids"], inputs.token_ids(captions))
    assert set(AutoTokenizer.from_pretrained(tmp_path)(["a dog"])) == {"input_ids"}
    again, inputs_again = load_siglip(tmp_path)
    assert hash_weights(again) == hash_weights(model) and torch.equal(inputs_again.token_ids(captions), batch["input_ids"])
    assert inputs_again.contract == inputs.contract
    assert inputs.contract == {"num_tokens": NUM_TOKENS, "punctuation": "stripped" if strip else "kept", "image_size": IMAGE_SIZE}
    further = tmp_path / "further"
    inputs_again.save(further)
    assert (further / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([], {}),
        (None, {}),
        ({}, {}),
        (["<left>", "<right>"], {"additional_special_tokens": ["<left>", "<right>"]}),
        ({"image_token": "<image>"}, {"extra_special_tokens": {"image_token": "<image>"}}),
    ],
)
def test_special_tokens_are_written_as_transformers_4_reads_them(tmp_path: Path, extra: object, expected: dict[str, object]) -> None:
    """Transformers 4.57 expects a dictionary in "extra_special_tokens": with a list there, even an empty one, and no tokenizer loads."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "extra_special_tokens": extra}))
    rewrite_tokenizer_config(tmp_path, padding_side="right")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"eos_token": "</s>", "padding_side": "right"} | expected


def test_additional_tokens_come_back(siglip2: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    for folder in (siglip2, tiny_siglip):
        tokenizer = load_siglip(folder)[1].tokenizer
        tokenizer.add_special_tokens({"extra_special_tokens": ["<left>", "<right>"]})
        save_tokenizer(tokenizer, tmp_path / folder.name)
        again = AutoTokenizer.from_pretrained(tmp_path / folder.name)
        assert again.extra_special_tokens == ["<left>", "<right>"]
        assert again("a <left> dog").input_ids == tokenizer("a <left> dog").input_ids


def test_stripped_captions_are_the_ones_siglip_itself_would_read(siglip2: Path, tiny_siglip: Path, tmp_path: Path) -> None:
    """Oracle: the text SigLIP's own tokenizer canonicalises, read with punctuation kept."""
    canonical = SiglipTokenizer.from_pretrained(tiny_siglip).canonicalize_text
    captions = [*CAPTIONS, "a_dog's (left) -- \\ [x] ^ $5.00\t~\n end...", "!?"]
    clean = [canonical(caption.lower()) for caption in captions]
    _, kept = load_siglip(siglip2)
    _, stripped = load_siglip(siglip2, strip_punctuation=True)
    assert torch.equal(stripped.token_ids(captions), kept.token_ids(clean))
    assert not torch.equal(stripped.token_ids(captions), kept.token_ids(captions))
    kept.save(tmp_path)
    shutil.copy(siglip2 / "config.json", tmp_path)
    shutil.copy(siglip2 / "model.safetensors", tmp_path)
    _, later = load_siglip(tmp_path, strip_punctuation=True)
    assert torch.equal(later.token_ids(captions), kept.token_ids(clean)), "an export that keeps it can be measured without"


def test_siglip_strips_with_and_without_being_told(tiny_siglip: Path) -> None:
    _, inputs = load_siglip(tiny_siglip)
    _, told = load_siglip(tiny_siglip, strip_punctuation=True)
    assert inputs.contract == told.contract == {"num_tokens": 16, "punctuation": "stripped", "image_size": 32}
    assert torch.equal(inputs.token_ids(CAPTIONS), told.token_ids(CAPTIONS))


def capitals_kept(folder: Path) -> None:
    edit(folder, tokenizer_class="PreTrainedTokenizerFast")


def no_end_at_all(folder: Path) -> None:
    path = folder / "tokenizer.json"
    lower = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None, "normalizer": lower}))
    edit(folder, tokenizer_class="PreTrainedTokenizerFast")


def naflex(folder: Path) -> None:
    Siglip2Config().save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (capitals_kept, "keeps capitals"),
        (no_end_at_all, "does not end a caption with '<eos>'"),
        (naflex, r"NaFlex.*take the fixed-resolution one of its size, e\.g\. google/siglip2-base-patch16-224"),
    ],
)
def test_what_is_refused(siglip2: Path, tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "other"
    shutil.copytree(siglip2, folder)
    change(folder)
    with pytest.raises(UserError, match=f"other: .*{message}"):
        load_siglip(folder)


@pytest.mark.parametrize("strip", [False, True])
def test_a_report_records_how_captions_were_read(
    siglip2: Path, tiny_siglip: Path, pictures: list[Path], tmp_path: Path, strip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps({"image": path.name, "caption": f"A dog, number {n}!"}) for n, path in enumerate(pictures[:6])]
    data = pictures[0].parent / "siglip2.jsonl"
    data.write_text("\n".join(rows))
    options = [
        "--model",
        str(siglip2),
        "--also",
        f"one={tiny_siglip}",
        "--data",
        str(data),
        "--output",
        str(tmp_path),
        "--num-workers",
        "0",
    ]
    monkeypatch.setattr("sys.argv", ["eval", *options, *(["--strip-punctuation"] if strip else [])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    read = {name: stage["inputs"]["punctuation"] for name, stage in stages.items()}
    assert read == {"model": "stripped" if strip else "kept", "one": "stripped"}
