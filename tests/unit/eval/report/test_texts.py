"""What a report says of its captions, by hand."""

import numpy as np

from eval.captions import caption_hash
from eval.encoder.caption_tokens import CaptionTokens
from eval.report.section import section_lines
from eval.report.texts import TEXTS, text_lines, text_record, texts_section

CAPTIONS = ["a cat", "A cat.", "1.5 kg", "15 kg", "x" * 200 + "a", "x" * 200 + "b", "?"]
HASH_C = np.array([caption_hash(caption) for caption in CAPTIONS])


def tokens(*, cut: str = "", unknown: str = "", equal: str = "") -> CaptionTokens:
    marks = [np.array([mark == "x" for mark in text.ljust(7)]) for text in (cut, unknown)]
    key_C = np.array([0 if mark == "x" else 1 + place for place, mark in enumerate(equal.ljust(7))])
    return CaptionTokens(16, key_C, *marks)


def test_every_count_with_examples() -> None:
    found = text_record(CAPTIONS, HASH_C, {"model": tokens(cut="....xx", unknown="......x", equal="....xx")})
    assert (found["num_captions"], found["num_different"]) == (7, 5)
    assert found["digit_marks"] == {"num_texts": 2, "num_left": 1, "examples": [["1.5 kg", "15 kg"]]}
    (read,) = found["tokens"]
    long = ["x" * 38 + " … " + "x" * 37 + end for end in "ab"]
    assert read["cut"] == {"num_captions": 2, "examples": long} and read["unknown"] == {"num_captions": 1, "examples": ["?"]}
    assert read["equal"] == {"num_captions": 2, "examples": [long]}
    lines = text_lines(found)
    assert lines[0].startswith("5 different texts among 7 captions: an image's first places go to repeats")
    assert lines[1] == "2 different texts are 1 by the rule, which strips punctuation between digits too, e.g. '1.5 kg' = '15 kg'"
    assert lines[2].startswith("2 captions are longer than the 16 tokens that the text tower reads, and cut, e.g. 'xxx")
    assert lines[3] == "1 caption is without anything that the tokenizer knows, e.g. '?'"
    assert lines[4].startswith("2 captions are of the same tokens as one of another text: the model cannot tell them apart, e.g. 'xxx")
    assert len(lines) == 5 and text_lines(found, measured=False)[0] == "5 different texts among 7 captions"


def test_equal_text_of_equal_tokens_is_no_finding_and_captions_without_any_say_nothing() -> None:
    found = text_record(CAPTIONS[:2], HASH_C[:2], {"model": CaptionTokens(16, np.zeros(2, int), np.zeros(2, bool), np.zeros(2, bool))})
    assert found["tokens"][0]["equal"]["num_captions"] == 0
    assert text_lines(text_record([*"abcdefg"], np.arange(7), {"model": tokens()})) == []


def test_stages_of_the_same_figures_are_one_and_others_are_named() -> None:
    same, other = tokens(cut="....xx"), tokens(unknown="......x")
    found = text_record(CAPTIONS, HASH_C, {"base": same, "tuned": same, "large": other}, gallery="different")
    assert [one["stages"] for one in found["tokens"]] == [["base", "tuned"], ["large"]]
    lines = text_lines(found)
    assert lines[0] == "5 different texts among 7 captions"  # which are ranked once already
    assert [line.partition(":")[0] for line in lines[2:]] == ["base, tuned", "large"]


def test_three_examples_at_most() -> None:
    captions = [f"text {number}" for number in range(12)]
    key_C = np.arange(12) // 2
    read = CaptionTokens(16, key_C, np.ones(12, bool), np.zeros(12, bool))
    (found,) = text_record(captions, np.arange(12), {"model": read})["tokens"]
    assert found["cut"]["examples"] == captions[:3] and found["equal"]["examples"] == [captions[0:2], captions[2:4], captions[4:6]]


def test_the_section_shows_the_other_gallery_on_page_and_terminal() -> None:
    values = {"R@1": 0.1, "R@5": 0.055, "R@10": 0.2, "median_rank": 43.0}
    other = {"gallery": "different", "num_captions": 5, "stages": {"<base>": dict.fromkeys(("image_to_text", "text_to_image"), values)}}
    section = texts_section(text_record(CAPTIONS, HASH_C, {"<base>": tokens()}), other)
    page = section.html()
    assert "&lt;base&gt;" in page and "5.50" in page and "43.0" in page and "different" in page
    lines = section_lines({"texts": section.record, "data": {}}, [TEXTS])
    assert lines[-2] == "gallery different (5 captions), <base>, image to text: R@1 10.00, R@5 5.50, R@10 20.00, median rank 43.0"
    assert not texts_section(text_record(CAPTIONS, HASH_C, {})).html().strip()
