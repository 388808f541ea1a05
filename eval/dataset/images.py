"""Decode one image safely: a damaged, huge or mislabelled file is an ImageError with its reason, never a crash or a wrong image."""

import hashlib
import io
import logging
import platform
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from eval.dataset.picture_warnings import note
from eval.errors import UserError
from eval.files import PICTURE_BYTES, open_plain, read_bytes

# An explicit list: otherwise Pillow would pass an EPS that is named .jpg to Ghostscript. (An MPO is opened as a JPEG.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "SGI")
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_REMEDY = "HEIC and HEIF pictures are not read; convert them to .jpg (sips -s format jpeg on macOS, or magick mogrify -format jpg)"
MAX_PIXELS = 90_000_000
_DEFLATE_MAX_RATIO = 1032  # RFC 1951: no deflate stream grows by more
DECODING = b"transparency on white, range of floats"
"""The rules by which `decode_image` makes pixels of a picture; other words where they change, for caches of what was made."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the pixels upright; the tags themselves are never written again, which some cannot be."""

_OF_PILLOW = re.compile(r"PIL(\.|$)")
_decoding = threading.local()  # `texts`, while this thread decodes
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it logs the reason of an error, without a name, before it raises it


class ImageError(UserError):
    """A picture that cannot be decoded; the message names the file and the reason."""


