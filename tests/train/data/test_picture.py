"""Decode an image file: the same pixels from every encoding."""

import io
import struct

import numpy as np
import PIL
import pytest
from PIL import Image

from tests.train.data import encodings
from tests.train.data.encodings import COLOUR, GREY, luma, pillow, png, tiff, wide
from train_jax.data.picture import decode_picture


def _decode(encoded: bytes, channels: int, background: int = 255) -> np.ndarray:
    image = decode_picture(encoded, channels=channels, background=background)
    assert image.dtype == np.uint8
    return image


@pytest.mark.parametrize("encoding", encodings.LOSSLESS_COLOUR)
def test_lossless_colour(encoding):
    encoded = encodings.LOSSLESS_COLOUR[encoding]
    np.testing.assert_array_equal(_decode(encoded, 3), COLOUR)
    np.testing.assert_array_equal(_decode(encoded, 1), luma(COLOUR))


def test_a_bmp_of_16_bits_for_all_three_colours():
    r, g, b = np.moveaxis(COLOUR[::-1].astype(np.uint16), -1, 0)  # from below
    packed = (r >> 3 << 11 | g >> 2 << 5 | b >> 3).astype("<u2").tobytes()
    height, width, _ = COLOUR.shape
    header = struct.pack("<2sIII", b"BM", 66 + len(packed), 0, 66)
    fields = (40, width, height, 1, 16, 3, len(packed), 0, 0, 0, 0)
    header += struct.pack("<IiiHHIIiiII", *fields)
    header += struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    difference = decode_picture(header + packed, channels=3).astype(int) - COLOUR
    assert abs(difference).max() < 8


@pytest.mark.parametrize("encoding", encodings.LOSSLESS_GREY)
def test_lossless_grey(encoding):
    encoded = encodings.LOSSLESS_GREY[encoding]
    np.testing.assert_array_equal(_decode(encoded, 1), GREY)
    np.testing.assert_array_equal(_decode(encoded, 3), np.repeat(GREY, 3, -1))


@pytest.mark.parametrize("encoding", encodings.LOSSY_COLOUR)
def test_lossy_colour(encoding):
    encoded, tolerance = encodings.LOSSY_COLOUR[encoding]
    expected = COLOUR.astype(int)
    np.testing.assert_allclose(_decode(encoded, 3), expected, atol=tolerance)
    # Luma and grey alike: what was lost is mostly colour.
    np.testing.assert_allclose(_decode(encoded, 1), luma(COLOUR), atol=tolerance)


@pytest.mark.parametrize("encoding", encodings.LOSSY_GREY)
def test_lossy_grey(encoding):
    encoded, tolerance = encodings.LOSSY_GREY[encoding]
    np.testing.assert_allclose(_decode(encoded, 1), GREY, atol=tolerance)
    np.testing.assert_allclose(
        _decode(encoded, 3), np.repeat(GREY, 3, -1), atol=tolerance
    )


@pytest.mark.parametrize("orientation", encodings.STORED)
@pytest.mark.parametrize(
    "encode",
    [
        lambda image, o: pillow(image, "PNG", exif=encodings.exif(o)),
        lambda image, o: pillow(image, "TIFF", exif=encodings.exif(o)),
        lambda image, o: pillow(image, "WEBP", lossless=True, exif=encodings.exif(o)),
        lambda image, o: png(wide(image), 2, chunks=_exif_chunk(o)),
        lambda image, o: tiff(wide(image), 2, tags={encodings.ORIENTATION: [o]}),
    ],
    ids=["png", "tiff", "webp", "png 16", "tiff 16"],
)
def test_exif_orientation_of_colour(encode, orientation):
    encoded = encode(encodings.STORED[orientation](COLOUR), orientation)
    np.testing.assert_array_equal(_decode(encoded, 3), COLOUR)


@pytest.mark.parametrize("orientation", encodings.STORED)
@pytest.mark.parametrize(
    "encode",
    [
        lambda image, o: png(image, 0, chunks=_exif_chunk(o)),
        lambda image, o: png(wide(image), 0, chunks=_exif_chunk(o)),
        lambda image, o: tiff(wide(image), 1, tags={encodings.ORIENTATION: [o]}),
        lambda image, o: tiff(
            wide(image), 1, order=">", tags={encodings.ORIENTATION: [o]}
        ),
    ],
    ids=["png", "png 16", "tiff 16", "tiff 16 big end first"],
)
def test_exif_orientation_of_grey(encode, orientation):
    encoded = encode(encodings.STORED[orientation](GREY), orientation)
    np.testing.assert_array_equal(_decode(encoded, 1), GREY)


@pytest.mark.parametrize("orientation", encodings.STORED)
def test_exif_orientation_of_jpeg(orientation):
    stored = encodings.STORED[orientation](COLOUR)
    encoded = pillow(stored, "JPEG", quality=95, exif=encodings.exif(orientation))
    np.testing.assert_allclose(_decode(encoded, 3), COLOUR.astype(int), atol=12)


def test_damaged_exif_is_ignored():
    encoded = pillow(COLOUR, "WEBP", lossless=True, exif=b"Exif\0\0MM\0\1rubbish")
    np.testing.assert_array_equal(_decode(encoded, 3), COLOUR)


