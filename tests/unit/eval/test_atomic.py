"""eval/atomic.py: files and folders are replaced whole or not at all, an error names the file, and modes are as the umask says."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.atomic import apply_umask, remove_folder, replace_files, replaced_folder, sweep
from tests.shared_files import age, modes, umask


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


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A limit on the size of a file stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    one, other = tmp_path / "a.json", tmp_path / "b.bin"
    replace_files({one: "first é", other: b"\x00\xff"})
    assert one.read_text(encoding="utf-8") == "first é" and other.read_bytes() == b"\x00\xff"
    with largest_file(1000), pytest.raises(OSError) as caught:
        replace_files({one: "second", other: b"x" * 2000})
    assert caught.value.filename == str(other)
    assert one.read_text(encoding="utf-8") == "first é" and sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.bin"]


@pytest.mark.parametrize("what", ["safetensors", "text"])
def test_a_full_disk_names_the_folder_and_leaves_the_old_one(tmp_path: Path, what: str) -> None:
    with replaced_folder(tmp_path / "model") as folder:
        (folder / "old").write_text("x")
    with largest_file(1000), pytest.raises(OSError) as caught, replaced_folder(tmp_path / "model") as folder:
        if what == "text":
            (folder / "new").write_text("x" * 2000)
        else:
            save_file({"weight": torch.zeros(1000)}, folder / "model.safetensors")
    assert caught.value.filename == str(tmp_path / "model") and caught.value.errno is not None
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with replaced_folder(tmp_path / "model") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "b"]
    remove_folder(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_sweeping_brings_back_what_was_being_replaced_and_removes_the_rest(tmp_path: Path) -> None:
    for name in (".a.12.old", ".b.0f.old", ".a.34.tmp", ".c.56.tmp", "b", "mine.tmp", ".hidden.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        age(tmp_path / name)
    sweep(tmp_path, "a")
    assert (tmp_path / "a" / "file").read_text() == ".a.12.old" and not (tmp_path / ".a.34.tmp").exists()
    assert (tmp_path / ".b.0f.old").exists() and (tmp_path / ".c.56.tmp").exists(), "of other names"
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.tmp", "a", "b", "mine.tmp"]
    assert (tmp_path / "b" / "file").read_text() == "b", "it was replaced, and stays"


def test_a_file_that_two_write_at_once_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.f32"

    def write(temporary: Path) -> None:
        replace_files({path: "the same"})  # another writer comes and goes meanwhile
        temporary.write_text("the same")

    replace_files({path: write})
    assert path.read_text() == "the same" and os.listdir(tmp_path) == ["rows.f32"]
