"""The index of one webdataset shard: the keys of its samples, and where in the .tar the bytes of their fields are.

Headers of plain files are read here. Every other member (a long name, a link, a folder, a sparse file), and what is no header, is read by
tarfile, which says what it is or what is wrong with it.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from eval.atomic import is_desktop_file
from eval.dataset.images import picture_suffixes
from eval.files import MB, PICTURE_BYTES, open_archive
from eval.manifest.rows import is_unicode

TEXT_FIELDS = ("txt", "text", "caption")
JSON_FIELDS = ("json", "jsn")
FIELDS = ("image", "json", *TEXT_FIELDS)
_PARTS = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BLOCK = tarfile.BLOCKSIZE
_READ_BYTES = 16 * _BLOCK
"""Read at once: the headers of a sample's texts, and of the next picture, are mostly among them."""
_TIMES = re.compile(rb"(\d+) (?:mtime|atime|ctime|uid|gid|uname|gname)=[^\n]*\n")
"""A record of a PAX header that changes neither a name nor a size."""


@dataclass
class ShardIndex:
    """What a shard holds. Shape letters: N samples, F fields.

    Attributes:
        keys: Arrow array of strings, N.
        ranges_NF2: int64: offset and size in bytes of each field; size -1 where there is none.
        faults: (member or sample, what is wrong with it); of the shard itself the former is empty.
        left_out: (member or sample, why) of what is no sample and no fault.
    """

    keys: Any
    ranges_NF2: np.ndarray
    faults: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


class Member(NamedTuple):
    """A member of a .tar, and where its bytes are."""

    name: str
    offset: int
    num_bytes: int
    kind: Literal["file", "folder", "other"] = "file"


class DamagedTarError(Exception):
    """A .tar that is none, or that ends too early; says which."""


def index_shard(path: Path) -> ShardIndex:
    """Read the headers of a shard.

    Raises:
        FileError, OSError: it is no plain file, or cannot be opened.
    """
    samples = _Samples()
    with open_archive(path) as file:
        try:
            for member in read_members(file):
                samples.add(member)
        except DamagedTarError as error:
            samples.faults.append(("", str(error)))
    return samples.index()


@dataclass
class _Samples:
    """The samples of one shard while its headers are read; faults and left_out as in `ShardIndex`."""

    fields: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Key -> offset and size of each field, by its suffix."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, member: Member) -> None:
        """Take in a member; what cannot be used goes to the faults, or to what is left out."""
        name = member.name
        if member.kind == "folder" or is_desktop_file(name.rpartition("/")[2]):
            return
        what = _member_fault(member)
        parts = _PARTS.fullmatch(name)
        if what is not None:
            self.faults.append((f"{name!r:.200}", what))
        elif parts is None:
            self.left_out.append((f"{name!r:.200}", "no file of a sample: KEY.SUFFIX"))
        else:
            key, suffix = parts[1].removeprefix("./"), parts[2].lower()
            fields = self.fields.setdefault(key, {})
            if suffix in fields:
                self.faults.append((f"{name!r:.200}", "is there twice; names are unique in a shard"))
            fields.setdefault(suffix, (member.offset, member.num_bytes))

    def index(self) -> ShardIndex:
        """The samples that have one picture; the others are faults, or left out where they have no text either."""
        keys, ranges = [], []
        suffixes = {suffix.removeprefix(".") for suffix in picture_suffixes()}
        for key, fields in self.fields.items():
            pictures = [name for name in fields if name in suffixes]
            if not pictures and not fields.keys() & {*TEXT_FIELDS, *JSON_FIELDS}:
                self.left_out.append((key, f"neither a picture nor a text: {list(fields)[:8]}"))
            elif len(pictures) != 1:
                found = pictures or list(fields)[:8]
                self.faults.append((key, f"expected one picture, found {found}; a key ends at the first dot of a name"))
            elif (size := fields[pictures[0]][1]) > PICTURE_BYTES:
                self.faults.append((key, f"a picture of {size:,} bytes, more than the {PICTURE_BYTES:,} allowed"))
            else:
                names = [pictures, JSON_FIELDS, *([name] for name in TEXT_FIELDS)]
                keys.append(key)
                ranges.append([next((fields[name] for name in choices if name in fields), (-1, -1)) for choices in names])
        ranges_NF2 = np.array(ranges, dtype=np.int64).reshape(len(keys), len(FIELDS), 2)
        return ShardIndex(pa.array(keys, pa.large_string()), ranges_NF2, self.faults, self.left_out)


def _member_fault(member: Member) -> str | None:
    """What is wrong with a member of a shard, if anything."""
    if not is_unicode(member.name):
        return "its name is not UTF-8 text"
    if member.name.startswith("/") or (".." in member.name and ".." in member.name.split("/")):
        return "its name leads out of the shard; names are relative, without .."
    if member.kind != "file":
        return "is a link, a device or a sparse file; a shard holds plain files alone"
    return None


