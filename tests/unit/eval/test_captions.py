"""The normalised caption: what makes two captions the same."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import _normalise_once, caption_hash, normalise

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A  Dog, running .", "a dog running"),
        ("A dog\truns\n", "a dog runs"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A} dog", "a dog"),  # NFKC
        ("cafe\u0301", "caf\u00e9"),
        ("\u00abUn chien\u00bb \u2014 \u201cquoted\u201d\u2026", "un chien quoted"),
        ("a dog's ball", "a dogs ball"),
        ("C++ & C# = $5", "c c 5"),
        ("\u0130stanbul", "i\u0307stanbul"),
        ("None", "none"),
        ("\u72ac\u304c\u8d70\u308b\u3002", "\u72ac\u304c\u8d70\u308b"),
        (" .,!? ", ""),
        ("", ""),
        ("\u00a0a\u00a0b\u00a0", "a b"),
    ],
)
def test_by_hand(caption: str, expected: str) -> None:
    assert normalise(caption) == expected


@given(TEXT)
def test_idempotent(caption: str) -> None:
    assert normalise(normalise(caption)) == normalise(caption)


@given(st.text(alphabet=string.printable, max_size=40))
def test_the_short_way_for_ascii_is_the_long_way(caption: str) -> None:
    assert normalise(caption) == _normalise_once(caption) == _normalise_once(_normalise_once(caption))


@given(TEXT, TEXT)
def test_hashes_are_equal_exactly_where_normalised_captions_are(one: str, other: str) -> None:
    assert (caption_hash(one) == caption_hash(other)) == (normalise(one) == normalise(other))


@given(TEXT)
def test_case_blanks_and_full_stops_do_not_change_the_hash(caption: str) -> None:
    assert caption_hash(f"  {caption} .") == caption_hash(caption)
    assert -(2**63) <= caption_hash(caption) < 2**63


def test_hash_is_the_same_in_every_process_and_year() -> None:
    assert caption_hash("A dog runs.") == caption_hash("a DOG  runs") == -5957876977829557608  # printf 'a dog runs' | b2sum -l 64
