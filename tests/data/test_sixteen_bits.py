"""Images of 16 bits: gray and color, with the white levels of cameras."""

import struct

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.data.decoding import decode_image, decode_image_and_peak
from efficientad_jax.errors import InputError
from tests.helpers.bad_images import sixteen_bit_png
from tests.helpers.images import encoded


@pytest.mark.parametrize("white_level", [1023, 4095, 16383, 65535])
def test_the_white_level_of_a_camera_becomes_white(white_level: int) -> None:
    pixels = np.linspace(0, white_level, 600, dtype=np.uint16).reshape(20, 30)
    stored = encoded(Image.fromarray(pixels), "PNG")
    image = decode_image(stored, white_level=white_level)
    expected = np.rint(pixels / white_level * 255)
    np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))
    assert len(np.unique(image)) == 256
    assert decode_image(stored, white_level=max(1, white_level // 2)).max() == 255
    default, peak = decode_image_and_peak(stored)
    np.testing.assert_array_equal(default[..., 0], np.rint(pixels / 257))
    assert peak == white_level
    assert decode_image_and_peak(np.zeros((2, 2), np.uint8))[1] is None


def sixteen_bit_tiff(pixels: np.ndarray, order: str) -> bytes:
    """A TIFF file of 16 bits per channel, `[h, w, 3]`; `order` is '<' or '>'."""
    height, width, _ = pixels.shape
    stored = pixels.astype(f"{order}u2").tobytes()
    start = 8 + 2 + 9 * 12 + 4
    entries = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, start), (259, 3, 1, 1)),
        *((262, 3, 1, 2), (273, 4, 1, start + 6), (277, 3, 1, 3), (278, 3, 1, height)),
        (279, 4, 1, len(stored)),
    ]
    fields = [
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if (kind, count) == (3, 1) else b"")
        + (struct.pack(f"{order}I", value) if (kind, count) != (3, 1) else b"")
        for tag, kind, count, value in entries
    ]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(fields) + bytes(4)
    return head + directory + struct.pack(f"{order}HHH", 16, 16, 16) + stored


@pytest.mark.parametrize("form", ["PNG", "PNG with transparency", "TIFF <", "TIFF >"])
@pytest.mark.parametrize("white_level", [4095, 16383])
def test_the_white_level_applies_to_colors(form: str, white_level: int) -> None:
    pixels = np.random.default_rng(0).integers(0, white_level + 1, (21, 33, 4)).astype(np.uint16)
    pixels[0, 0, :3] = white_level
    if form.startswith("PNG"):
        stored = sixteen_bit_png(pixels[..., : 3 if form == "PNG" else 4])
    else:
        stored = sixteen_bit_tiff(pixels[..., :3], form[-1])
    image, peak = decode_image_and_peak(stored, white_level=white_level)
    np.testing.assert_array_equal(image, np.rint(pixels[..., :3] / white_level * 255))
    assert peak == white_level
    # Without a white level, they are as in earlier versions.
    image, peak = decode_image_and_peak(stored)
    np.testing.assert_array_equal(image, pixels[..., :3] >> 8)
    assert peak == white_level


def test_colors_of_sixteen_bits_in_compressed_tiff_have_a_white_level() -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install -e '.[watch]'")
    pixels = np.random.default_rng(0).integers(0, 4096, (21, 33, 3)).astype(np.uint16)
    stored = cv2.imencode(".tif", pixels[..., ::-1])[1].tobytes()
    image = decode_image(stored, white_level=4095)
    np.testing.assert_array_equal(image, np.rint(pixels / 4095 * 255))


def test_gray_with_transparency_of_sixteen_bits_is_refused_for_a_white_level() -> None:
    stored = sixteen_bit_png(np.full((3, 4, 2), 4095, np.uint16))
    assert decode_image_and_peak(stored)[1] == 4095
    with pytest.raises(InputError, match=r"image p: 16 bits .* expected gray or color without"):
        decode_image(stored, "p", white_level=4095)
