"""Each format, written by the tool that people write it with, gives the same rows; docs/data.md lists these formats."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from eval.dataset.retrieval_set import load_split
from eval.manifest.manifest import Manifest, left_out_line, read_manifest
from tests.unit.eval.manifest.written_formats import FORMATS, Format, Written, table

DATA_PAGE = Path(__file__).parents[4] / "docs" / "data.md"
WRITTEN = [pytest.param(form, write, id=f"{form.name}-{write.__name__}") for form in FORMATS for write in form.writers]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def contents(manifest: Manifest) -> dict[tuple[str | None, tuple[int, int, int]], list[str]]:
    """(split, colour) -> captions; each picture is decoded."""
    found = {}
    for split in manifest.splits:
        dataset = load_split(manifest, split)
        offsets = dataset.caption_offsets
        for image in range(dataset.num_images):
            colour = dataset.load_image(image).getpixel((0, 0))
            assert (split, colour) not in found
            found[split, colour] = list(dataset.captions[int(offsets[image]) : int(offsets[image + 1])])
    return found


@pytest.mark.parametrize(("form", "write"), WRITTEN)
def test_each_format_gives_the_same_rows(form: Format, write: Callable[[Path], Written], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    written = write(tmp_path / "data")
    manifest = read_manifest(written.source, image_root=written.image_root)
    assert contents(manifest) == written.expected
    if form.name == "img2dataset":
        assert [why for _, why in manifest.rows.left_out] == ["failed_to_download: HTTP Error 404: Not Found"]
        line = left_out_line(manifest.source, manifest.rows)
        assert "1 row(s) are left out: 1 x failed_to_download: HTTP Error 404: Not Found (first: " in line
        assert "00001.parquet row 2)" in line
    else:
        assert list(manifest.rows.left_out) == []


def test_the_data_page_opens_with_these_formats() -> None:
    assert table() in DATA_PAGE.read_text(encoding="utf-8").split("\n## ")[0]
