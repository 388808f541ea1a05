"""The checkpoint that the name of a run stands for."""

from pathlib import Path

import pytest

from eval.errors import UserError
from eval.manifest.run_data import exported


def test_a_run_stands_for_its_export_and_anything_else_for_itself(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="has no export yet: end the run"):  # and the hub is not asked for a model of this name
        exported(str(tmp_path))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()
    assert exported(str(tmp_path)) == str(tmp_path / "export")
    assert exported(str(tmp_path / "export")) == str(tmp_path / "export")
    assert exported("google/siglip-base-patch16-224") == "google/siglip-base-patch16-224"
