"""Decode one image safely: a damaged, huge or mislabelled file is an ImageError with its reason, never a crash or a wrong image."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eval.errors import UserError
from eval.files import PICTURE_BYTES, open_plain, read_bytes

# An explicit list: otherwise Pillow would pass an EPS that is named .jpg to Ghostscript. (An MPO is opened as a JPEG.)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 90_000_000
_DEFLATE_MAX_RATIO = 1032  # RFC 1951: no deflate stream grows by more


class ImageError(UserError):
    """A picture that cannot be decoded; the message names the file and the reason."""


def decode_image(source: bytes | str | Path) -> Image.Image:
    """Decode a picture to RGB, turned upright by its EXIF orientation (as transformers' own load_image does).

    Raises:
        ImageError: not a picture of a known format, truncated, more than MAX_PIXELS pixels, or not readable at all.
    """
    name = f"{len(source)} embedded bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else read_bytes(source, PICTURE_BYTES)
        if len(data) > PICTURE_BYTES:
            raise ImageError(f"more than the {PICTURE_BYTES:,} bytes allowed")
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _refuse_absurd_size(opened, len(data))
            opened.load()
            # Only an image with an EXIF orientation is rotated; exif_transpose would copy every other one.
            image = ImageOps.exif_transpose(opened) if opened.getexif().get(0x0112, 1) != 1 else opened
            return _to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: cannot be decoded: no picture of a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ... on damaged files
        raise ImageError(f"{name}: cannot be decoded as a picture ({type(error).__name__}: {error})") from error


def picture_size(source: bytes | str | Path) -> tuple[int, int] | None:
    """(width, height) of a picture, upright, by its header alone; None where that cannot be read."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
            has_exif = opened.format != "PNG" or "exif" in opened.info  # to look further a PNG would be decoded
            is_turned = has_exif and opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (opened.height, opened.width) if is_turned else opened.size
    except Exception:  # as of decode_image, which says what is wrong
        return None


def file_digest(path: str | Path) -> bytes:
    """SHA-256 of a picture's file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with open_plain(path, PICTURE_BYTES) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error})") from error


def _refuse_absurd_size(image: Image.Image, num_bytes: int) -> None:
    num_pixels = image.width * image.height
    if num_pixels > MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels, more than the {MAX_PIXELS:,} allowed; scale it down first")
    if image.format == "PNG" and num_pixels > num_bytes * _DEFLATE_MAX_RATIO * 8:  # at one bit a pixel, the least PNG knows
        raise ImageError(f"{num_bytes} bytes cannot hold the {image.width} x {image.height} pixels the header claims")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit greys: Pillow's own conversion clips at 255 instead of scaling.
        values_HW = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode.startswith("I;16") or values_HW.max(initial=0.0) > 255 else 255.0
        image = Image.fromarray(np.clip(values_HW / top * 255.0, 0, 255).astype(np.uint8))
    # convert() returns a copy even of an RGB picture, so that the result outlives the file.
    return image.convert("RGB")
