"""Captions in padded batches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rerank.scorers.base import by_length, padded


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12).map(tuple), min_size=1, max_size=20), st.integers(1, 7))
def test_batches_hold_every_caption_once_and_no_needless_padding(ids: list[tuple[int, ...]], chunk_size: int) -> None:
    seen = []
    last_longest = 0
    order = by_length(ids)
    for start in range(0, len(order), chunk_size):
        positions_C = np.asarray(order[start : start + chunk_size])
        input_ids_CL, mask_CL = padded([ids[position] for position in positions_C], pad_token_id=0)
        lengths = mask_CL.sum(dim=1).tolist()
        assert input_ids_CL.shape == mask_CL.shape == (len(lengths), max(lengths))
        assert min(lengths) >= last_longest
        last_longest = max(lengths)
        for position, row, length in zip(positions_C.tolist(), input_ids_CL.tolist(), lengths, strict=True):
            assert tuple(row[:length]) == ids[position]
            assert set(row[length:]) <= {0}
        seen += positions_C.tolist()
    assert np.array_equal(np.sort(seen), np.arange(len(ids)))
