"""One picture in colour and one in grey, in every encoding that a user may have."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_y, _x = np.mgrid[:24, :20] // 2
# 120 colours, so that a palette holds them; neighbours alike, so that JPEG does too.
COLOUR = np.stack([20 * _y, 25 * _x, 120 + 10 * _y - 10 * _x], -1).astype(np.uint8)
GREY = COLOUR[..., :1]

_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
_ADAM7 += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
ORIENTATION = 274

# How a picture is stored that is shown upright after EXIF's turn of that number.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


def luma(image_HWC: np.ndarray) -> np.ndarray:
    """ITU-R 601, in integers."""
    weighted = image_HWC.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]


def pillow(image_HWC: np.ndarray, kind: str, mode: str = "", **options) -> bytes:
    """Encode uint8 pixels with Pillow, converted to a mode first."""
    pixels = np.ascontiguousarray(image_HWC)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if options.pop("palette", False):
        image = as_palette(image_HWC)
    if mode:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_palette(image_HWC: np.ndarray) -> Image.Image:
    """Write exactly the same colours as numbers of a palette."""
    rgb = np.broadcast_to(image_HWC, (*image_HWC.shape[:2], 3))
    colours, index = np.unique(rgb.reshape(-1, 3), axis=0, return_inverse=True)
    height, width, _ = rgb.shape
    image = Image.frombytes("P", (width, height), index.astype(np.uint8).tobytes())
    image.putpalette(colours.astype(np.uint8).tobytes())
    return image


def exif(orientation: int) -> Image.Exif:
    """Make EXIF data that hold the orientation alone."""
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


def png(
    pixels: np.ndarray,
    colour_type: int,
    *,
    interlaced: bool = False,
    chunks: bytes = b"",
    size: tuple[int, int] | None = None,
) -> bytes:
    """Encode pixels of uint8 or uint16 without filters.

    Args:
        colour_type: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA.
        chunks: more of them, before the pixels.
        size: height and width to claim.
    """
    height, width = size or pixels.shape[:2]
    bits = 8 * pixels.itemsize
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in (_ADAM7 if interlaced else [(0, 0, 1, 1)])
        for row in big[top::down, left::right]
    )
    body = png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def tiff(
    pixels: np.ndarray,
    photometric: int,
    *,
    order: str = "<",
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """Encode pixels of any kind in one uncompressed strip.

    Args:
        photometric: 0 grey, white is 0; 1 grey; 2 RGB; 5 CMYK.
        order: of the bytes, < or >.
        tags: more of them, each with its numbers.
    """
    height, width, channels = pixels.shape
    strip = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    values = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * channels}
    values |= {259: [1], 262: [photometric], 273: [0], 277: [channels]}
    values |= {278: [height], 279: [len(strip)]} | (tags or {})
    start = 8 + 2 + 12 * len(values) + 4
    values[273] = [start + sum(2 * len(v) for v in values.values() if len(v) > 2)]
    entries, rest = b"", b""
    for tag, numbers in sorted(values.items()):
        long = max(numbers) > 65535
        packed = struct.pack(f"{order}{len(numbers)}{'I' if long else 'H'}", *numbers)
        if len(packed) > 4:
            where = struct.pack(f"{order}I", start + len(rest))
            packed, rest = where, rest + packed
        entry = struct.pack(f"{order}HHI", tag, 4 if long else 3, len(numbers))
        entries += entry + packed.ljust(4, b"\0")
    head = struct.pack(f"{order}HIH", 42, 8, len(values))
    magic = b"II" if order == "<" else b"MM"
    return magic + head + entries + bytes(4) + rest + strip


def wide(image_HWC: np.ndarray) -> np.ndarray:
    """The same picture in 16 bits."""
    return image_HWC.astype(np.uint16) * 257


def with_alpha(image_HWC: np.ndarray, alpha: int | np.ndarray = 255) -> np.ndarray:
    """Add an opacity, of all pixels or of each (H, W)."""
    opaque = np.full_like(image_HWC[..., 0], alpha)[..., None]
    return np.concatenate([image_HWC, opaque], -1)


LOSSLESS_COLOUR = {
    "png": pillow(COLOUR, "PNG"),
    "png palette": pillow(COLOUR, "PNG", palette=True),
    "png opaque alpha": pillow(with_alpha(COLOUR), "PNG"),
    "png 16": png(wide(COLOUR), 2),
    "png 16 opaque alpha": png(wide(with_alpha(COLOUR)), 6),
    "png interlaced": png(COLOUR, 2, interlaced=True),
    "png 16 interlaced": png(wide(COLOUR), 2, interlaced=True),
    "bmp": pillow(COLOUR, "BMP"),
    "bmp palette": pillow(COLOUR, "BMP", palette=True),
    "tiff": pillow(COLOUR, "TIFF"),
    "tiff lzw": pillow(COLOUR, "TIFF", compression="tiff_lzw"),
    "tiff deflate": pillow(COLOUR, "TIFF", compression="tiff_adobe_deflate"),
    "tiff palette": pillow(COLOUR, "TIFF", palette=True),
    "tiff cmyk": tiff(np.dstack([255 - COLOUR, 0 * GREY]), 5),
    "tiff of which Pillow warns": tiff(COLOUR, 2, tags={ORIENTATION: [1, 1]}),
    "tiff 16": tiff(wide(COLOUR), 2),
    "tiff 16 big end first": tiff(wide(COLOUR), 2, order=">"),
    "tiff 16 opaque alpha": tiff(wide(with_alpha(COLOUR)), 2, tags={338: [2]}),
    "tiff 16 fourth is no alpha": tiff(wide(with_alpha(COLOUR, 9)), 2, tags={338: [0]}),
    "webp": pillow(COLOUR, "WEBP", lossless=True),
    "webp opaque alpha": pillow(with_alpha(COLOUR), "WEBP", lossless=True),
    "gif": pillow(COLOUR, "GIF", palette=True),
    "ppm": pillow(COLOUR, "PPM"),
    "ppm 16": b"P6 20 24 65535 " + wide(COLOUR).astype(">u2").tobytes(),
    "ppm in digits": b"P3 20 24 255 " + b" ".join(b"%d" % v for v in COLOUR.ravel()),
    "jpeg 2000": pillow(COLOUR, "JPEG2000"),
}
LOSSLESS_GREY = {
    "png": pillow(GREY, "PNG"),
    "png as rgb": pillow(GREY, "PNG", "RGB"),
    "png palette": pillow(GREY, "PNG", palette=True),
    "png opaque alpha": png(with_alpha(GREY), 4),
    "png 16": png(wide(GREY), 0),
    "png 16 opaque alpha": png(wide(with_alpha(GREY)), 4),
    "png interlaced": png(GREY, 0, interlaced=True),
    "bmp": pillow(GREY, "BMP"),
    "tiff": pillow(GREY, "TIFF"),
    "tiff lzw": pillow(GREY, "TIFF", compression="tiff_lzw"),
    "tiff opaque alpha": tiff(with_alpha(GREY), 1, tags={338: [2]}),
    "tiff white is 0": tiff(255 - GREY, 0),
    "tiff 16": tiff(wide(GREY), 1),
    "tiff 16 big end first": tiff(wide(GREY), 1, order=">"),
    "tiff 16 white is 0": tiff(wide(255 - GREY), 0),
    "webp": pillow(GREY, "WEBP", "RGB", lossless=True),
    "gif": pillow(GREY, "GIF"),
    "pgm": pillow(GREY, "PPM"),
    "pgm 16": b"P5 20 24 65535 " + wide(GREY).astype(">u2").tobytes(),
    "pgm in digits": b"P2 20 24 255 " + b" ".join(b"%d" % v for v in GREY.ravel()),
    "jpeg 2000": pillow(GREY, "JPEG2000"),
}
# Each with the largest difference of a pixel that it may make.
LOSSY_COLOUR = {
    "jpeg": (pillow(COLOUR, "JPEG", quality=95), 12),
    "jpeg progressive": (pillow(COLOUR, "JPEG", quality=95, progressive=True), 12),
    "jpeg cmyk": (pillow(COLOUR, "JPEG", "CMYK", quality=95), 12),
    "webp": (pillow(COLOUR, "WEBP", quality=95), 30),
    "tiff lab": (pillow(COLOUR, "TIFF", "LAB"), 30),
}
LOSSY_GREY = {
    "jpeg": (pillow(GREY, "JPEG", quality=95), 6),
    "jpeg cmyk": (pillow(GREY, "JPEG", "CMYK", quality=95), 6),
    "webp": (pillow(GREY, "WEBP", quality=95), 12),
}
