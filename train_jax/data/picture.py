"""Decode a picture that a user hands over: any common format, to uint8 pixels.

Pillow decodes. Of colours with 16 bits it drops the low ones; OpenCV decodes these.
"""

import contextlib
import io
import pathlib

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from train_jax.data.quiet import quiet

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
_MOST_PIXELS = 2**26

# Numbers of TIFF tags, and what they say.
_BITS, _PHOTOMETRIC, _PLANES, _NUMBERS = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE = 0, 2
_NOT_UNSIGNED = {2: "signed integers", 3: "floats"}

# The EXIF tag of the orientation, and how each is turned upright.
_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _RefusedError(Exception):
    """A picture of a size or of numbers that are not allowed."""


def decode_picture(
    source: str | pathlib.Path | bytes, *, channels: int, background: int = 255
) -> np.ndarray:
    """Decode a picture, or the first frame of several, the right way up.

    16 bits are rounded to 8. What is transparent shows the background. Colours become
    grey by their luma; grey is repeated to make a colour.

    Args:
        source: a file, or its content.
        channels: 1 for grey, 3 for RGB.
        background: grey level, 0 to 255.

    Returns:
        (H, W, channels) uint8.

    Raises:
        ValueError: naming the file, if it can't be read, is no picture, is damaged, is
            larger than 2**26 pixels, or has numbers other than 8 or 16 unsigned bits.
    """
    if isinstance(source, bytes):
        name, encoded = "the picture", source
    else:
        name = repr(str(source))
        encoded = _read(pathlib.Path(source), name)
    try:
        with quiet():
            image = _decode(encoded, background)
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise ValueError(
            f"{name} is no picture of a known kind: {formats}; 8 or 16 bits, unsigned"
        ) from error
    except (_RefusedError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not allowed: {error}") from error
    except Exception as error:  # For damage, every format raises what it likes.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is damaged: {reason}") from error
    image_HWC = np.asarray(image if channels == 3 else image.convert("L"))
    return image_HWC.reshape(*image_HWC.shape[:2], channels)


def _read(path: pathlib.Path, name: str) -> bytes:
    """Read a file, but no pipe or device, which may have no end."""
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
    """Decode a picture to 8-bit RGB."""
    Image.init()
    formats = [name for name in _FORMATS if name in Image.OPEN]
    picture = Image.open(io.BytesIO(encoded), formats=formats)
    stored_as = str(picture.tile)
    _check(picture)
    picture.load()
    image: Image.Image = picture
    if ";16" in stored_as and picture.mode in ("RGB", "RGBA", "LA"):
        image = _eight_bit_colours(picture, encoded, "RGBa" in stored_as)
    elif picture.mode.startswith("I"):
        image = _eight_bit_greys(picture)
    image = _on_background(image, background)
    # Both libraries have turned a TIFF already, and Pillow has taken its tag away.
    orientation = None
    with contextlib.suppress(Exception):  # Damaged EXIF: the pixels are still good.
        orientation = picture.getexif().get(_ORIENTATION)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _check(picture: ImageFile.ImageFile) -> None:
    """Refuse what is too large, and what Pillow and OpenCV would decode wrongly."""
    width, height = picture.size
    if width * height > _MOST_PIXELS:
        raise _RefusedError(f"{width}x{height}, more than {_MOST_PIXELS} pixels")
    # Not I, which is how Pillow holds the 16 bits of a PPM.
    found = "floats" if picture.mode == "F" else None
    if isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        bits, numbers = max(tags.get(_BITS, (1,))), max(tags.get(_NUMBERS, (1,)))
        if numbers in _NOT_UNSIGNED or bits > 16 or 8 < bits < 16:
            found = f"{bits}-bit {_NOT_UNSIGNED.get(numbers, 'integers')}"
        elif bits == 16 and tags.get(_PLANES) == _SEPARATE:
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
    """Turn greys of 16 bits into L, or LA if one of them stands for transparent."""
    pixels = np.asarray(picture)
    image = Image.fromarray(_scale(pixels))
    tags = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        image = ImageOps.invert(image)
    if "transparency" in picture.info:
        opaque = np.where(pixels == picture.info["transparency"], 0, 255)
        image.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return image


def _scale(pixels: np.ndarray) -> np.ndarray:
    """Scale 0 to 65535 down to 0 to 255, rounded."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _on_background(image: Image.Image, background: int) -> Image.Image:
    """Lay an 8-bit image on a grey ground, as RGB."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "RGBa" or image.has_transparency_data:
        colour = (background, background, background, 255)
        ground = Image.new("RGBA", image.size, colour)
        image = Image.alpha_composite(ground, image.convert("RGBA"))
    return image.convert("RGB")
