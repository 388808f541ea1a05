"""The fixtures of the launch tests."""

from pathlib import Path

import pytest

from tests.integration.launch.house import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A copy of the top level, in a folder with a blank in its name, with a trainer that does as it is told."""
    folder = tmp_path / "the house"
    folder.mkdir()
    return House(folder)
