"""eval/dataset/pixel_cache.py: the bytes of pictures resized before, whatever happens to file, folder, disk or process."""

import errno
import fcntl
import io
import multiprocessing
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from eval.dataset import pixel_cache
from eval.dataset.images import ImageError
from eval.dataset.pixel_cache import PixelCache, PixelStore
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.encoder.inputs import PictureBytes
from eval.manifest.manifest import read_manifest

SIDE, GIB = 16, 2**30
PICTURE_BYTES = 3 * SIDE * SIDE
READ = PictureBytes(SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}))


def encoded(number: int) -> bytes:
    """A picture of 24 x 18 pixels as PNG; no two numbers are alike."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (18, 24, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def resized(number: int) -> np.ndarray:
    """What the processor makes of it."""
    picture = Image.open(io.BytesIO(encoded(number))).convert("RGB")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def write(path: Path, content: bytes, age_seconds: float = 100) -> None:
    path.write_bytes(content)
    changed = path.stat().st_mtime - age_seconds
    os.utime(path, (changed, changed))


def of_files(folder: Path, number: int = 6) -> RetrievalSet:
    folder.mkdir()
    for place in range(number):
        write(folder / f"{place}.png", encoded(place))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{place}.png,a picture {place}\n" for place in range(number)))
    return load_split(read_manifest(folder / "pairs.csv"), None)


def of_parquet(folder: Path, number: int = 6) -> RetrievalSet:
    folder.mkdir()
    rows = [{"image": {"bytes": encoded(place), "path": f"{place}.png"}, "caption": f"a picture {place}"} for place in range(number)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet")
    return load_split(read_manifest(folder / "pairs.parquet"), None)


def of_shard(folder: Path, number: int = 6) -> RetrievalSet:
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as shard:
        for place in range(number):
            for name, content in ((f"{place}.png", encoded(place)), (f"{place}.txt", f"a picture {place}".encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))
    return load_split(read_manifest(folder), None)


SOURCES = {"files": of_files, "parquet": of_parquet, "shard": of_shard}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_second_run_gets_the_same_bits_and_decodes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))  # shards have an index there too
    dataset, places = SOURCES[kind](tmp_path / "data"), [5, 0, 3, 1, 4, 2]
    expected = {place: READ.read(dataset.load_image(place)) for place in places}
    assert {place: pixels.numpy().tobytes() for place, pixels in expected.items()} == {
        place: resized(int(dataset.captions[place].split()[-1])).tobytes() for place in places
    }
    first = READ.reader(dataset, PixelStore(0.001))
    assert all(torch.equal(first(place), expected[place]) for place in places)
    monkeypatch.setattr(dataset, "load_image", lambda image: pytest.fail("decoded"))
    store = PixelStore(0.001)
    second = READ.reader(dataset, store)
    assert all(torch.equal(second(place), expected[place]) for place in reversed(places))
    assert second(0).dtype == torch.uint8 and second(0).shape == (3, SIDE, SIDE)
    assert "holds 6 of at most" in store.lines()[0]


def test_a_file_that_was_replaced_is_read_anew_and_one_that_changed_a_moment_ago_is_not_cached(tmp_path: Path) -> None:
    dataset, store = of_files(tmp_path / "data"), PixelStore(0.001, tmp_path / "cache")
    read = READ.reader(dataset, store)
    assert np.array_equal(read(2).numpy(), resized(2))
    write(Path(dataset.path(2)), encoded(77), age_seconds=50)
    assert np.array_equal(read(2).numpy(), resized(77))
    write(Path(dataset.path(3)), encoded(78), age_seconds=0)
    assert np.array_equal(read(3).numpy(), resized(78)) and dataset.picture_key(3) is None
    write(Path(dataset.path(3)), encoded(79), age_seconds=0)
    assert np.array_equal(read(3).numpy(), resized(79))


def test_a_picture_that_does_not_decode_is_an_error_each_time(tmp_path: Path) -> None:
    dataset = of_files(tmp_path / "data")
    write(Path(dataset.path(1)), encoded(1)[:-40])
    os.unlink(dataset.path(2))
    read = READ.reader(dataset, PixelStore(0.001, tmp_path / "cache"))
    for place in (1, 2, 1, 2):
        with pytest.raises(ImageError, match=f"{place}.png"):
            read(place)


def test_a_picture_with_a_warning_is_decoded_and_warned_of_in_every_run(tmp_path: Path) -> None:
    dataset, file = of_files(tmp_path / "data"), io.BytesIO()
    palette = Image.open(io.BytesIO(encoded(1))).convert("P")
    palette.save(file, "PNG", transparency=bytes(range(256)))  # of which Pillow warns when it is asked for RGB
    write(Path(dataset.path(1)), file.getvalue())
    with pixel_cache.taken() as noted:
        for _ in range(2):
            read = READ.reader(dataset, PixelStore(0.001, tmp_path / "cache"))
            read(0), read(1)
    decoded = []
    for _ in range(2):
        with pixel_cache.taken() as once:
            dataset.load_image(1)
        decoded += once
    assert noted == decoded


def cache(folder: Path, num_pictures: int = 64) -> PixelCache:
    """A file with room for so many pictures."""
    folder.mkdir(exist_ok=True)
    return PixelCache(folder / "some.pixels", PICTURE_BYTES, num_pictures * (PICTURE_BYTES + 32))


def key(number: int) -> bytes:
    return np.random.default_rng(number).bytes(16)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, PICTURE_BYTES, dtype=np.uint8)


def in_child(act: Callable[[], object]) -> int:
    """The exit code of a process that does this."""
    child = multiprocessing.get_context("fork").Process(target=act)
    child.start()
    child.join(30)
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("written", [1, 2, 3])
def test_a_process_killed_half_way_leaves_no_picture(written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over an older picture there are three writes: the entry emptied, the bytes, the entry."""
    held = cache(tmp_path, 8)
    for number in range(8):
        held.put(key(number), pixels(number))
    held = cache(tmp_path, 8)
    held._began += 10  # another run, later: what is there may give way
    real, calls = os.pwrite, []

    def killing(*arguments: object) -> int:
        calls.append(arguments)
        if len(calls) == written:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", killing)
    assert in_child(lambda: held.put(key(99), pixels(99))) == -signal.SIGKILL
    monkeypatch.setattr(os, "pwrite", real)
    after = cache(tmp_path, 8)
    with pixel_cache.taken() as noted:
        assert after.get(key(99)) is None
        found = [after.get(key(number)) for number in range(8)]
    assert sum(one is None for one in found) == (0 if written == 1 else 1) and not noted
    assert all(np.array_equal(one, pixels(number)) for number, one in enumerate(found) if one is not None)
    after._began += 10
    after.put(key(99), pixels(99))
    assert np.array_equal(after.get(key(99)), pixels(99))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["bytes", "checksum", "length", "cut"])
