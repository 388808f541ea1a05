"""eval/atomic.py: files and folders are replaced whole or not at all, an error names the file, and modes are as the umask says."""

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from eval import atomic
from eval.atomic import (
    apply_umask,
    check_writable,
    claimed,
    contents,
    new_folder,
    remove_folder,
    replace_files,
    replaced_folder,
    sweep,
)
from eval.command import run_command
from eval.errors import WriteError
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


def test_leftovers_are_swept_only_of_dead_writers(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        for name, pid in (("alive", other.pid), ("own", os.getpid())):
            (tmp_path / f".{name}.{atomic._host()}{pid:08x}{atomic._started(pid):016x}{'0' * 8}.tmp").touch()
        reused = f"{atomic._host()}{other.pid:08x}{atomic._started(other.pid) - 1:016x}{'0' * 8}"
        (tmp_path / f".reused.{reused}.tmp").touch()  # its writer is dead, and another process has its number
        for name in ("elsewhere", "elsewhere-long-ago"):
            (tmp_path / f".{name}.{'0' * 40}.tmp").touch()
        age(tmp_path / f".elsewhere-long-ago.{'0' * 40}.tmp")
        sweep(tmp_path)
        assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir()) == ["alive", "elsewhere", "own"]
        other.kill()
        other.wait()
        sweep(tmp_path)
        assert sorted(path.name.split(".")[1] for path in tmp_path.iterdir()) == ["elsewhere", "own"]
        sweep(tmp_path, is_alone=True)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    for name in ("a", "b"):
        with replaced_folder(tmp_path / "model") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "b"]
    monkeypatch.setattr(atomic, "remove", lambda path: None)  # killed before the old one is removed
    with replaced_folder(tmp_path / "model") as folder:
        (folder / "c").write_text("c")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["c"] and len(list(tmp_path.glob(".model.*.old"))) == 1


def test_a_claim_holds_across_processes_within_one_it_nests_and_it_leaves_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from eval.atomic import claimed\nwith claimed(Path(sys.argv[1])): print('had it')"
    target = tmp_path / "made" / "deep" / "it"

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, cwd=Path(__file__).parents[3])
        return done.stdout + done.stderr

    with claimed(target):
        with claimed(target):
            pass
        assert f"{target} is being written by process {os.getpid()} on {socket.gethostname()}; wait for it" in other()
        assert os.listdir(target.parent) == [".it.lock"]
    assert list(tmp_path.iterdir()) == [], "nothing was written: neither the lock nor the folders made for it stay"
    assert other() == "had it\n"


def test_without_file_locks_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with claimed(tmp_path / "it"):
        assert "no file locks here (No locks available); nothing keeps a second writer away" in capsys.readouterr().err


FAILURES = {
    "quota": (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "Make room there"),
    "read-only": (OSError(errno.EROFS, os.strerror(errno.EROFS)), "Mend its permissions"),
    "permission": (OSError(errno.EACCES, os.strerror(errno.EACCES)), "Mend its permissions"),
    "safetensors": (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "Make room there"),
    "tokenizers": (Exception("No space left on device (os error 28)"), "Make room there"),
    "pyarrow": (pa.ArrowException("Error writing bytes to file. Detail: [errno 28] No space left on device"), "Make room there"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_every_library_s_failed_write_ends_a_command_with_4_and_names_the_file(
    failure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error, remedy = FAILURES[failure]

    def write(temporary: Path) -> None:
        temporary.write_text("half of")
        raise error

    assert run_command(lambda: replace_files({tmp_path / "it": write}), loads_models=False) == 4
    said = capsys.readouterr().err
    assert "could not write" in said and f"'{tmp_path / 'it'}'" in said and remedy.lower() in said
    if remedy == "Make room there":
        assert "(7 bytes of it were written, " in said and " are free)" in said
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "folder"

    def write_folder() -> None:
        with replaced_folder(folder, num_bytes=1234) as temporary:
            write(temporary / "model.safetensors")

    assert run_command(write_folder, loads_models=False) == 4
    said = capsys.readouterr().err
    assert f"'{folder}'" in said and list(tmp_path.iterdir()) == []
    if remedy == "Make room there":
        assert "(1,234 bytes were to be written, 7 bytes of it were written, " in said


@pytest.mark.parametrize("fault", ["a folder of its name", "a file in its way", "permission"])
def test_what_could_not_be_written_is_refused_before_the_work(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out" / "deep" / "report.json"
    check_writable(path)
    assert list(tmp_path.iterdir()) == []
    if fault == "a folder of its name":
        path.mkdir(parents=True)
    elif fault == "a file in its way":
        (tmp_path / "out").touch()
    else:  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(WriteError, match="could not write"):
        check_writable(path)


def test_what_a_desktop_puts_into_a_folder_is_nobody_s(tmp_path: Path) -> None:
    for name in (".DS_Store", "._model.safetensors", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    assert contents(tmp_path) == []
    (tmp_path / ".hidden").touch()
    assert contents(tmp_path) == [".hidden"]
    (tmp_path / ".hidden").unlink()
    with new_folder(tmp_path) as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path) == ["file"]
