"""report.html as people use it: axe-core finds nothing in it at any size, in light and dark; filters, folds and contents work; its size."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.choices.report import CHOICES, ShownChoice
from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage
from eval.metrics.evaluate import evaluate
from eval.report.calibration import CALIBRATION
from eval.report.gallery import gallery, thumbnail
from eval.report.page.about import About
from eval.report.report import write_report
from eval.report.section import Section
from tests.browser import LOOKS, Tab, browser, needs_axe, needs_browser
from tests.unit.eval.report.test_calibration import record as calibration_record
from tests.unit.eval.report.test_choices import choice_record, watch_record
from tests.unit.eval.reranked_set import first_stage, picture_set, reranked
from train.siglip.watch import RETENTION


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a part of every kind."""
    folder = tmp_path_factory.mktemp("page")
    dataset = picture_set(folder, num_images=12, side=24)
    base, tuned = first_stage(dataset), first_stage(dataset, "tuned", 0.4, seed=2)
    figures = evaluate(dataset, [base, tuned, reranked(dataset, tuned)], [("tuned", "base"), ("tuned+blip", "tuned")])
    Image.new("RGB", (600, 300)).save(folder / "curves.png")
    example = ShownChoice("one", "order", "fixed", [thumbnail(Image.new("RGB", (9, 9)))], [("a", True), ("b", False)], {"base": False})
    sections = [
        Section(CALIBRATION, calibration_record()),
        Section(RETENTION, [watch_record(True)]),
        Section(CHOICES, [choice_record()], [[example]]),
    ]
    told = {"tuned": "checkpoint of step 4, chosen on val"}
    about = About(title="a run", chosen=told, words={("tuned", "base"): "Tuning"}, command="./launch.sh", curves=folder / "curves.png")
    return write_report(folder / "out", figures, sections, gallery=gallery(dataset, figures), about=about) / "report.html"


@pytest.fixture(scope="module")
def tab(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def go(tab: Tab, page: Path, width: int = 1280, is_dark: bool = False, place: str = "") -> None:
    tab.go("about:blank")
    tab.go(page.as_uri() + place, width=width, is_dark=is_dark)
    tab.wait_for("document.readyState === 'complete' && document.querySelector('main')")


@needs_axe
@pytest.mark.parametrize(("width", "is_dark"), LOOKS)
def test_axe_finds_nothing_and_nothing_is_scrolled_sideways(tab: Tab, page: Path, width: int, is_dark: bool) -> None:
    go(tab, page, width, is_dark)
    tab.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.violations() == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    edge = "Math.max(...[...document.querySelectorAll('#summary td:nth-child(2)')].map(one => one.getBoundingClientRect().right))"
    assert tab.value(edge) <= width, "the verdicts are in sight"


@needs_browser
def test_filters_show_what_fits(tab: Tab, page: Path) -> None:
    go(tab, page)
    shown = "[...document.querySelectorAll('.query:not([hidden])')]"

    def choose(name: str, value: str) -> None:
        tab.value(f"document.querySelector('[name={name}]').value = {json.dumps(value)}")
        tab.value(f"document.querySelector('[name={name}]').dispatchEvent(new Event('input', {{bubbles: true}}))")

    assert tab.value(f"{shown}.length") == 8, "four of each step"
    every = tab.value("document.querySelectorAll('.query').length")
    while not tab.value("document.querySelector('.more').hidden"):
        tab.value("document.querySelector('.more').click()")
    assert tab.value(f"{shown}.length") == every > 8
    choose("bin", "fixed")
    choose("direction", "text_to_image")
    found = tab.value(f"{shown}.map(one => one.dataset.bin + ' ' + one.dataset.direction)")
    assert found and set(found) == {"fixed text_to_image"}
    choose("words", "no such words")
    assert tab.value(f"{shown}.length") == 0
    assert tab.value("document.querySelector('.found').textContent") == "0 of 0 queries that fit are shown"


@needs_browser
def test_a_link_of_the_contents_unfolds_its_part(tab: Tab, page: Path) -> None:
    go(tab, page, width=390)
    assert tab.value("document.querySelector('.contents').open") is False, "on a phone they are a menu"
    tab.value("document.querySelector('.contents summary').click()")
    tab.value("document.querySelector('.contents a[href=\"#slices\"]').click()")
    tab.wait_for("document.getElementById('slices').open && !document.querySelector('.contents').open")
    missing = "[...document.querySelectorAll('.contents a')].filter(one => !document.querySelector(one.getAttribute('href'))).length"
    assert tab.value(missing) == 0
    go(tab, page, place="#all-comparisons")
    tab.wait_for("document.getElementById('all-comparisons').open")
    assert tab.value("document.querySelector('.contents').open") is True


class Photos(RetrievalSet):
    """A set whose pictures are made when they are asked for: smooth shapes with some noise, as a photograph has."""

    def load_image(self, image: int) -> Image.Image:
        """One of 640 x 480 pixels."""
        draws = np.random.default_rng(image)
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        return Image.fromarray(np.clip(np.asarray(coarse) + draws.normal(0, 12, (480, 640, 3)), 0, 255).astype(np.uint8))


@pytest.mark.slow
def test_a_report_of_5000_images_stays_under_2_mb(tmp_path: Path) -> None:
    """What others see of the budget in short: tests/unit/eval/report/test_gallery.py."""
    captions = [[f"a photograph of what number {number} shows, told in words {k}" for k in range(2)] for number in range(5000)]
    images = [ManifestImage(f"photo-{n:05d}", "test", Path("x"), None, 1, None, texts, "here") for n, texts in enumerate(captions)]
    dataset = Photos(images, None, source="made", split="test")
    base, tuned = first_stage(dataset), first_stage(dataset, "tuned", 0.6, seed=2)
    figures = evaluate(dataset, [base, tuned, reranked(dataset, tuned, top_k=4)], [("tuned", "base"), ("tuned+blip", "tuned")])
    shown = gallery(dataset, figures)
    assert len(shown.queries) == 40 and len(shown.pictures) > 100
    assert (write_report(tmp_path, figures, gallery=shown) / "report.html").stat().st_size < 2_000_000
