"""Caption cleaning, token ids and batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.blip_text import caption_batches, clean_caption, token_ids


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("A Dog.", "a dog"),
        ('(A) "red" #dog: runs; fast~ * !', "a red dog runs fast"),
        ("two   dogs \n on\tgrass \n", "two dogs on grass"),
        ("dog's ball, well-worn", "dog's ball, well-worn"),  # comma, apostrophe, hyphen and question mark stay
        ("is it?", "is it?"),
        ("one.two", "one two"),
        ("...", ""),
        (" ".join(f"w{i}" for i in range(40)), " ".join(f"w{i}" for i in range(30))),
    ],
)
def test_cleaning_is_the_originals(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned


@given(st.text())
def test_cleaning_twice_changes_nothing(caption: str) -> None:
    once = clean_caption(caption)
    assert clean_caption(once) == once.lower()  # lower-casing is not idempotent for a few letters of Unicode
    assert len(once.split()) <= 30


def test_token_ids_begin_with_enc_and_are_cut(tiny_blip) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_blip)
    long = " ".join(["dog"] * 50)
    plain = token_ids(tokenizer, ["a dog", long], enc_token_id=None, max_tokens=35)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    dog = tokenizer.convert_tokens_to_ids("dog")
    assert plain[0] == (cls, tokenizer.convert_tokens_to_ids("a"), dog, sep)
    assert plain[1] == (cls, *[dog] * 33, sep)
    with_enc = token_ids(tokenizer, ["a dog", long], enc_token_id=99, max_tokens=35)
    assert [ids[0] for ids in with_enc] == [99, 99]
    assert [ids[1:] for ids in with_enc] == [ids[1:] for ids in plain]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple), min_size=1, max_size=20), st.integers(1, 7))
def test_batches_hold_every_caption_once_and_no_needless_padding(ids: list[tuple[int, ...]], chunk_size: int) -> None:
    seen = []
    last_longest = 0
    for batch in caption_batches(ids, chunk_size, pad_token_id=0):
        lengths = batch.attention_mask_CL.sum(dim=1).tolist()
        assert len(batch.positions_C) <= chunk_size
        assert batch.input_ids_CL.shape == batch.attention_mask_CL.shape == (len(lengths), max(lengths))
        assert min(lengths) >= last_longest
        last_longest = max(lengths)
        for position, row, length in zip(batch.positions_C.tolist(), batch.input_ids_CL.tolist(), lengths, strict=True):
            assert tuple(row[:length]) == ids[position]
            assert set(row[length:]) <= {0}
        seen += batch.positions_C.tolist()
    assert np.array_equal(np.sort(seen), np.arange(len(ids)))