class _Headers:
    """A shard for tarfile, which reads headers alone; one that claims more than a header's size is refused."""

    name = ""
    mode = "rb"

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._read = file.tell, file.seek, file.read

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= MB:
            raise tarfile.ReadError(f"a header of {num_bytes:,} bytes")
        return self._read(num_bytes)


def read_members(file: BinaryIO) -> Iterator[Member]:
    """The members of an archive, in their order.

    Raises:
        DamagedTarError: after those before the damage.
    """
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:", encoding="utf-8") as tar:  # type: ignore[call-overload]
            yield from _members(tar, file.fileno())
            what = _end_fault(file, tar.offset)
    except Exception as error:  # tarfile raises many on damaged headers
        file.seek(0)
        is_gzip = file.read(2) == b"\x1f\x8b"
        what = f"cannot be read as a .tar: {'it is compressed by gzip; decompress it with gunzip' if is_gzip else error}"
        raise DamagedTarError(what) from error
    if what is not None:
        raise DamagedTarError(what)


def _members(tar: tarfile.TarFile, descriptor: int) -> Iterator[Member]:
    """The members of an archive: one by tarfile, then all plain files that follow, and so on. tarfile holds none.

    Raises:
        tarfile.ReadError: one claims fewer than no bytes, which would lead back to it for ever.
    """
    while (member := tar.next()) is not None:
        if member.size < 0 or tar.offset <= member.offset:
            raise tarfile.ReadError(f"{member.name!r:.200} claims {member.size:,} bytes")
        is_plain = member.isreg() and not member.issparse()
        yield Member(member.name, member.offset_data, member.size, "file" if is_plain else "folder" if member.isdir() else "other")
        tar.members = []  # type: ignore[attr-defined]
        if tar.pax_headers:
            continue  # what a global header says is of every member after it
        for plain in _plain_files(descriptor, tar.offset):
            yield plain
            tar.offset = plain.offset + -(-plain.num_bytes // _BLOCK) * _BLOCK


def _plain_files(descriptor: int, offset: int) -> Iterator[Member]:
    """The plain files from a header on, up to the first header that is of something else, or none."""
    blocks, first = b"", offset
    while True:
        at = offset - first
        if at + _BLOCK > len(blocks):
            blocks, first, at = os.pread(descriptor, _READ_BYTES, offset), offset, 0
        if blocks[at + 156 : at + 157] == b"x":
            if at + 3 * _BLOCK > len(blocks):
                blocks, first, at = os.pread(descriptor, _READ_BYTES, offset), offset, 0
            if (num_bytes := _pax_bytes(blocks[at:])) is None:
                return
            at += num_bytes
        header = blocks[at : at + _BLOCK]
        size = _size_in(header)
        if size is None or header[156] not in b"0\0":
            return
        name = header[:100].partition(b"\0")[0]
        if header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        if name.endswith(b"/"):
            return  # a folder of the oldest tar
        start = first + at + _BLOCK
        yield Member(name.decode("utf-8", "surrogateescape"), start, size)
        offset = start + -(-size // _BLOCK) * _BLOCK


def _size_in(header: bytes) -> int | None:
    """The size that a header states, in bytes; None: it is none, is damaged, or has its numbers in another form than octal digits.

    Its checksum is the sum of its bytes, its own eight taken for spaces. The low half of Adler-32 is 1 plus that sum modulo 65,521.
    """
    if len(header) < _BLOCK:
        return None
    checksum, size = header[148:156], header[124:136].strip(b" \0")
    try:
        expected = int(checksum.strip(b" \0"), 8) - 8 * 32 + sum(checksum)
        is_whole = zlib.adler32(header) & 0xFFFF == (1 + expected) % 65521
        return int(size, 8) if is_whole and size.isdigit() else None
    except ValueError:
        return None


def _pax_bytes(blocks: bytes) -> int | None:
    """Bytes of a PAX header and its records, with which `blocks` begin; None where they say more than times and owners."""
    size = _size_in(blocks[:_BLOCK])
    if size is None or _BLOCK + size > len(blocks):
        return None
    at = _BLOCK
    while at < _BLOCK + size:
        found = _TIMES.match(blocks, at, _BLOCK + size)
        if found is None or len(found[0]) != int(found[1]):
            return None
        at = found.end()
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def _end_fault(file: BinaryIO, end: int) -> str | None:
    """What is wrong with an archive whose last header ends before `end`: there should be zeros alone."""
    file.seek(end)
    first = file.read(_BLOCK)
    if len(first) < _BLOCK:
        return "has no end: it was cut off, or its writer was not closed; copy or write it again"
    while first:
        if first.count(0) < len(first):
            return f"damaged, or another archive appended, at byte {end:,}: nothing after it was read. Write it again"
        first = file.read(MB)
    return None
