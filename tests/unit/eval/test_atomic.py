"""eval/atomic.py: files of a finished folder are as open as the umask says, whatever wrote them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.atomic import apply_umask
from tests.shared_files import modes, umask


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_gets_what_the_umask_leaves(tmp_path: Path, mask: int, expected: int) -> None:
    with umask(mask):
        (tmp_path / "below").mkdir()
        save_file({"weight": torch.zeros(1)}, tmp_path / "below" / "model.safetensors")
        for name, mode in (("closed", 0o400), ("open", 0o777)):
            (tmp_path / name).touch()
            (tmp_path / name).chmod(mode)
        apply_umask(tmp_path)
    assert modes(tmp_path) == {expected}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["below", "closed", "open"]


def test_what_a_link_names_elsewhere_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "elsewhere").touch(mode=0o600)
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "elsewhere")
    apply_umask(tmp_path / "folder")
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o600
