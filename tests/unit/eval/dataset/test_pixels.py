"""What pixels a picture has: its orientation, what is transparent, and the range of its greys."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.dataset.images import ImageError, decode_image, picture_digest, picture_suffixes

CASES = Path(__file__).parents[5] / "shared/cases"


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def pixels(data: bytes | Path) -> list[list[list[int]]]:
    return np.asarray(decode_image(data)).tolist()


def greys(values: object, kind: str = "TIFF") -> list[list[int]]:
    """The first channel of a grey picture of these values, decoded."""
    image = values if isinstance(values, bytes) else encoded(Image.fromarray(np.asarray(values)), kind)
    return np.asarray(decode_image(image))[..., 0].tolist()


def with_orientation(image: Image.Image, orientation: int, **tags: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in tags.items():
        exif[int(tag[1:])] = value
    return encoded(image, "JPEG", exif=exif.tobytes(), quality=95)


def half_and_half() -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    return image


def test_pixels_are_turned_where_the_exif_tags_cannot_be_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = with_orientation(half_and_half(), 6)
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: pytest.fail("the tags were written"))
    turned = np.asarray(decode_image(data)).astype(int)
    assert turned.shape == (32, 16, 3)
    assert turned[4, 8, 0] > 200 and turned[4, 8, 2] < 60, "turned by a quarter to the right, the left half is above"
    assert turned[28, 8, 2] > 200 and turned[28, 8, 0] < 60


def test_an_exif_tag_of_a_wrong_type_is_no_fault() -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + b"\x01\0\0\x02\0\0\0\x03ab\0\0" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    assert decode_image(encoded(half_and_half(), "JPEG", exif=exif)).size == (16, 32)  # ImageWidth as text, Orientation 6


def test_exif_that_cannot_be_read_is_no_orientation() -> None:
    assert decode_image(encoded(half_and_half(), "JPEG", exif=b"Exif\0\0junk that is no TIFF")).size == (32, 16)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")
def test_case_exif_unwritable() -> None:
    folder = CASES / "exif_unwritable"
    turned, plain = (decode_image(folder / name) for name in ("exif_reserialise.jpg", "exif_orient_6.jpg"))
    assert np.array_equal(np.asarray(turned), np.asarray(plain))


DRAWING = np.zeros((2, 2, 4), dtype=np.uint8)
DRAWING[0, 0] = (0, 0, 0, 255)
DRAWING[0, 1] = (200, 0, 100, 51)
"""Black, a fifth of a red, and twice nothing."""
ON_WHITE = [[[0, 0, 0], [244, 204, 224]], [[255, 255, 255], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "SGI", "QOI"])
def test_what_is_transparent_is_laid_on_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert pixels(encoded(Image.fromarray(DRAWING), kind, **options)) == ON_WHITE


def test_transparent_greys_and_palettes_are_laid_on_white() -> None:
    assert pixels(encoded(Image.new("LA", (1, 1), (0, 51)), "PNG")) == [[[204, 204, 204]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 100] + [0] * 762)
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, "PNG", transparency=b"\0\x33")) == [[[255, 255, 255], [244, 204, 224]]], "partly, by the palette"
    assert pixels(encoded(palette, "GIF", transparency=0)) == [[[255, 255, 255], [200, 0, 100]]]
    assert pixels(encoded(Image.new("L", (1, 1), 5), "PNG", transparency=5)) == [[[255, 255, 255]]]
    assert pixels(encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == [[[255, 255, 255]]]
    assert greys(encoded(Image.fromarray(np.array([[7, 65535]], dtype=np.uint16)), "PNG", transparency=7)) == [[255, 255]]


def test_a_picture_with_an_opaque_alpha_channel_keeps_its_bits() -> None:
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    values[..., 3] = 255
    assert np.array_equal(np.asarray(decode_image(encoded(Image.fromarray(values), "PNG"))), values[..., :3])


def test_floats_keep_their_range() -> None:
    assert greys(np.array([[0, 0.5, 1]], dtype=np.float32)) == [[0, 127, 255]]
    assert greys(np.array([[0, 100, 255]], dtype=np.float32)) == [[0, 100, 255]]
    assert greys(np.array([[0, 32768, 65535]], dtype=np.float32)) == [[0, 127, 255]]
    assert greys(np.array([[-5, 0, 5]], dtype=np.float32)) == [[0, 127, 255]], "any other range: its least is black, its most is white"
    assert greys(np.array([[0, 1e6, np.nan]], dtype=np.float32)) == [[0, 255, 0]]
    assert greys(np.array([[-1e6, -1e6]], dtype=np.float32)) == [[0, 0]]
    assert greys(b"Pf\n3 1\n-1.0\n" + np.array([0, 0.5, 1], dtype="<f4").tobytes()) == [[0, 127, 255]], "a .pfm"


def test_whole_numbers_keep_their_range() -> None:
    assert greys(np.array([[0, 1, 255]], dtype=np.int32)) == [[0, 1, 255]]
    assert greys(np.array([[0, 32768, 65535]], dtype=np.int32)) == [[0, 127, 255]]
    assert greys(np.array([[0, 1_000_000, 2_000_000]], dtype=np.int32)) == [[0, 127, 255]]
    assert greys(np.array([[0, 32768, 65535]], dtype=np.uint16), "PNG") == [[0, 127, 255]]
    assert greys(b"P5\n2 1\n65535\n\0\xff\x01\0") == [[0, 0]], "a dark .pgm of 16 bits is dark"
    assert greys(b"P5\n3 1\n1023\n\0\0\x02\0\x03\xff") == [[0, 127, 255]], "a .pgm of 10 bits"


def test_one_bit_and_cmyk() -> None:
    assert pixels(encoded(Image.fromarray(np.array([[True, False]])), "PNG")) == [[[255] * 3, [0] * 3]]
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for kind in ("TIFF", "JPEG"):  # a JPEG's are stored inverted, as Adobe writes them
        assert np.abs(np.asarray(decode_image(encoded(red, kind))).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#c80a0a", "#0a0ac8")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(decode_image(data)).astype(int) - [200, 10, 10]).max() <= 8


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000"])
def test_formats_that_not_every_pillow_decodes(kind: str) -> None:
    if not {".avif", ".jp2"} <= picture_suffixes():
        pytest.skip("this Pillow has no such decoder")
    assert np.abs(np.asarray(decode_image(encoded(half_and_half(), kind))).astype(int)[8, 4] - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "SGI"])
def test_a_picture_that_is_cut_off_is_a_fault(kind: str) -> None:
    if kind == "AVIF" and ".avif" not in picture_suffixes():
        pytest.skip("this Pillow has no such decoder")
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(values), kind)
    for share in (0.3, 0.9):
        with pytest.raises(ImageError, match="embedded bytes: cannot be decoded"):
            decode_image(data[: int(share * len(data))])


def test_suffixes_are_those_of_the_formats_that_are_decoded() -> None:
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"} <= picture_suffixes()
    assert not {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".wmf", ".txt", ""} & picture_suffixes()


def test_a_heic_picture_is_named_with_what_to_do() -> None:
    with pytest.raises(ImageError, match=r"embedded bytes: cannot be decoded: HEIC and HEIF pictures are not read; convert them to \.jpg"):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_the_digest_of_a_picture_is_its_files_but_where_its_pixels_are_read_otherwise_than_before(tmp_path: Path) -> None:
    plain, clear = encoded(half_and_half(), "PNG"), encoded(Image.fromarray(DRAWING), "PNG")
    (tmp_path / "a.png").write_bytes(clear)
    assert picture_digest(plain) == hashlib.sha256(plain).digest()
    assert picture_digest(clear) == picture_digest(tmp_path / "a.png") != hashlib.sha256(clear).digest()


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not next to this repository")
def test_case_folder_suffixes_decodes_whatever_the_name() -> None:
    assert all(decode_image(path).size == (64, 64) for path in (CASES / "folder_suffixes").glob("p*") if path.suffix != ".txt")
