"""The index of a shard against plain tarfile, and its cache: read where nothing changed, made again where anything did or it is damaged."""

import io
import multiprocessing
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from eval.manifest.columns import asked_mapping
from eval.manifest.formats import index_cache
from eval.manifest.formats.index_cache import cache_file, cached_index
from eval.manifest.formats.shard_index import DamagedTarError, Member, index_shard, read_members
from eval.manifest.formats.shards import ShardRows
from tests.unit.eval.manifest.written_formats import picture, tar_of

LONG = "folder/" * 30 + "a.txt"
SPLIT_NAME = "folder/" * 17 + "b.txt"  # 124 characters: ustar's prefix and name


def member(name: str, size: int = 3, kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.type, found.size = kind, size if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else 0
    for key, value in more.items():
        setattr(found, key, value)
    return found, b"x" * found.size


def written(file_format: int, members: list[tuple[tarfile.TarInfo, bytes]], **options: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=file_format, **options) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


SPARSE = bytearray(tarfile.TarInfo("sparse.txt").tobuf(tarfile.GNU_FORMAT))
SPARSE[156:157] = tarfile.GNUTYPE_SPARSE
SPARSE[483:495] = b"00000010000\0"  # 4,096 bytes when unpacked, none of them here
SPARSE[148:156] = b" " * 8
SPARSE[148:156] = f"{sum(SPARSE):06o}\0 ".encode()
PLAIN = [member("a.txt"), member("b.txt", 512), member("c.txt", 0), member("d.txt", 513)]
ARCHIVES = {
    "plain": written(tarfile.USTAR_FORMAT, PLAIN),
    "GNU long names": written(tarfile.GNU_FORMAT, [*PLAIN, member(LONG), *PLAIN]),
    "ustar prefix": written(tarfile.USTAR_FORMAT, [member("a.txt"), member(SPLIT_NAME), member("c.txt")]),
    "PAX times and owners": written(tarfile.PAX_FORMAT, [member(f"{n}.txt", n * 100, mtime=n + 0.5, uname="ü") for n in range(40)]),
    "PAX names": written(tarfile.PAX_FORMAT, [*PLAIN, member(LONG, mtime=1.5), member("ü.txt"), *PLAIN]),
    "PAX size": written(tarfile.PAX_FORMAT, [*PLAIN, member("z.txt", pax_headers={"size": "3", "comment": "5 mtime=1\n"}), *PLAIN]),
    "PAX global": written(tarfile.PAX_FORMAT, PLAIN, pax_headers={"comment": "of all"}),
    "folders": written(tarfile.GNU_FORMAT, [member("a", kind=tarfile.DIRTYPE), *PLAIN, member("b/", 0, tarfile.AREGTYPE), *PLAIN]),
    "links and devices": written(
        tarfile.GNU_FORMAT,
        [*PLAIN, member("l.txt", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), *PLAIN, member("p.txt", kind=tarfile.FIFOTYPE), *PLAIN],
    ),
    "sparse": written(tarfile.USTAR_FORMAT, PLAIN)[:4096] + bytes(SPARSE) + written(tarfile.USTAR_FORMAT, PLAIN),
    "names that are not UTF-8": written(tarfile.GNU_FORMAT, [*PLAIN, member("\udcff.txt"), *PLAIN], errors="surrogateescape"),
    "numbers in base 256": written(tarfile.GNU_FORMAT, [*PLAIN, member("a.png", uid=2**40, gid=2**40), *PLAIN]),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_members_are_those_that_tarfile_finds(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(ARCHIVES[name])
    with tarfile.open(path, "r:", encoding="utf-8") as tar:
        expected = [(found.name, found.offset_data, found.size, found.isreg() and not found.issparse()) for found in tar.getmembers()]
    with path.open("rb") as file:
        members = list(read_members(file))
    assert [(found.name, found.offset, found.num_bytes, found.kind == "file") for found in members] == expected
    assert len(members) >= 3


@pytest.mark.parametrize("name", ["plain", "PAX times and owners"])
def test_a_damaged_header_ends_where_tarfile_ends(tmp_path: Path, name: str) -> None:
    """Each byte of the second and third member's headers changed: the same members as by tarfile, or the damage is named."""
    whole = ARCHIVES[name]
    path = tmp_path / "s.tar"
    for at in range(1024, 4096, 5):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        found: list[Member] = []
        with path.open("rb") as file:
            try:
                found += read_members(file)
                is_whole = True
            except DamagedTarError:
                is_whole = False
        try:
            with tarfile.open(path, "r:", encoding="utf-8") as tar:
                expected = [(one.name, one.offset_data, one.size) for one in tar.getmembers()]
        except tarfile.TarError:
            assert not is_whole
            continue
        if is_whole:
            assert [(one.name, one.offset, one.num_bytes) for one in found] == expected


SAMPLES = [("a.png", picture("a")), ("a.txt", b"a dog"), ("b.png", picture("b")), ("b.json", b'{"caption": "a cat"}'), ("README.md", b"x")]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "siglip-tuner" / "shards"


def shard(path: Path, samples: list[tuple[str, bytes]] = SAMPLES) -> Path:
    """A shard that was written a while ago."""
    tar_of(path, samples)
    os.utime(path, (1e9, 1e9))
    return path


def same(found: Any, expected: Any) -> bool:
    """Whether two indices are equal, types included."""
    arrays = found.keys.equals(expected.keys) and found.ranges_NF2.dtype == expected.ranges_NF2.dtype
    lists = (found.faults, found.left_out) == (expected.faults, expected.left_out)
    return arrays and lists and (found.ranges_NF2 == expected.ranges_NF2).all() and found.ranges_NF2.shape == expected.ranges_NF2.shape


def test_the_second_reading_opens_no_shard(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "s.tar")
    expected = cached_index(path)
    assert expected.keys.to_pylist() == ["a", "b"] and [where for where, _ in expected.left_out] == ["README"]
    monkeypatch.setattr(index_cache, "index_shard", lambda _: pytest.fail("it is in the cache"))
    monkeypatch.chdir(tmp_path)
    for name in (path, Path("s.tar")):
        assert same(cached_index(name), expected)
    assert [file.name for file in cache.iterdir()] == [cache_file(path).name]


def test_a_shard_that_changed_is_indexed_again(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "s.tar")
    cached_index(path)
    shard(tmp_path / "t.tar", [("c.png", picture("a")), ("c.txt", b"a dog"), *SAMPLES[2:]])
    os.replace(tmp_path / "t.tar", path)  # of equal size and time: another file
    assert cached_index(path).keys.to_pylist() == ["c", "b"]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"b.json", b"b.jsn\0"))
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert same(cached_index(path), index_shard(path))
    assert len(list(cache.iterdir())) == 1, "a file for each shard, not for each of its states"


def test_a_shard_that_was_written_just_now_and_one_with_faults_are_not_cached(tmp_path: Path, cache: Path) -> None:
    cached_index(tar_of(tmp_path / "new.tar", SAMPLES))
    faulty = shard(tmp_path / "twice.tar", [*SAMPLES, *SAMPLES])
    assert cached_index(faulty).faults and cached_index(faulty).faults
    assert not cache.exists()


def test_a_damaged_or_foreign_file_of_the_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    path, other = shard(tmp_path / "s.tar"), shard(tmp_path / "other.tar", SAMPLES[:2])
    expected = cached_index(path)
    cached_index(other)
    whole = cache_file(path).read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 31, 40, len(whole) // 2, len(whole) - 1)]
    for content in (b"", b"x", whole[:32], whole[:-1], whole + b"x", b"\x80\x04N.", cache_file(other).read_bytes(), *flipped):
        cache_file(path).write_bytes(content)
        assert same(cached_index(path), expected)
        assert cache_file(path).read_bytes() == whole
    cache_file(path).unlink()
    os.mkfifo(cache_file(path))
    assert same(cached_index(path), expected)
    cache_file(path).unlink()
    cache_file(path).mkdir()
    assert same(cached_index(path), expected)


@pytest.mark.parametrize("place", ["/proc/none", "a file"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / place))
    path = shard(tmp_path / "s.tar")
    assert same(cached_index(path), index_shard(path))


def rows_of(folder: Path) -> list[tuple[str, Any]]:
    rows = ShardRows([(path, None) for path in sorted(folder.glob("*.tar"))], asked_mapping({}))
    return [(row.where, row.record["caption"]) for row in rows]


def test_processes_that_start_together_read_the_same_rows_in_the_same_order(tmp_path: Path, cache: Path) -> None:
    for number in range(8):
        shard(tmp_path / f"{number}.tar", [(f"{number}.png", picture("a")), (f"{number}.txt", f"of {number}".encode())])
    expected = [(f"{tmp_path}/{number}.tar: {number}", f"of {number}") for number in range(8)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(rows_of, [tmp_path] * 8, chunksize=1) == [expected] * 8
    assert sorted(file.name for file in cache.iterdir()) == sorted(cache_file(path).name for path in tmp_path.glob("*.tar"))
