"""Decode an image file of any common format to uint8 pixels.

Pillow decodes all but colours of 16 bits, whose low bits it drops; OpenCV keeps them.
"""

import contextlib
import io
import pathlib
import re

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from train_jax.data.quiet import no_warnings, quiet

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
_MAX_PIXELS = 2**26

# Values of TIFF tags.
_WHITE_IS_ZERO, _SEPARATE_PLANES = 0, 2
_SAMPLE_FORMATS = {2: "signed integers", 3: "floats"}


class _RefusedError(Exception):
    """An image is too large, or of a kind of numbers that is not allowed."""


def decode_picture(
    source: str | pathlib.Path | bytes, *, channels: int, background: int = 255
) -> np.ndarray:
    """Decode an image, or the first frame of several, and turn it as EXIF says.

    16 bits are rounded to 8. Transparency is blended with the background. Colours are
    converted to grey by their luma (ITU-R 601), grey to RGB by repeating it.

    Args:
        source: a file, or its content.
        channels: 1 for grey, 3 for RGB.
        background: grey level, 0 to 255.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ValueError: naming the file, if it can't be read, is not an image, is damaged,
            is larger than 2**26 pixels, or has samples other than 8 or 16
            unsigned bits.
    """
    if isinstance(source, bytes):
        name, encoded = "the picture", source
    else:
        name = repr(str(source))
        encoded = _read(pathlib.Path(source), name)
    try:
        with no_warnings():
            image = _decode(encoded, background)
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise ValueError(
            f"{name} is no picture of a known kind: {formats}; 8 or 16 bits, unsigned"
        ) from error
    except (_RefusedError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not allowed: {error}") from error
    except Exception as error:  # Each format raises its own for damage.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is damaged: {reason}") from error
    image_HWC = np.asarray(image if channels == 3 else image.convert("L"))
    return image_HWC.reshape(*image_HWC.shape[:2], channels)


def flatten_picture(
    image_HWC: np.ndarray, *, channels: int, background: int = 255
) -> np.ndarray:
    """Blend RGBA pixels with the background, and turn them into grey or RGB.

    Args:
        image_HWC: uint8, four channels.
        channels: 1 for grey, 3 for RGB.
        background: grey level, 0 to 255.

    Returns:
        (H, W, channels) uint8.
    """
    image = _on_background(Image.fromarray(image_HWC), background)
    flat_HWC = np.asarray(image if channels == 3 else image.convert("L"))
    return flat_HWC.reshape(*flat_HWC.shape[:2], channels)


def _read(path: pathlib.Path, name: str) -> bytes:
    """Read a regular file; a pipe or device may have no end."""
    try:
        is_other = path.exists() and not path.is_file()
        encoded = b"" if is_other else path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} can't be read: {reason}") from error
    if is_other:
        raise ValueError(f"{name} is not a file")
    return encoded


def _decode(encoded: bytes, background: int) -> Image.Image:
    """Decode an image to 8-bit RGB."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    picture = Image.open(io.BytesIO(encoded), formats=formats)
    stored_as = str(picture.tile)
    _check(picture)
    # Of the libraries, libtiff and OpenCV print; one thread at a time can silence them.
    # Not BGR;16, whose three colours have 16 bits together.
    is_deep = re.search("(?<!BGR);16", stored_as) is not None
    may_print = picture.format == "TIFF" or is_deep
    with quiet() if may_print else contextlib.nullcontext():
        picture.load()
        image: Image.Image = picture
        if is_deep and picture.mode in ("RGB", "RGBA", "LA"):
            image = _eight_bit_colours(picture, encoded, "RGBa" in stored_as)
        elif picture.mode.startswith("I"):
            image = _eight_bit_greys(picture)
    image = _on_background(image, background)
    # Both libraries have turned a TIFF already, and Pillow has removed its tag.
    with contextlib.suppress(Exception):  # Damaged EXIF: the pixels are still good.
        tag = ExifTags.Base.Orientation
        image.getexif()[tag] = picture.getexif().get(tag, 1)
        image = ImageOps.exif_transpose(image)
    return image


def _check(picture: ImageFile.ImageFile) -> None:
    """Raise _RefusedError if it is too large, or would be decoded wrongly."""
    width, height = picture.size
    if width * height > _MAX_PIXELS:
        raise _RefusedError(f"{width}x{height}, more than {_MAX_PIXELS} pixels")
    # Not I, which is how Pillow holds the 16 bits of a PPM.
    found = "floats" if picture.mode == "F" else None
    if isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        bits = max(tags.get(BITSPERSAMPLE, (1,)))
        sample_format = max(tags.get(SAMPLEFORMAT, (1,)))
        if sample_format in _SAMPLE_FORMATS or bits > 16 or 8 < bits < 16:
            found = f"{bits}-bit {_SAMPLE_FORMATS.get(sample_format, 'integers')}"
        elif bits == 16 and tags.get(PLANAR_CONFIGURATION) == _SEPARATE_PLANES:
            found = "16-bit colours in separate planes"
    if found is not None:
        raise _RefusedError(f"it holds {found}, expected 8 or 16 bits, unsigned")


def _eight_bit_colours(
    picture: ImageFile.ImageFile, encoded: bytes, premultiplied: bool
) -> Image.Image:
    """Decode colours of 16 bits to RGB, RGBA or RGBa."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    alpha = picture.has_transparency_data
    mode = "RGB" if not alpha else "RGBa" if premultiplied else "RGBA"
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[2:] < (len(mode),):
        raise ValueError("OpenCV can't decode it")
    pixels = _scale(pixels[..., [2, 1, 0, 3] if alpha else [2, 1, 0]])
    height, width, _ = pixels.shape
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _eight_bit_greys(picture: ImageFile.ImageFile) -> Image.Image:
    """Convert greys of 16 bits to L, or to LA if one of them means transparent."""
    pixels = np.asarray(picture)
    image = Image.fromarray(_scale(pixels))
    tags = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    if tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    if "transparency" in picture.info:
        opaque = np.where(pixels == picture.info["transparency"], 0, 255)
        image.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return image


def _scale(pixels: np.ndarray) -> np.ndarray:
    """Scale 0 to 65535 down to 0 to 255, rounded."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_background(image: Image.Image, background: int) -> Image.Image:
    """Blend an 8-bit image with a grey background, to RGB."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "RGBa" or image.has_transparency_data:
        colour = (background, background, background, 255)
        ground = Image.new("RGBA", image.size, colour)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")
