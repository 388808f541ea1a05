"""What Pillow warns of a picture is one line of the command, with the picture's name."""

import json
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from eval.dataset import picture_warnings
from eval.dataset.images import ImageError, decode_image, picture_digest, picture_size, warnings_caught
from eval.dataset.picture_warnings import MOST_SAID, hand_up, said_once, taken
from eval.encoder.loader import block_loader
from eval.processes import Processes


def cut_exif(path: Path, num_bytes: int, side: int = 8) -> Path:
    """A JPEG whose EXIF block claims five entries of 12 bytes, of which the second has so many."""
    Image.new("RGB", (side, side), (10, 20, 30)).save(path, "JPEG")
    block = b"II*\0" + struct.pack("<LH", 8, 5) + struct.pack("<HHLL", 0x0112, 3, 1, 1) + b"\0" * num_bytes
    segment, plain = b"Exif\0\0" + block, path.read_bytes()
    path.write_bytes(plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:])
    return path


class Pictures(Dataset):  # type: ignore[type-arg]
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: int) -> int:
        return decode_image(self.paths[item]).width


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [cut_exif(tmp_path / f"{number}.jpg", number) for number in range(1, 4)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_picture_is_named_once_in_all_passes(paths: list[Path], num_workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    with said_once():
        for _ in range(2):
            assert list(block_loader(Pictures(paths), num_workers=num_workers)) == [8, 8, 8]
        decode_image(paths[0])
    told = "Corrupt EXIF data. Expecting to read 12 bytes but only got"
    expected = [f"warning: {path}: {told} {number}, decoded all the same" for number, path in enumerate(paths, 1)]
    assert [line for line in capfd.readouterr().err.splitlines() if line] == expected


def test_six_pictures_of_one_fault_are_five_lines_and_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a second command of the same process says it again
        with said_once():
            for number in range(MOST_SAID + 2):
                decode_image(cut_exif(tmp_path / f"{number}.jpg", 3))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == MOST_SAID + 1 and lines[-1].startswith("warning: 2 more picture(s) with such a warning")


def test_reading_the_header_alone_says_nothing(paths: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with said_once(), taken() as noted:
        assert picture_size(paths[0]) == (8, 8)
        with ThreadPoolExecutor(4) as threads:
            assert len(set(threads.map(picture_digest, paths))) == 3
    assert noted == [] and capsys.readouterr().err == ""


def test_a_picture_that_does_not_decode_has_its_error_alone(tmp_path: Path) -> None:
    path = cut_exif(tmp_path / "a.jpg", 1, side=64)
    path.write_bytes(path.read_bytes()[:-40])
    with taken() as noted, pytest.raises(ImageError, match="truncated"):
        decode_image(path)
    assert noted == []


def test_an_embedded_picture_has_the_name_of_its_row(paths: list[Path]) -> None:
    with taken() as noted:
        decode_image(paths[0].read_bytes(), named="m.parquet image 'a' (embedded)")
    assert [picture for picture, _ in noted] == ["m.parquet image 'a' (embedded)"]


def test_other_warnings_go_where_they_went(paths: list[Path]) -> None:
    with pytest.warns(UserWarning, match="mine"):
        decode_image(paths[0])
        warnings.warn("mine", stacklevel=1)


def test_the_main_process_says_what_the_others_met(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Two(Processes):
        sent = b""

        def gather(self, array: np.ndarray) -> list[np.ndarray]:
            Two.sent = array.tobytes() or Two.sent
            return [array[:0], np.frombuffer(Two.sent, dtype=np.uint8)]

    with said_once():
        monkeypatch.setenv("RANK", "1")
        picture_warnings.say([("a.jpg", "cut"), ("a.jpg", "cut")])
        hand_up(Two(rank=1, world_size=2))
        assert json.loads(Two.sent) == [["a.jpg", "cut"]] and capsys.readouterr().err == ""
    with said_once():
        monkeypatch.setenv("RANK", "0")
        hand_up(Two(rank=0, world_size=2))
        hand_up(Two(rank=0, world_size=2))
    assert capsys.readouterr().err.splitlines() == ["warning: a.jpg: cut, decoded all the same"]


def test_a_line_that_is_about_no_picture_is_said_once_as_it_is_and_counts_as_none(
    capsys: pytest.CaptureFixture[str]
) -> None:
    class Told(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, item: int) -> int:
            picture_warnings.tell("the disk is full")
            return item

    lines = [f"line {number}" for number in range(MOST_SAID + 2)]
    before = picture_warnings.num_noted()
    for _ in range(2):  # in a second command again
        with said_once():
            for num_workers in (0, 2):
                assert list(block_loader(Told(), num_workers=num_workers)) == [0, 1, 2, 3]
            for line in lines:
                picture_warnings.tell(line)
            assert picture_warnings.num_noted() == before
        assert capsys.readouterr().err.splitlines() == ["warning: the disk is full", *(f"warning: {line}" for line in lines)]


def test_pixels_are_those_without_the_fault(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "plain.jpg")
    with taken():
        assert np.array_equal(np.asarray(decode_image(cut_exif(tmp_path / "a.jpg", 2))), np.asarray(decode_image(tmp_path / "plain.jpg")))


def test_what_is_caught_in_what_is_caught() -> None:
    with warnings_caught() as outer:
        with warnings_caught() as inner:
            warnings.warn("a  b.", stacklevel=1)
        warnings.warn("c", stacklevel=1)
    assert (inner, outer) == (["a b"], ["c"])
