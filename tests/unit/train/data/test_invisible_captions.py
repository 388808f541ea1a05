"""A caption of nothing but invisible characters is empty at every reader; one that differs in them alone is the same caption."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.choices.choice_set import read_choices
from eval.dataset.leakage import find_leakage
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.manifest import read_manifest
from rerank.answers.captions import read_captions
from rerank.expansions.parse import parse_expansion
from train.data.caption_pool import read_additional_captions

BLANK = "\u200b\u2060\ufe0f"
CASES = Path(__file__).parents[5] / "shared" / "cases" / "invisible_characters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def jsonl(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def csv(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def parquet(path: Path, *rows: dict[str, object]) -> str:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def image_folder(folder: Path) -> str:
    for name, caption in (("a.txt", "a dog"), ("b.txt", BLANK)):
        (folder / name).write_text(caption + "\n", encoding="utf-8")
    return str(folder)


def choice(true: object, false: object) -> dict[str, object]:
    return {"image": "a.png", "caption": true, "false_captions": [false]}


READERS: dict[str, Callable[[Path], object]] = {
    "manifest.jsonl": lambda f: read_manifest(jsonl(f / "m.jsonl", {"image": "a.png", "captions": ["a dog", BLANK]})),
    "manifest.csv": lambda f: read_manifest(csv(f / "m.csv", "image,caption", "a.png,a dog", f"b.png,{BLANK}")),
    "manifest.parquet": lambda f: read_manifest(parquet(f / "m.parquet", {"image": "a.png", "caption": BLANK})),
    "image folder": lambda f: read_manifest(image_folder(f)),
    "captions.txt": lambda f: read_captions(csv(f / "c.txt", "a dog", BLANK)),
    "captions.csv": lambda f: read_captions(csv(f / "c.csv", "caption", "a dog", BLANK)),
    "captions.jsonl": lambda f: read_captions(jsonl(f / "c.jsonl", {"caption": "a dog"}, {"caption": BLANK})),
    "pool.txt": lambda f: read_additional_captions(csv(f / "p.txt", "a dog", BLANK)),
    "pool.jsonl": lambda f: read_additional_captions(jsonl(f / "p.jsonl", {"caption": BLANK})),
    "paraphrases": lambda f: parse_expansion(f"{jsonl(f / 'e.jsonl', {'caption': 'a dog', 'expansions': [BLANK]})}"),
    "captions of images": lambda f: parse_expansion(f"captions:{jsonl(f / 'e.jsonl', {'image': 'a.png', 'captions': [BLANK]})}"),
    "choices": lambda f: read_choices(jsonl(f / "s.jsonl", choice("a dog", BLANK))),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_caption_that_shows_nothing_is_refused_as_empty_with_its_place(folder: Path, reader: str) -> None:
    told = r"(?s)nothing is left of .*u200b.* without blanks, punctuation and invisible characters"
    with pytest.raises(UserError, match=told) as refused:
        READERS[reader](folder)
    assert any(place in str(refused.value) for place in (":1", ":2", ":3", " row 1", "b.txt"))


def test_a_template_of_nothing_but_its_place_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="expected words next to the {}"):
        parse_expansion(f"templates:{csv(folder / 't.txt', BLANK + '{}')}")


def test_captions_that_look_alike_are_positives_of_both_and_shared_between_splits(folder: Path) -> None:
    rows = [{"image": name, "caption": text, "split": split} for name, text, split in (
        ("a.png", "a red dog", "train"), ("b.png", "a red\u200b dog", "train"), ("a.png", "\ufeffa red dog", "val"),
    )]  # fmt: skip
    manifest = read_manifest(jsonl(folder / "m.jsonl", *rows))
    train, val = load_split(manifest, "train"), load_split(manifest, "val")
    assert train.is_positive(np.array([0, 1]), train.caption_hash_C[::-1]).all()
    assert find_leakage(val, train).num_shared_captions == 1
    assert list(train.captions) == ["a red dog", "a red\u200b dog"]  # what is shown and tokenised is the caption as it is given


def test_a_false_caption_that_reads_as_the_true_one_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="a false caption is the true one"):
        read_choices(jsonl(folder / "s.jsonl", choice("a red dog", "a red\u200b  dog")))
    assert len(read_choices(jsonl(folder / "s.jsonl", choice("a red dog", "a red dog!"))).examples) == 1


@pytest.mark.skipif(not CASES.exists(), reason="the shared cases are not there")
def test_the_shared_case() -> None:
    train = load_split(read_manifest(CASES / "pairs.jsonl"), "train")
    found = [train.positives("image_to_text").of(image).tolist() for image in range(4)]
    assert found == [[0, 1], [0, 1], [2, 3], [2, 3]]
    for read, place in (
        (lambda: read_captions(str(CASES / "captions.txt")), "captions.txt:2"),
        (lambda: read_additional_captions(str(CASES / "pool.txt")), "pool.txt:1"),
        (lambda: parse_expansion(str(CASES / "paraphrases.jsonl")), "paraphrases.jsonl:1"),
        (lambda: read_choices(CASES / "choices.jsonl"), "choices.jsonl:2"),
    ):
        with pytest.raises(UserError, match="invisible characters") as refused:
            read()
        assert place in str(refused.value)
