"""Files that are none: only plain files are opened, and read to the size they had then."""

import os
import socket
from pathlib import Path

import pytest

from eval.errors import UserError
from eval.files import FileError, link_outside, open_plain, read_bytes, read_text, require_plain


def make(kind: str, path: Path) -> Path:
    """A file of a kind that is none."""
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a socket":
            with socket.socket(socket.AF_UNIX) as listening:
                here = os.open(".", os.O_RDONLY)
                os.chdir(path.parent)  # the name of a socket is short
                try:
                    listening.bind(path.name)
                finally:
                    os.fchdir(here)
                    os.close(here)
        case "a device":
            path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "a.jpg")
    for read in (require_plain, open_plain, read_text, lambda path: read_bytes(path, 10)):
        with pytest.raises(FileError, match=f"expected a plain file, found {kind}: '{path}'") as caught:
            read(path)
        assert isinstance(caught.value, UserError) and isinstance(caught.value, OSError) and caught.value.exit_code == 2


def test_a_file_is_what_it_holds_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\n")
    with open_plain(path) as file:
        with path.open("ab") as writer:
            writer.write(b"three\n" * 100_000)
        assert file.read() == b"one\r\ntwo\n"
    path.write_bytes(b"one\r\ntwo\n")
    with open_plain(path) as file:
        with path.open("ab") as writer:
            writer.write(b"three\n")
        assert list(file) == [b"one\r\n", b"two\n"]
    assert read_text(path) == path.read_text() and read_bytes(path, 100) == path.read_bytes()
    assert read_bytes("/proc/self/status", 100) == b""  # its size is 0


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # sparse: it has no bytes on the disk
    with pytest.raises(FileError, match="1,099,511,627,776 bytes, more than the 1,000 allowed"):
        read_bytes(tmp_path / "a", 1000)


def test_folders_and_nothing_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_plain(tmp_path / "none")


def test_where_a_link_leads(tmp_path: Path) -> None:
    root, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    for folder in (root / "sub", blobs, tmp_path / "other"):
        folder.mkdir(parents=True)
    for path in (root / "sub" / "in", blobs / "blob", tmp_path / "other" / "out"):
        path.write_bytes(b"x")
    links = {"inside": "sub/in", "blob": "../../blobs/blob", "out": str(tmp_path / "other" / "out"), "up": "../../../other/out"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    outside = str(tmp_path / "other" / "out")
    assert [link_outside(root / name, root) for name in links] == ["", "", outside, outside]
    assert link_outside(root / "sub" / "in", root) == ""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "blob").symlink_to("../models--a--b/blobs/blob")  # of another's cache
    assert link_outside(plain / "blob", plain) == str(blobs / "blob")