def decode_image(source: bytes | str | Path, *, named: str | None = None, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture (of several frames the first) to RGB, upright by its EXIF orientation, what is transparent laid on white.

    What Pillow warns of meanwhile is said once, with the picture's name (eval/dataset/picture_warnings.py).

    Args:
        named: what a warning calls it; without, by its path or its number of bytes.
        at_least: (width, height); a JPEG is decoded to a half, a quarter or an eighth of its size that is no smaller in either, by its
            decoder (Pillow's `draft`), which gives other pixels.

    Raises:
        ImageError: not a picture of a known format, truncated, more than MAX_PIXELS pixels, or not readable at all.
    """
    name = f"{len(source)} embedded bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else read_bytes(source, PICTURE_BYTES)
        if len(data) > PICTURE_BYTES:
            raise ImageError(f"more than the {PICTURE_BYTES:,} bytes allowed")
        with warnings_caught() as warned, Image.open(io.BytesIO(data), formats=_formats()) as opened:
            _refuse_absurd_size(opened, len(data))
            if at_least is not None and opened.format == "JPEG":
                opened.draft(None, at_least)
            opened.load()
            turn = _UPRIGHT.get(_orientation(opened))
            if turn is None and opened.format == "JPEG" and opened.mode == "RGB":
                decoded: Image.Image = opened  # whole in memory, and no alpha: no copy is needed
            else:
                decoded = _to_rgb(opened if turn is None else opened.transpose(turn), opened.format)
        if warned:
            note(named or name, warned)
        return decoded
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except UnidentifiedImageError as error:
        known = HEIF_REMEDY if _is_heif(data) else f"no picture of a known format ({', '.join(_formats())})"
        raise ImageError(f"{name}: cannot be decoded: {known}") from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        raise ImageError(f"{name}: cannot be decoded as a picture ({type(error).__name__}: {error})") from error


def picture_size(source: bytes | str | Path) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, by its header alone; None where that cannot be read."""
    try:
        with _header(source) as opened:
            has_exif = opened.format != "PNG" or "exif" in opened.info  # to look further a PNG would be decoded
            is_turned = has_exif and _orientation(opened) in (5, 6, 7, 8)
            return (opened.height, opened.width) if is_turned else opened.size
    except Exception:  # as of decode_image, which says what is wrong
        return None


def decoders() -> str:
    """What decodes and resizes pictures, with versions: another one may give other bits, for caches of what was made."""
    names = ("jpg", "libjpeg_turbo", "jpg_2000", "webp", "avif", "zlib", "libtiff")
    versions = (f"{name}={features.version(name)}" for name in names)
    return " ".join([DECODING.decode(), platform.machine(), PIL.__version__, *versions])


def picture_digest(source: bytes | str | Path) -> bytes:
    """SHA-256 of a picture as it is given, to know it by in a cache of what was made of its pixels.

    Raises:
        ImageError: its file cannot be read.
    """
    if isinstance(source, bytes):
        digest = hashlib.sha256(source).digest()
    else:
        try:
            with open_plain(source, PICTURE_BYTES) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise ImageError(f"{source}: cannot be read ({error})") from error
    return hashlib.sha256(digest + DECODING).digest() if _decoded_otherwise_before(source) else digest


def _decoded_otherwise_before(source: bytes | str | Path) -> bool:
    """Whether an earlier version, whose caches may be in use, made other pixels of a picture: by its header."""
    try:
        with _header(source) as opened:
            return opened.mode in ("F", "I") or opened.has_transparency_data
    except Exception:  # as of decode_image, which says what is wrong
        return False


@contextmanager
def warnings_caught() -> Iterator[list[str]]:
    """The texts of the warnings given in here, by this thread, as they come; none is shown.

    Not warnings.catch_warnings: that is of all threads, and makes Python forget which warnings it has shown already.
    """
    _catch()
    outer, texts = getattr(_decoding, "texts", None), list[str]()
    _decoding.texts = texts
    try:
        yield texts
    finally:
        _decoding.texts = outer


def _catch() -> None:
    """Have every warning of Pillow's come to `_show`, where that is not so yet."""
    if warnings.showwarning is not _show:
        _show.before = warnings.showwarning  # type: ignore[attr-defined]
        warnings.showwarning = _show
    if not warnings.filters or warnings.filters[0][3] != _OF_PILLOW:
        warnings.filterwarnings("always", module=_OF_PILLOW.pattern)  # "default" would give the second picture's text to nobody


def _show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
    texts = getattr(_decoding, "texts", None)
    if texts is None:
        _show.before(message, category, filename, lineno, file, line)  # type: ignore[attr-defined]
    else:
        texts.append(" ".join(str(message).split()).rstrip("."))


@contextmanager
def _header(source: bytes | str | Path) -> Iterator[Image.Image]:
    """A picture whose header alone is read; what is warned of it is left to the decoding."""
    with (
        warnings_caught(),
        Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as opened,
    ):
        yield opened


def _refuse_absurd_size(image: Image.Image, num_bytes: int) -> None:
    num_pixels = image.width * image.height
    if num_pixels > MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} allowed; scale it down first")
    if image.format == "PNG" and num_pixels > num_bytes * _DEFLATE_MAX_RATIO * 8:  # at one bit a pixel, the least PNG knows
        raise ImageError(f"{num_bytes} bytes cannot hold the {image.width} x {image.height} pixels the header claims")


@cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow has a decoder of."""
    Image.init()
    without_decoder = {"AVIF", "JPEG2000", "WEBP"} - set(Image.registered_extensions().values())
    return tuple(name for name in FORMATS if name in Image.OPEN and name not in without_decoder)


@cache
def picture_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files that are pictures: those that Pillow knows of the formats that are decoded."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in (*_formats(), "MPO"))


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none, or the tags cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the tags are no part of the pixels, and Pillow raises many kinds on damaged ones
        return 1


def _to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """A copy in RGB, which outlives the file; `kind` is the file's format."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey(image, kind).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    alpha = with_alpha.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return with_alpha.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(with_alpha, mask=alpha)
    return ground


def _grey(image: Image.Image, kind: str | None) -> Image.Image:
    """Greys of 16 or 32 bits, or floating point, as 8 bits: Pillow's own conversion clips at 255 instead of scaling.

    16-bit files have 0 to 65535. Of the others the values tell: floats from 0 to 1; 0 to 255; 0 to 65535; else their own least to most.
    """
    values_HW = np.asarray(image, dtype=np.float64)
    finite = values_HW[np.isfinite(values_HW)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    bottom, top = 0.0, 65535.0
    if not image.mode.startswith("I;16") and kind not in ("PNG", "PPM") or image.mode == "F":
        if least < 0 or most > 65535:
            bottom, top = least, most
        elif most <= 255:
            top = 1.0 if image.mode == "F" and most <= 1 else 255.0
    scaled_HW = (values_HW - bottom) / ((top - bottom) or 1.0) * 255.0
    grey_HW = np.nan_to_num(np.clip(scaled_HW, 0, 255)).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        grey_HW[values_HW == clear] = 255
    return Image.fromarray(grey_HW)