def test_damage_is_said_once_and_made_good(part: str, tmp_path: Path) -> None:
    held = cache(tmp_path, 8)
    held.put(key(1), pixels(1))
    with held.path.open("r+b") as file:
        content = bytearray(file.read())
        place = next(place for place in range(8) if content[32 * place : 32 * place + 16] == key(1))
        at = {"bytes": 8 * 32 + place * PICTURE_BYTES + 5, "checksum": 32 * place + 16, "length": 32 * place + 23}.get(part)
        if at is None:
            file.truncate(8 * 32 + place * PICTURE_BYTES + 7)
        else:
            content[at] ^= 64
            file.seek(0)
            file.write(content)
    with pixel_cache.taken() as noted:
        assert held.get(key(1)) is None and held.get(key(1)) is None
    assert noted == [("", f"{held.path}: what it holds of a picture is damaged, and made again")]
    held.put(key(1), pixels(1))
    assert np.array_equal(held.get(key(1)), pixels(1))  # type: ignore[arg-type]


def test_processes_fill_it_at_the_same_time(tmp_path: Path) -> None:
    """As many pictures as there are places, each put by three processes of four in orders of their own."""

    def fill(worker: int) -> None:
        own = cache(tmp_path)
        for number in np.random.default_rng(worker).permutation(64).tolist():
            if number % 4 != worker:
                own.put(key(number), pixels(number))
            found = own.get(key(number))
            assert found is None or np.array_equal(found, pixels(number))

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    held = cache(tmp_path)
    found = [held.get(key(number)) for number in range(64)]
    assert all(one is None or np.array_equal(one, pixels(number)) for number, one in enumerate(found))
    assert sum(one is not None for one in found) >= 48


def test_what_does_not_fit_is_left_out_until_a_later_run_needs_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_cache, "time", SimpleNamespace(time=lambda: 1e9))
    held = cache(tmp_path, 64)
    for number in range(200):
        held.put(key(number), pixels(number))
    there = {number for number in range(200) if held.get(key(number)) is not None}
    assert 56 <= len(there) <= held.capacity == 64 and max(there) > 64
    assert held.path.stat().st_blocks * 512 <= held.path.stat().st_size + 4096 <= 64 * (PICTURE_BYTES + 32) + 4096
    monkeypatch.setattr(pixel_cache, "time", SimpleNamespace(time=lambda: 1e9 + 100))
    later = cache(tmp_path, 64)
    used = sorted(there)[:20]
    assert all(later.get(key(number)) is not None for number in used)
    for number in range(300, 320):
        later.put(key(number), pixels(number))
    assert all(np.array_equal(later.get(key(number)), pixels(number)) for number in used)  # type: ignore[arg-type]
    new = [number for number in range(300, 320) if later.get(key(number)) is not None]
    assert len(new) >= 18 and all(np.array_equal(later.get(key(number)), pixels(number)) for number in new)  # type: ignore[arg-type]
    assert later.num_pictures == 64


