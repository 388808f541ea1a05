"""Both directions' candidates as one list per image, against sets of pairs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import UserError
from eval.search.ranking import Ranking
from rerank.scoring.candidates import CandidateLists, candidate_lists, head_pairs

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=40)


def lists_of(pairs: list[tuple[int, int]]) -> CandidateLists:
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return CandidateLists.of_pairs(array[:, 0], array[:, 1])


def pairs_of(lists: CandidateLists) -> list[tuple[int, int]]:
    return [(int(image), int(caption)) for place, image in enumerate(lists.image_indices_I) for caption in lists.captions_of(place)]


def ranking(direction: str, top_QK: np.ndarray) -> Ranking:
    num_queries = len(top_QK)
    return Ranking(
        direction,
        top_QK.astype(np.int64),
        np.zeros(top_QK.shape, dtype=np.float32),
        np.arange(num_queries + 1),
        np.zeros(num_queries, dtype=np.int64),
        np.ones(num_queries, dtype=np.int64),
    )


@given(PAIRS)
def test_lists_hold_each_pair_once_in_order(pairs: list[tuple[int, int]]) -> None:
    lists = lists_of(pairs)
    assert pairs_of(lists) == sorted(set(pairs))
    assert lists.num_pairs == len(set(pairs)) and lists.num_images == len({image for image, _ in pairs})
    assert lists.image_of_pair_N.tolist() == [image for image, _ in sorted(set(pairs))]


@given(PAIRS, PAIRS, PAIRS)
def test_union_and_difference_are_those_of_sets(a: list, b: list, c: list) -> None:
    assert pairs_of(lists_of(a).union(lists_of(b), lists_of(c))) == sorted({*a, *b, *c})
    assert pairs_of(lists_of(a).difference(lists_of(b))) == sorted(set(a) - set(b))


@given(PAIRS, st.integers(1, 5))
def test_shares_are_whole_lists_and_together_everything(pairs: list, world_size: int) -> None:
    lists = lists_of(pairs)
    shares = [lists.share(rank, world_size) for rank in range(world_size)]
    assert sorted(pair for share in shares for pair in pairs_of(share)) == pairs_of(lists)
    for rank, share in enumerate(shares):
        assert share.image_indices_I.tolist() == lists.image_indices_I.tolist()[rank::world_size]


@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_candidates_of_both_directions(num_images: int, num_captions: int, data: st.DataObject) -> None:
    draw = data.draw
    image_to_text = np.array([draw(st.permutations(range(num_captions))) for _ in range(num_images)])
    text_to_image = np.array([draw(st.permutations(range(num_images))) for _ in range(num_captions)])
    top_k = draw(st.integers(1, min(num_images, num_captions)))
    expected = {(image, int(caption)) for image in range(num_images) for caption in image_to_text[image, :top_k]}
    expected |= {(int(image), caption) for caption in range(num_captions) for image in text_to_image[caption, :top_k]}
    lists = candidate_lists([ranking("image_to_text", image_to_text), ranking("text_to_image", text_to_image)], top_k)
    assert pairs_of(lists) == sorted(expected)


def test_head_pairs_stand_as_image_and_caption_whoever_asks() -> None:
    images_QK, captions_QK = head_pairs(ranking("text_to_image", np.array([[4, 2, 0], [1, 0, 3]])), 2)
    assert images_QK.tolist() == [[4, 2], [1, 0]] and captions_QK.tolist() == [[0, 0], [1, 1]]
    images_QK, captions_QK = head_pairs(ranking("image_to_text", np.array([[4, 2, 0], [1, 0, 3]])), 2)
    assert captions_QK.tolist() == [[4, 2], [1, 0]] and images_QK.tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("top_k", [0, -1, 4])
def test_a_top_k_outside_the_stored_head_is_refused(top_k: int) -> None:
    with pytest.raises(UserError, match=rf"expected 1 to 3.*text_to_image; found {top_k}"):
        candidate_lists([ranking("text_to_image", np.array([[4, 2, 0]]))], top_k)


def test_indices_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="image indices"):
        lists_of([(-1, 0)])
    with pytest.raises(ValueError, match="caption indices"):
        lists_of([(0, 2**31)])
