"""Every trap a picture file has held so far."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from eval.dataset.images import MAX_PIXELS, ImageError, decode_image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width: int, height: int, raw: bytes = b"\0" * 10) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def noise(height: int = 30, width: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    assert np.array_equal(np.asarray(decode_image(encoded(noise(), kind))), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_other_formats_decode(kind: str) -> None:
    image = decode_image(encoded(noise(), kind))
    assert image.mode == "RGB" and image.size == (40, 30)


def test_truncated_jpeg_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(200, 200), "JPEG")[:9000])
    Image.open(path)  # which is the trap: opening does not notice
    with pytest.raises(ImageError, match=r"cut\.jpg: cannot be decoded.*truncated"):
        decode_image(path)


def test_picture_that_claims_more_pixels_than_its_bytes_can_hold() -> None:
    data = png_claiming(9000, 9000)
    assert len(data) < 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"embedded bytes: \d+ bytes cannot hold the 9000 x 9000 pixels"):
            decode_image(data)


@pytest.mark.parametrize("side", [9_600, 14_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    assert side * side > MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="pixels"):
            decode_image(png_claiming(side, side, b"\0" * 1_000_000))


def test_large_plain_picture_is_no_bomb() -> None:
    assert decode_image(encoded(Image.new("1", (3000, 3000)), "PNG", optimize=True)).size == (3000, 3000)


def test_eps_in_disguise_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vector.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: pytest.fail("Ghostscript was asked"))
    with pytest.raises(ImageError, match=r"vector\.jpg"):
        decode_image(path)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"not a picture at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture(data: bytes) -> None:
    with pytest.raises(ImageError, match="embedded bytes: cannot be decoded"):
        decode_image(data)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(ImageError, match=str(path)):
            decode_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_transformers_does(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    noise().save(path, exif=exif, quality=95)
    ours = decode_image(path)
    assert ours.size == ((40, 30) if orientation < 5 else (30, 40))
    assert np.array_equal(np.asarray(ours), np.asarray(load_image(str(path))))


def test_palette_alpha_grey_and_cmyk_become_rgb() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for data in (
        encoded(red.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        encoded(red.convert("RGBA"), "PNG"),
        encoded(red.convert("CMYK"), "TIFF"),
    ):
        image = decode_image(data)
        assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 0, 0)
    assert decode_image(encoded(Image.new("L", (2, 2), 77), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encoded(Image.new("LA", (2, 2), (77, 255)), "PNG")).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(encoded(red.convert("CMYK"), "JPEG")).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 32768], [65535, 200]], dtype=np.uint16)
    assert np.asarray(decode_image(encoded(Image.fromarray(values), "PNG")))[..., 0].tolist() == [[0, 127], [255, 0]]
    dark = Image.fromarray(np.full((2, 2), 200, dtype=np.uint16))
    assert decode_image(encoded(dark, "PNG")).getpixel((0, 0)) == (0, 0, 0), "a dark picture is dark whatever its brightest pixel"


def test_result_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    noise().save(path)
    image = decode_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image.resize((40, 30))), np.asarray(noise()))


def test_a_picture_of_several_frames_from_a_phone_opens_as_the_jpeg_it_is(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 10, 10)), Image.new("RGB", (8, 8), (10, 10, 200))
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    assert decode_image(tmp_path / "phone.jpg").getpixel((4, 4))[0] > 150  # type: ignore[index]


def test_a_file_of_no_known_format_is_named() -> None:
    with pytest.raises(ImageError, match="no picture of a known format"):
        decode_image(b"junk" * 40)