def test_files_of_other_ways_of_resizing_make_room(tmp_path: Path) -> None:
    """Each holds 100 pictures of 16 KiB, at most 2 MB with the pages that they touch; the bound has room for two of the three."""
    picture = np.zeros(2**14, dtype=np.uint8)
    for number, name in enumerate(("first", "second", "third")):
        held = PixelStore(4e6 / GIB, tmp_path).cache(name, len(picture))
        assert held is not None
        for place in range(100):
            held.put(key(place), picture)
        os.utime(held.path, (1e9 + number, 1e9 + number))
    names = [path for path in tmp_path.glob("*.pixels") if path.stat().st_blocks > 0]
    assert len(names) == 3
    assert PixelStore(4e6 / GIB, tmp_path).cache("third", len(picture)) is not None
    left = sorted(path.stat().st_mtime for path in tmp_path.glob("*.pixels"))
    assert left == [1e9 + 1, 1e9 + 2]


def test_a_file_that_another_process_has_open_is_kept(tmp_path: Path) -> None:
    """Also by a fork of one that has closed it; it goes when nobody has it open."""
    held, (gone, told) = cache(tmp_path), os.pipe()
    os.utime(held.path, (1e9, 1e9))
    for number in range(64):
        held.put(key(number), pixels(number))
    worker = multiprocessing.get_context("fork").Process(target=lambda: (os.close(told), os.read(gone, 1)))
    worker.start()
    held._file.close()
    assert PixelStore(1e-6, tmp_path).cache("other", PICTURE_BYTES) is not None
    assert held.path.exists()
    os.close(told)
    worker.join(30)
    assert PixelStore(1e-6, tmp_path).cache("other", PICTURE_BYTES) is not None
    assert not held.path.exists()


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "some.pixels", fcntl.flock

    def late(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    held = cache(tmp_path)
    assert os.fstat(held._file.fileno()).st_nlink == 1 and path.exists()


def test_where_one_lock_is_made_of_the_other_the_buckets_have_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over NFS: while the file is locked as a whole, no part of it can be."""
    whole, part, locked = fcntl.flock, fcntl.lockf, [False]

    def flock(file: Any, how: int) -> None:
        whole(file, how)
        locked[0] = how != fcntl.LOCK_UN

    def lockf(*arguments: Any) -> None:
        if locked[0]:
            raise BlockingIOError(errno.EAGAIN, "locked")
        part(*arguments)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(fcntl, "lockf", lockf)
    held = cache(tmp_path)
    held.put(key(1), pixels(1))
    assert np.array_equal(held.get(key(1)), pixels(1))  # type: ignore[arg-type]


def test_the_disk_is_looked_at_when_a_picture_was_written_and_not_at_each_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store, looks = of_files(tmp_path / "data"), PixelStore(0.001, tmp_path / "cache"), []
    read = READ.reader(dataset, store)
    monkeypatch.setattr(store, "_make_room", lambda: looks.append(1))
    read(0)
    monkeypatch.setattr(PixelCache, "put", lambda *arguments: None)  # both buckets are full
    for place in range(1, 6):
        read(place)
    assert len(looks) == 1


@pytest.mark.parametrize("fault", ["full", "short"])
def test_a_full_disk_is_said_and_nothing_else_changes(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, real = of_files(tmp_path / "data"), os.pwrite

    def full(file: int, content: object, at: int) -> int:
        if fault == "full":
            raise OSError(28, "No space left on device")
        return real(file, memoryview(content)[: len(content) // 2], at)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", full)
    read = READ.reader(dataset, PixelStore(0.001, tmp_path / "cache"))
    with pixel_cache.taken() as noted:
        for place in (0, 1, 0):
            assert np.array_equal(read(place).numpy(), resized(place))
    assert noted == [("", f"{tmp_path / 'cache'}: no more pictures can be cached there (No space left on device)")]


def test_a_folder_that_cannot_be_made_is_said_and_nothing_else_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = of_files(tmp_path / "data")
    (tmp_path / "file").write_text("")
    store = PixelStore(0.001, tmp_path / "file" / "cache")
    with pixel_cache.taken() as noted:
        read = READ.reader(dataset, store)
        assert np.array_equal(read(4).numpy(), resized(4))
    assert noted == [("", f"{tmp_path / 'file' / 'cache'}: pictures cannot be cached there (Not a directory)")] and store.lines() == []


def test_another_way_of_resizing_or_another_decoder_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, store = of_files(tmp_path / "data"), PixelStore(0.001, tmp_path / "cache")
    bilinear = PictureBytes(SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=2))
    assert not torch.equal(READ.reader(dataset, store)(0), bilinear.reader(dataset, store)(0))
    assert torch.equal(bilinear.reader(dataset, store)(0), bilinear.read(dataset.load_image(0)))
    monkeypatch.setattr(pixel_cache, "decoders", lambda: "another version")
    READ.reader(dataset, PixelStore(0.001, tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 3
