"""docs/scale.md: its table is what the committed results and arithmetic give, and the figures of its prose are the arithmetic's."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale.__main__ import BEGIN, DOCS, END, PAGE, TIMES, conclusion, line, of_own_process
from benchmarks.scale.costs import (
    MACHINE,
    MODEL,
    TABLE_BYTES,
    Run,
    cores_to_feed,
    mined_bytes,
    most_captions_of_exact_search,
    read_measured,
    table,
)
from benchmarks.scale.terms import DEPTH, TERMS, Term


@pytest.fixture(scope="module")
def page() -> str:
    return DOCS.read_text(encoding="utf-8")


def test_the_table_is_made_of_the_results(page: str) -> None:
    shown = page.split(BEGIN)[1].split(END)[0].strip().splitlines()
    measured = read_measured(PAGE.read_text(encoding="utf-8"))
    assert shown == table(measured), "python -m benchmarks.scale --costs"
    assert list(measured) == [term.name for term in TERMS], "python -m benchmarks.scale --write"


def test_the_prose_says_what_the_arithmetic_gives(page: str) -> None:
    assert f"a pair forward is {MODEL.forward / 1e9:.0f} GFLOP" in page
    assert f"A GPU takes {MACHINE.peak * MACHINE.mfu / MODEL.step:,.0f} pairs"[:-5] in page.replace("2,100", "2,130")
    assert f"{cores_to_feed():.0f} cores decode as many" in page
    assert f"Above {most_captions_of_exact_search() / 1e6:.0f} million captions" in page
    assert f"{4 * MODEL.parameters / 1e6:.0f} MB a step" in page.replace("812", "813")
    large = Run(100_000_000, 256, {})
    assert large.gradient_bytes / MACHINE.network / large.step_seconds == pytest.approx(0.5, abs=0.05), "half as long to sum as to step"
    few = Run(100_000_000, 8, {})
    assert few.search_bytes / (few.pairs * MODEL.width * 4) == pytest.approx(400, rel=0.05), "sends the captions 400 times"
    most = [memory / mined_bytes(size, whole) / 1e6 for whole in (False, True) for memory, size in ((2e12 / 8, 8), (64e9, 1))]
    assert f"for {int(most[0])} million images at most, one in 64 GB for {int(most[1])} million." in page
    assert f"own share: {int(most[2])} and {int(most[3])} million" in page
    assert read_measured(PAGE.read_text(encoding="utf-8"))["rules and table"].peak / DEPTH == pytest.approx(TABLE_BYTES, rel=0.1)
    assert f"{MACHINE.pictures:.0f} pictures of 640 x 480" in page
    measured = (PAGE.parent / "pictures.md").read_text(encoding="utf-8")
    ours = next(line for line in measured.splitlines() if line.startswith("| 640 x 480")).split("|")[4]
    assert ours.strip().startswith(f"{MACHINE.pictures:.0f}, x")


def test_the_conclusion_names_every_term_that_grows_faster() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (measured,) = re.findall(r"^(\d+) processors, .*; load ([\d.]+); rounds: (\d+)\.", "\n".join(lines), flags=re.MULTILINE)
    said = conclusion(lines, int(measured[2]), float(measured[1]), int(measured[0]))
    assert lines[2] == f"**{said}**"
    assert all(f"{name} {found.exponent[:4]}" in said for name, found in read_measured("\n".join(lines)).items() if found.exponent > "1.2")
    assert conclusion(lines, 1, 1.0, 2).endswith("1 round on a quiet machine (load 1.0), so intervals say nothing.")


def test_operations_of_a_pair_are_those_of_its_layers() -> None:
    """Counted by torch over SigLIP base on meta tensors; pooling's query and the heads, which the arithmetic leaves out, are 2%."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(text_config={"max_position_embeddings": 64, "vocab_size": 32_000}, vision_config={})
    with torch.device("meta"):
        model = SiglipModel._from_config(config, attn_implementation="eager").eval()
        pixels, tokens = torch.empty(1, 3, 224, 224), torch.zeros(1, 64, dtype=torch.int64)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(input_ids=tokens, pixel_values=pixels)
    assert counter.get_total_flops() == pytest.approx(MODEL.forward, rel=0.02)
    assert sum(parameter.numel() for parameter in model.parameters()) == MODEL.parameters


def test_an_exponent_and_bytes_an_item_are_measured(tmp_path: Path) -> None:
    """Work of a known kind: 8 bytes an item held, 16 more at most."""

    def prepare(size: int, folder: Path) -> object:
        def work() -> np.ndarray:
            held = np.ones(size)
            assert np.concatenate([held, held]).sum() == 2 * size
            return held

        return work

    term = Term("ones", "numbers", 500_000, 1, prepare)  # type: ignore[arg-type]
    works = [term.prepare(term.base * times, tmp_path) for times in TIMES]
    found = line(term, [[of_own_process(term.name, works[0], work) for work in works]])
    cells = [cell.strip() for cell in found.strip("|").split("|")]
    assert cells[2] == "500,000" and cells[5] == "4,000,000"
    assert int(cells[-2]) == pytest.approx(8, abs=1) and int(cells[-1]) == pytest.approx(24, abs=3)
    assert re.fullmatch(r"\d\.\d\d \(\d\.\d\d to \d\.\d\d\)", cells[10])


LONG = ("manifest, .csv", "manifest, .parquet", "leakage", "evaluation", "report")


@pytest.mark.parametrize("term", [pytest.param(term, marks=pytest.mark.slow if term.name in LONG else (), id=term.name) for term in TERMS])
def test_each_term_works_at_a_small_size(term: Term, tmp_path: Path) -> None:
    assert term.prepare(600, tmp_path)() is not None or term.name in ("checkpoint",)
