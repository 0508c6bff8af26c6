"""Errors for image files that can't be decoded: one line each."""

import os
import pathlib

import numpy as np
import pytest

from tests.train.data import encodings
from tests.train.data.encodings import COLOUR, GREY, pillow, png, tiff, wide
from tests.train.data.tiny_set import message_of
from train_jax.data.picture import decode_picture


def _write(folder: pathlib.Path, name: str, content: bytes) -> pathlib.Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_a_path_or_its_text(tmp_path):
    path = _write(tmp_path, "picture", pillow(COLOUR, "PNG"))
    for source in (path, str(path)):
        image = decode_picture(source, channels=3)
        np.testing.assert_array_equal(image, COLOUR)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is no picture of a known kind: PNG, JPEG, TIFF"),
        (b"Only a text.\n", "is no picture of a known kind: PNG, JPEG, TIFF"),
        (
            # Not even if Ghostscript, which Pillow would start, is installed.
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "is no picture of a known kind",
        ),
        (pillow(COLOUR, "PNG")[:-30], "is damaged: "),
        (png(wide(COLOUR), 2)[:-30], "is damaged: "),
        (pillow(COLOUR, "JPEG")[:-30], "is damaged: "),
        (pillow(COLOUR, "BMP")[:-30], "is damaged: "),
        (pillow(COLOUR, "PPM")[:-30], "is damaged: "),
        (pillow(COLOUR, "GIF", palette=True)[:-30], "is damaged: "),
        (tiff(wide(COLOUR), 2)[:-30], "is damaged: "),
        (png(COLOUR, 2, size=(9000, 9000)), "is not allowed: 9000x9000, more than"),
        (png(COLOUR, 2, size=(20000, 20000)), "is not allowed: Image size (400000000"),
        (tiff(GREY / np.float32(255), 1, tags={339: [3]}), "it holds 32-bit floats"),
        (tiff(GREY.astype(np.uint32), 1), "it holds 32-bit integers"),
        (
            tiff(GREY.astype(np.int16), 1, tags={339: [2]}),
            "it holds 16-bit signed integers, expected 8 or 16 bits, unsigned",
        ),
        (tiff(wide(COLOUR), 2, tags={284: [2]}), "16-bit colours in separate planes"),
        (tiff(wide(COLOUR[..., :2]), 1, tags={338: [2]}), "16 bits, unsigned"),
        (b"Pf 20 24 -1 " + bytes(4 * GREY.size), "it holds floats"),
    ],
)
def test_error_for_content_that_is_not_an_image(tmp_path, capfd, content, expected):
    path = _write(tmp_path, "picture.png", content)
    message = message_of(lambda: decode_picture(path, channels=3))
    assert message.startswith(f"{str(path)!r} ")
    assert expected in message
    assert message_of(lambda: decode_picture(content, channels=1)).startswith(
        "the picture "
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none.png", "'none.png' can't be read: No such file or directory"),
        (".", "'.' is not a file"),
        ("pipe", "'pipe' is not a file"),
        ("picture/x.png", "'picture/x.png' can't be read: Not a directory"),
        ("a" * 300 + ".png", ".png' can't be read: File name too long"),
        ("a\0b", "can't be read: embedded null byte"),
    ],
)
def test_error_for_a_path_that_is_not_a_file(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, "picture", b"")
    os.mkfifo("pipe")
    assert expected in message_of(lambda: decode_picture(name, channels=3))


def test_error_for_a_file_without_permission(tmp_path, monkeypatch):
    path = _write(tmp_path, "picture.png", pillow(COLOUR, "PNG"))

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    message = message_of(lambda: decode_picture(path, channels=3))
    assert message == f"{str(path)!r} can't be read: Permission denied"


def test_damaged_content_gives_an_image_or_one_error_line(capfd):
    random = np.random.default_rng(0)
    whole = [*encodings.LOSSLESS_COLOUR.values(), *encodings.LOSSLESS_GREY.values()]
    whole += [encoded for encoded, _ in encodings.LOSSY_COLOUR.values()]
    refused = 0
    for encoded in whole * 12:
        content = bytearray(encoded)
        for _ in range(3):
            content[random.integers(len(content))] = random.integers(256)
        if random.random() < 0.3:
            del content[random.integers(len(content)) :]
        try:
            decode_picture(bytes(content), channels=3)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1, error
            assert str(error).startswith("the picture ")
            refused += 1
    assert refused > 100
    assert capfd.readouterr() == ("", "")
