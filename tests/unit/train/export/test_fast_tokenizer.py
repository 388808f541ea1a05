"""train/export/fast_tokenizer.py: the ids of SentencePiece, of both kinds of models; none where they would differ."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import SiglipTokenizer

from train.export.fast_tokenizer import fast_tokenizer

ROOT = Path(__file__).parents[4]
CAPTIONS = sorted({caption for row in pq.read_table(ROOT / "demo" / "data" / "scenes.parquet")["captions"].to_pylist() for caption in row})
ALPHABETS = [range(32, 127), range(32, 0x250), [*range(0x391, 0x3CA), 32, 44], [*range(0x3040, 0x30FF), 0x20, 0x3000, 0xFF21, 0xFF41]]


def trained(folder: Path, **settings: Any) -> SiglipTokenizer:
    """A tokenizer of the demo's captions, and of words in other letters."""
    draws = random.Random(1)
    words = ["".join(chr(draws.randint(0xA1, 0x24F)) for _ in range(6)) for _ in range(400)]
    lines = [*CAPTIONS[:1500], *words, "ΟΔΟΣ οδος σας", "カメラ の 写真"]
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        vocab_size=1000,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        **ids | settings,
    )
    return SiglipTokenizer(str(folder / "spiece.model"))


def differing(slow: SiglipTokenizer, fast: Tokenizer, texts: list[str]) -> list[str]:
    ids = [encoding.ids for encoding in fast.encode_batch(texts)]
    return [text for text, found in zip(texts, ids, strict=True) if slow(text, verbose=False)["input_ids"] != found]


@pytest.mark.parametrize("kind", ["demo", "unigram", "bpe"])
def test_captions_and_odd_texts_have_the_ids_of_sentencepiece(tmp_path: Path, kind: str) -> None:
    slow = SiglipTokenizer.from_pretrained(ROOT / "demo/models/siglip-base") if kind == "demo" else trained(tmp_path, model_type=kind)
    fast = fast_tokenizer(slow)
    assert fast is not None
    fast.save(str(tmp_path / "tokenizer.json"))
    fast, draws = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), random.Random(0)
    texts = ["".join(chr(draws.choice(letters)) for _ in range(draws.randint(1, 20))) for letters in ALPHABETS for _ in range(300)]
    assert differing(slow, fast, CAPTIONS[::3] + [caption.upper() for caption in CAPTIONS[:300]] + texts) == []


@pytest.mark.parametrize("settings", [{"byte_fallback": True}, {"user_defined_symbols": ["red"]}, {"add_dummy_prefix": False}])
def test_what_it_cannot_say_is_not_said(tmp_path: Path, settings: dict[str, Any]) -> None:
    assert fast_tokenizer(trained(tmp_path, model_type="unigram", **settings)) is None


def test_other_ids_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = trained(tmp_path, model_type="unigram")
    monkeypatch.setattr("train.export.fast_tokenizer.FINAL_SIGMA", "never")
    assert fast_tokenizer(slow) is None
