"""What counts as nearly the same words, by hand; and that the rule is one of equality."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import near_duplicate_groups, near_duplicate_key


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("A dog runs.", "the dog runs", True),
        ("There is a dog running", "A dog running .", True),
        ("two dogs are running", "Two dogs, running!", True),
        ("a red disc left of a blue box", "a blue disc left of a red box", False),
        ("red left of blue", "blue left of red", False),
        ("a dog runs", "two dogs run", False),
        ("the", "a", False),  # nothing would be left: the words themselves decide
        ("is", "Is", True),
    ],
)
def test_by_hand(one: str, other: str, near: bool) -> None:
    assert (near_duplicate_key(one) == near_duplicate_key(other)) is near


@given(st.lists(st.text(alphabet="aA theis.", min_size=1, max_size=12), min_size=1, max_size=30))
def test_groups_are_those_of_equal_keys_numbered_as_they_appear(captions: list[str]) -> None:
    groups = near_duplicate_groups(captions).tolist()
    keys = [near_duplicate_key(caption) for caption in captions]
    assert [[a == b for b in keys] for a in keys] == [[a == b for b in groups] for a in groups]
    assert list(dict.fromkeys(groups)) == list(range(len(set(keys))))
