"""benchmarks/screenshots.py: what it needs of a run, and how small its pictures are; the pages themselves are tested elsewhere."""

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.screenshots import MOST_BYTES, PAGES, RunPlaces, main, small
from eval.errors import UserError


def a_run(folder: Path, **config: object) -> Path:
    (folder / "export").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_commands_get_the_pictures_of_the_test_split_and_the_reranker(tmp_path: Path) -> None:
    data = {"source": "pairs.csv", "image_root": "photos", "columns": {"image": "file", "caption": "words"}, "test_split": "held-out"}
    run = RunPlaces.of(a_run(tmp_path / "run", data=data, rerank={"model": "blip"}))
    expected = "--images pairs.csv --image-root photos --column image=file --split held-out --rerank blip"
    assert run.pictures() == expected.split()


@pytest.mark.parametrize(("rerank", "told"), [(None, "this run has no reranker"), ({}, "this run has no reranker")])
def test_a_run_that_cannot_be_shown_is_refused(tmp_path: Path, rerank: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        RunPlaces.of(a_run(tmp_path / "run", data={}, rerank=rerank))
    with pytest.raises(UserError, match="expected a finished run"):
        RunPlaces.of(tmp_path)


def test_pictures_are_small_whatever_they_show() -> None:
    """Noise is the worst case: it ends at the lowest quality, and stays readable as WebP."""
    for shown in (np.zeros((800, 1280, 3)), np.random.default_rng(0).integers(0, 256, (300, 390, 3))):
        buffer = io.BytesIO()
        Image.fromarray(shown.astype(np.uint8)).save(buffer, "PNG")
        made = small(buffer.getvalue())
        with Image.open(io.BytesIO(made)) as image:
            assert (image.format, image.size) == ("WEBP", shown.shape[1::-1]) and len(made) <= MOST_BYTES


def test_a_page_that_cannot_be_made_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.screenshots.CHROMIUM", tmp_path)
    run = a_run(tmp_path / "run", data={}, rerank={"model": "blip"})
    assert main([str(run), "--folder", str(tmp_path / "out"), "--pages", "report"]) == 1
    assert "report: not taken: there is no report.html" in capsys.readouterr().err
    assert list(PAGES) == ["report", "mining", "compare", "rerank", "explore"]
