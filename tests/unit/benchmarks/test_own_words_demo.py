"""benchmarks/own_words_demo.py: what is held out, and the committed page is that of its reports."""

import pyarrow as pa

from benchmarks.demo_table import ROOT
from benchmarks.own_words_demo import held_out, page

KEPT = ROOT / "results" / "own-words"


def test_the_first_caption_is_held_out_and_the_others_ask() -> None:
    table = pa.table({"id": ["x", "y"], "captions": [["a", "b", "c"], ["d", "e"]], "split": ["val", "test"]})
    kept, paraphrases, additional = held_out(table)
    assert kept.to_pylist() == [{"id": "x", "captions": ["b", "c"], "split": "val"}, {"id": "y", "captions": ["e"], "split": "test"}]
    assert [(row["caption"], row["expansion"]) for row in paraphrases] == [("b", "a"), ("c", "a"), ("e", "d")]
    assert additional == [{"image": "x", "caption": "a"}, {"image": "y", "caption": "d"}]


def test_the_committed_page_is_that_of_its_reports() -> None:
    assert KEPT.with_suffix(".md").read_text(encoding="utf-8") == page(KEPT)
