"""A gallery of drawn pictures, of which one is broken."""

import shutil
from pathlib import Path

import pytest

from tests.small_job import SmallWorld


@pytest.fixture(scope="session")
def photos(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 14 pictures, of which val-003.png does not decode."""
    folder = tmp_path_factory.mktemp("photos")
    for path in (small_world.manifest.parent / "pictures").glob("val-*.png"):
        shutil.copy(path, folder)
    (folder / "val-003.png").write_bytes((folder / "val-003.png").read_bytes()[:60])
    return folder
