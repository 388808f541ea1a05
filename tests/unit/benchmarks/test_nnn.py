"""results/nnn.md is the page of results/nnn.json, and its intervals are those of the differences."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.nnn import page, rows_of

RESULTS = Path(__file__).parents[3] / "results"


def test_the_page_is_that_of_its_figures() -> None:
    found = json.loads((RESULTS / "nnn.json").read_text(encoding="utf-8"))
    assert page(found) == (RESULTS / "nnn.md").read_text(encoding="utf-8")


def test_rows_are_means_over_seeds_with_both_intervals() -> None:
    """Two seeds, four images of one query each: +1 and 0 images in one direction, nothing in the other."""
    nothing = {"plain": 0.5, "nnn": 0.5, "sums_I": [0.0] * 4, "counts_I": [1.0] * 4}
    gain = {"plain": 0.25, "nnn": 0.5, "sums_I": [1.0, 0, 0, 0], "counts_I": [1.0] * 4}
    rows = rows_of([{"image_to_text": gain, "text_to_image": nothing}, {"image_to_text": nothing, "text_to_image": nothing}])
    assert (rows["image_to_text"]["delta"], rows["text_to_image"]["delta"], rows["both"]["delta"]) == (0.125, 0.0, 0.0625)
    half = 12.7062 * np.std([0.25, 0.0], ddof=1) / np.sqrt(2)
    assert rows["image_to_text"]["ci95_seeds"] == pytest.approx((0.125 - half, 0.125 + half), abs=1e-4)
    assert rows["image_to_text"]["ci95_images"] == [0.0, 0.375] and rows["both"]["ci95_images"] == [0.0, 0.1875]
