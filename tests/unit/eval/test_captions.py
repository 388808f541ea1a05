"""The normalised caption: what makes two captions the same."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.captions import INVISIBLE, _normalise_once, caption_hash, has_marks, normalise, visible

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


def test_invisible_characters_are_those_of_the_standard() -> None:
    """4,174 code points, as DerivedCoreProperties.txt says; the regex package has the property from the Unicode data itself."""
    found = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and INVISIBLE.match(chr(code))]
    assert len(found) == 4174 and not any(character.isascii() or character.isspace() for character in found)
    regex = pytest.importorskip("regex")
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert found == regex.findall(r"\p{Default_Ignorable_Code_Point}", every)


@pytest.mark.parametrize(
    ("caption", "same"),
    [
        ("a red\u200b dog", "a red dog"),  # zero-width space
        ("\ufeffa red dog", "a red dog"),  # byte order mark
        ("a re\u00add dog", "a red dog"),  # soft hyphen
        ("\u202ba red dog\u202c", "a red dog"),  # marks of direction
        ("a red dog\U000e0041", "a red dog"),  # a tag
        ("I \u2764\ufe0f dogs", "I \u2764 dogs"),  # a variation selector
        ("cafe\u200b\u0301", "caf\u00e9"),  # what it kept apart is composed
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),  # Persian, with a non-joiner
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"),  # a family, joined
        ("\u115f\u3164\u17b4", ""),
        ("\u200b \u200d!", ""),
    ],
)
def test_captions_that_differ_in_what_shows_nothing_are_one(caption: str, same: str) -> None:
    assert normalise(caption) == normalise(same) and caption_hash(caption) == caption_hash(same)
    assert visible("  a red\u200b  dog ") == "a red dog"


@given(TEXT, st.sampled_from("\u200b\u200d\u00ad\ufeff\ufe0f\u2060"), st.integers(0, 30))
def test_an_invisible_character_anywhere_changes_nothing(caption: str, character: str, place: int) -> None:
    assert normalise(caption[:place] + character + caption[place:]) == normalise(caption)


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("1.5 Litres!", "1.5 litres"),
        ("$2.99, or 1,000.00", "$2.99 or 1,000.00".replace("$", "")),
        ("part A-12/3", "part a12/3"),
        ("1_5 and 1--5", "1_5 and 1--5"),
        ("1. 5", "1 5"),
        (".5", "5"),
        ("\uff11\uff0e\uff15", "1.5"),  # NFKC comes first
        ("\u0661\u066b\u0665", "\u0661\u066b\u0665"),  # Arabic digits and their own mark
        ("a\u200b 1.\u200b5", "a 1.5"),
    ],
)
def test_a_mark_between_digits_stays_where_it_is_asked_for(caption: str, kept: str) -> None:
    assert normalise(caption, keeps_marks=True) == kept
    assert normalise(caption) == "".join(c for c in kept if c.isalnum() or c == " ")


@given(st.text(alphabet="15.,/- a_\u200b\u00bd", max_size=12))
def test_kept_marks_only_part_what_is_one_without_them(caption: str) -> None:
    kept = normalise(caption, keeps_marks=True)
    assert normalise(kept, keeps_marks=True) == kept and normalise(kept) == normalise(caption)
    assert has_marks(caption) or kept == normalise(caption)
