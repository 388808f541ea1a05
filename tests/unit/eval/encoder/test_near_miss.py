"""eval/encoder/near_miss.py: a name that leads to no model names the folder that was perhaps meant."""

from pathlib import Path

import pytest

from eval.encoder.checkpoint import load_siglip_config
from eval.encoder.near_miss import meant
from eval.errors import SettingError
from rerank.scorers.supported import check_cross_encoder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs/captions/export, from where the commands are called."""
    export = tmp_path / "runs" / "captions" / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["runs/caption/export", "runs/captions", "runs/captons", "run/captions/exprot", "./runs/captions/"])
def test_a_run_without_export_and_a_typing_error_name_the_export(runs: Path, name: str) -> None:
    assert meant(name) == " Did you mean runs/captions/export?"
    assert meant(str(runs.parent / name)) == f" Did you mean {runs}/captions/export?"
    for check in (load_siglip_config, check_cross_encoder):
        with pytest.raises(SettingError, match=r"Did you mean runs/captions/export\?$"):
            check(name)


def test_a_path_as_seen_from_the_repository_is_named_whole(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = runs.parent
    inner = root / "photos"
    inner.mkdir()
    monkeypatch.chdir(inner)
    monkeypatch.setattr("eval.encoder.near_miss._ROOT", root)
    assert meant("runs/captions/export") == f" Did you mean {root}/runs/captions/export?"


@pytest.mark.parametrize("name", ["", "google/siglip-base", "runs/other/export", "/no/such"])
def test_nothing_is_named_that_is_not_near(runs: Path, name: str) -> None:
    assert meant(name) == ""
