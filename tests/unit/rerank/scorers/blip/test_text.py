"""Caption cleaning, token ids and batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.scorers.base import by_length
from rerank.scorers.blip.checkpoint import load_blip
from rerank.scorers.blip.text import PackedCaptions, clean_caption


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
    checkpoint = load_blip(str(tiny_blip))
    tokenizer = checkpoint.tokenizer
    long = " ".join(["well-worn"] * 30)  # three tokens each
    plain = replace(checkpoint, enc_token_id=None).token_ids(["A dog.", long])
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    dog = tokenizer.convert_tokens_to_ids("dog")
    assert plain[0] == (cls, tokenizer.convert_tokens_to_ids("a"), dog, sep)
    assert len(plain[1]) == 35 and (plain[1][0], plain[1][-1]) == (cls, sep)
    with_enc = replace(checkpoint, enc_token_id=99).token_ids(["A dog.", long])
    assert [ids[0] for ids in with_enc] == [99, 99]
    assert [ids[1:] for ids in with_enc] == [ids[1:] for ids in plain]


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple), min_size=1, max_size=20), st.integers(1, 7))
def test_packed_captions_hold_every_token_once_and_find_the_way_back(ids: list[tuple[int, ...]], chunk_size: int) -> None:
    seen = []
    last_longest = 0
    order = by_length(ids)
    for start in range(0, len(order), chunk_size):
        places = order[start : start + chunk_size]
        captions = [ids[place] for place in places]
        packed = PackedCaptions.of(captions, torch.device("cpu"))
        lengths = [len(caption) for caption in captions]
        assert min(lengths) >= last_longest
        last_longest = max(lengths)
        assert packed.ids_P.tolist() == [token for caption in captions for token in caption]
        assert packed.positions_P.tolist() == [place for length in lengths for place in range(length)]
        assert [packed.ids_P[start].item() for start in packed.starts_C] == [caption[0] for caption in captions]
        padded_CL = packed.ids_P[packed.index_CL]
        assert padded_CL[packed.rows_P, packed.positions_P].equal(packed.ids_P)
        mask_CL = torch.ones_like(padded_CL, dtype=torch.bool) if packed.mask_C11L is None else packed.mask_C11L[:, 0, 0]
        assert [row[real].tolist() for row, real in zip(padded_CL, mask_CL, strict=True)] == [list(caption) for caption in captions]
        assert (packed.mask_C11L is None) == (len(set(lengths)) == 1)
        seen += places
    assert np.array_equal(np.sort(seen), np.arange(len(ids)))
