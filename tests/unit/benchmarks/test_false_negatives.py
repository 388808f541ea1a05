"""results/false-negatives.md: its shares follow from its counts, no known positive was mined, and denoising does what is asked of it."""

import math
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "results" / "false-negatives.md"
SECTIONS = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
GROUPED = {
    "no rules, no groups": "no groups, BLIP denoising",
    "group information": "groups, BLIP denoising",
    "groups, all but denoising": "groups, all",
}
TRAIN_IMAGES, PER_IMAGE = 2024, 4


def rows(section: str, num_cells: int) -> dict[str, list[float]]:
    """Cells of the section's tables with so many columns, by their first."""
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")] if line.startswith("| ") else []
        if len(cells) == num_cells and re.fullmatch(r"[\d.,]+", cells[-1]):
            found[cells[0]] = [float(cell.replace(",", "").replace("-", "nan")) for cell in cells[1:]]
    return found


@pytest.mark.parametrize("section", SECTIONS, ids=[section.split("\n")[0] for section in SECTIONS])
def test_the_page_says_what_its_counts_say(section: str) -> None:
    systems = rows(section, 8)
    assert len(systems) == 12
    for mined, missing, false, share, estimated, scored, positives in systems.values():
        assert mined + missing == TRAIN_IMAGES * PER_IMAGE and positives == 0
        assert share == pytest.approx(100 * false / mined, abs=0.005) and (scored == 0 or scored >= mined)
        assert math.isnan(estimated) == (scored == 0)  # without BLIP nothing is guessed
    pairs = rows(section, 3)
    assert len(pairs) == 3
    for without, (left, kept) in pairs.items():
        with_ = GROUPED[without]
        (mined, _, false, *_), (all_mined, _, all_false, *_) = systems[with_], systems[without]
        assert left == pytest.approx(100 * false / max(1, all_false), abs=0.05)
        assert kept == pytest.approx(100 * (mined - false) / (all_mined - all_false), abs=0.05)
        assert left <= 20 and kept >= 50  # a fifth of the false negatives, half of the true ones