def _exif_chunk(orientation: int) -> bytes:
    content = encodings.exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    return encodings.png_chunk(b"eXIf", content)


@pytest.mark.parametrize(
    "encode",
    [
        lambda values: png(values, 0),
        lambda values: tiff(values, 1),
        lambda values: tiff(65535 - values, 0),
        lambda values: b"P5 256 256 65535 " + values.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "tiff white is 0", "pgm"],
)
def test_every_grey_of_16_bits_is_rounded(encode):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    expected = np.rint(values / 257)
    np.testing.assert_array_equal(_decode(encode(values), 1), expected)


@pytest.mark.parametrize(
    "encode",
    [
        lambda values: png(values, 2),
        lambda values: tiff(values, 2),
    ],
    ids=["png", "tiff"],
)
def test_every_colour_of_16_bits_is_rounded(encode):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    values = np.stack([values, values[::-1], values.T], -1)
    np.testing.assert_array_equal(_decode(encode(values), 3), np.rint(values / 257))


# Black strokes, what is around them is black too, but transparent.
STROKES = np.zeros((6, 7), bool)
STROKES[2:4, 1:6] = True
BLACK = np.zeros((6, 7, 3), np.uint8)
BLACK_ALPHA = encodings.with_alpha(BLACK, 255 * STROKES.astype(np.uint8))


def _palette_with_alpha(kind: str) -> bytes:
    image = Image.frombytes("P", (7, 6), STROKES.astype(np.uint8).tobytes())
    image.putpalette(bytes(6))
    file = io.BytesIO()
    image.save(file, kind, transparency=0)
    return file.getvalue()


def _key_colour(pixels: np.ndarray, colour_type: int) -> bytes:
    """Encode a PNG in which the colour 3, or (3, 3, 3), is transparent."""
    pixels = np.where(STROKES[..., None], 0, 3 + 0 * pixels).astype(pixels.dtype)
    content = np.full(pixels.shape[-1], 3, ">u2").tobytes()
    return png(pixels, colour_type, chunks=encodings.png_chunk(b"tRNS", content))


TRANSPARENT = {
    "png rgba": png(BLACK_ALPHA, 6),
    "png grey and alpha": png(BLACK_ALPHA[..., 2:], 4),
    "png 16 rgba": png(wide(BLACK_ALPHA), 6),
    "png 16 grey and alpha": png(wide(BLACK_ALPHA[..., 2:]), 4),
    "png palette": _palette_with_alpha("PNG"),
    "png grey, one transparent": _key_colour(BLACK[..., :1], 0),
    "png rgb, one transparent": _key_colour(BLACK, 2),
    "png 16 grey, one transparent": _key_colour(wide(BLACK[..., :1]), 0),
    "png 16 rgb, one transparent": _key_colour(wide(BLACK), 2),
    "gif": _palette_with_alpha("GIF"),
    "webp": pillow(BLACK_ALPHA, "WEBP", lossless=True, exact=True),
    "tiff rgba": tiff(BLACK_ALPHA, 2, tags={338: [2]}),
    "tiff rgba premultiplied": tiff(BLACK_ALPHA, 2, tags={338: [1]}),
    "tiff grey and alpha": tiff(BLACK_ALPHA[..., 2:], 1, tags={338: [2]}),
    "tiff 16 rgba": tiff(wide(BLACK_ALPHA), 2, tags={338: [2]}),
    "tiff 16 rgba premultiplied": tiff(wide(BLACK_ALPHA), 2, tags={338: [1]}),
}
if int(PIL.__version__.split(".")[0]) >= 13:  # Older ones refuse it.
    TRANSPARENT["tiff grey and alpha premultiplied"] = tiff(
        BLACK_ALPHA[..., 2:], 1, tags={338: [1]}
    )


@pytest.mark.parametrize("background", [255, 100])
@pytest.mark.parametrize("encoding", TRANSPARENT)
def test_transparent_pixels_show_the_background(encoding, background):
    expected = np.where(STROKES, 0, background)
    for channels in (1, 3):
        image = _decode(TRANSPARENT[encoding], channels, background)
        for channel in range(channels):
            np.testing.assert_array_equal(image[..., channel], expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_half_transparent_colours_are_mixed(premultiplied, deep):
    colour, opacity = np.array([200.0, 100.0, 0.0]), 102 / 255
    stored = colour * opacity if premultiplied else colour
    pixels = np.tile(np.append(stored, 102).astype(np.uint8), (3, 4, 1))
    tags = {338: [1 if premultiplied else 2]}
    encoded = tiff(wide(pixels) if deep else pixels, 2, tags=tags)
    expected = np.tile(opacity * colour + (1 - opacity) * 255, (3, 4, 1))
    np.testing.assert_allclose(_decode(encoded, 3), expected, atol=1)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_frames(kind):
    first, second = encodings.as_palette(GREY), encodings.as_palette(GREY[::-1])
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [it.convert("RGB") if kind == "WEBP" else it for it in (first, second)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(_decode(file.getvalue(), 1), GREY)
