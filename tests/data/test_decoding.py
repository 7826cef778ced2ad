import contextlib
import io
import logging
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from efficientad_jax.data.decoding import (
    _report_gray_mask,
    _report_large_mask,
    decode_image,
    decode_mask,
    resize_image,
)
from efficientad_jax.errors import InputError, TooManyPixelsError, UnknownFormatError
from tests.helpers.bad_images import png_chunk
from tests.helpers.images import encoded

RGB = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
GRAY = RGB[..., 0]
GRAY_AS_RGB = np.stack([GRAY] * 3, axis=-1)
SIXTEEN_BITS = np.random.default_rng(1).integers(0, 65536, (7, 5), np.uint16)
SIXTEEN_BITS[0, :2] = 0, 65535


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    """Adds a channel of transparency that would change the colors if it were applied."""
    alpha = np.arange(35, dtype=np.uint8).reshape(7, 5, 1) * 7
    return np.concatenate([pixels.reshape(7, 5, -1), alpha], axis=-1)


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(RGB), "PNG", exif=exif.tobytes())


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says it has this size and holds no pixels."""

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(with_alpha(RGB), "RGBA"), RGB),
        (Image.fromarray(GRAY), GRAY_AS_RGB),
        (Image.fromarray(with_alpha(GRAY), "LA"), GRAY_AS_RGB),
        (Image.fromarray(GRAY > 99), np.where(GRAY_AS_RGB > 99, np.uint8(255), np.uint8(0))),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes_give_rgb(image: Image.Image, expected: np.ndarray) -> None:
    for source in (image, encoded(image, "PNG")):
        decoded = decode_image(source)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, expected)


def test_palette_is_looked_up_and_its_transparency_dropped() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    palette = [10, 20, 30, 40, 50, 60, 70, 80, 90]
    image.putpalette(palette)
    expected = np.array(palette, np.uint8).reshape(3, 3)[[[0, 1], [2, 1]]]
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), expected)
    with_holes = encoded(image, "PNG", transparency=b"\x00\x80\xff")
    np.testing.assert_array_equal(decode_image(with_holes), expected)


def test_cmyk_is_converted() -> None:
    ink = np.zeros((1, 4, 4), np.uint8)
    ink[0, np.arange(4), np.arange(4)] = 255
    image = Image.fromarray(ink, "CMYK")
    expected = [[[0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]]]
    np.testing.assert_array_equal(decode_image(encoded(image, "TIFF")), expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_rounded_to_eight(file_format: str) -> None:
    expected = np.rint(SIXTEEN_BITS / 257).astype(np.uint8)[..., None].repeat(3, axis=-1)
    source = encoded(Image.fromarray(SIXTEEN_BITS), file_format)
    np.testing.assert_array_equal(decode_image(source), expected)
    np.testing.assert_array_equal(decode_image(SIXTEEN_BITS), expected)
    np.testing.assert_array_equal(decode_image(SIXTEEN_BITS.astype(">u2")), expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (with_alpha(RGB), RGB),
        (GRAY, GRAY_AS_RGB),
        (GRAY[..., None], GRAY_AS_RGB),
        (with_alpha(GRAY), GRAY_AS_RGB),
        (GRAY / 255, GRAY_AS_RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (np.array([[False, True]]), np.array([[[0] * 3, [255] * 3]])),
    ],
)
def test_arrays_give_rgb(array: np.ndarray, expected: np.ndarray) -> None:
    decoded = decode_image(array)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.full((2, 2), 1.01), r"floats outside \[0, 1\]"),
        (np.full((2, 2), -0.1, np.float32), r"floats outside \[0, 1\]"),
        (np.full((2, 2), np.nan), r"floats outside \[0, 1\]"),
        (np.zeros((2, 2), np.int32), "dtype int32"),
        (np.zeros((2, 2), np.int64), "dtype int64"),
        (np.zeros((2, 2, 5), np.uint8), r"shape \(2, 2, 5\)"),
        (np.zeros((3,), np.uint8), r"shape \(3,\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), r"shape \(0, 2, 3\)"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        decode_image(array)
    with pytest.raises(InputError, match="image camera 3: "):
        decode_image(array, "camera 3")


def test_pixels_of_32_bits_are_refused_for_what_they_are() -> None:
    integers = encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF")
    with pytest.raises(InputError, match="dtype int32, expected"):
        decode_image(integers)
    floats = encoded(Image.fromarray(np.full((2, 2), 7, np.float32)), "TIFF")
    with pytest.raises(InputError, match="bytes: floats outside"):
        decode_image(floats)


def test_floats_in_range_are_taken_from_a_file() -> None:
    source = encoded(Image.fromarray(GRAY.astype(np.float32) / 255), "TIFF")
    np.testing.assert_array_equal(decode_image(source), GRAY_AS_RGB)


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, RGB),
        (2, RGB[:, ::-1]),
        (3, RGB[::-1, ::-1]),
        (4, RGB[::-1]),
        (5, RGB.swapaxes(0, 1)),
        (6, np.rot90(RGB, -1)),
        (7, np.rot90(RGB, 2).swapaxes(0, 1)),
        (8, np.rot90(RGB)),
    ],
)
def test_exif_rotation_is_carried_out(orientation: int, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_image(rotated(orientation)), expected)


def test_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 3), color) for color in ((255, 0, 0), (0, 255, 0))]
    for file_format in ("GIF", "WEBP", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        source = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(decode_image(source), np.full((3, 4, 3), (255, 0, 0)))


def test_path_in_either_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "photograph.png"
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(decode_image(path), RGB)
    np.testing.assert_array_equal(decode_image(str(path)), RGB)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an image"),
        (b"not an image at all", "not an image"),
        (encoded(Image.fromarray(RGB), "PNG")[:80], "damaged or cut off"),
        (encoded(Image.fromarray(RGB), "JPEG")[:300], "damaged or cut off|not an image"),
        (None, "no such file"),
    ],
)
def test_unreadable_file_is_named_in_one_line(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "photograph.png"
    if content is not None:
        path.write_bytes(content)
    for decode in (decode_image, decode_mask):
        with pytest.raises(InputError, match=complaint) as caught:
            decode(path)
        unknown = "not an image" in str(caught.value)
        assert isinstance(caught.value, UnknownFormatError) == unknown
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        decode_image(tmp_path)


def test_damaged_pil_image_is_refused() -> None:
    source = encoded(Image.fromarray(RGB), "PNG")[:80]
    with Image.open(io.BytesIO(source)) as image, pytest.raises(InputError, match="cut off"):
        decode_image(image)


@pytest.mark.parametrize("file_format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_damage_anywhere_is_survived_or_refused(file_format: str) -> None:
    whole = encoded(Image.fromarray(RGB), file_format)
    generator = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        damaged[generator.integers(len(damaged))] ^= int(generator.integers(1, 256))
        # Any other exception, or a warning, fails the test.
        with contextlib.suppress(InputError):
            assert decode_image(bytes(damaged)).shape[2] == 3


@pytest.mark.parametrize("side", [9500, 14000])  # Pillow warns of the first, refuses the second.
def test_decompression_bomb_is_refused(side: int) -> None:
    with pytest.raises(TooManyPixelsError, match="too many pixels"):
        decode_image(png_of_size(side, side))


def test_decoding_in_threads_leaves_the_warning_filters_alone() -> None:
    source = encoded(Image.fromarray(RGB.repeat(30, axis=0).repeat(30, axis=1)), "PNG")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    before = list(warnings.filters)
    try:
        threads = [
            threading.Thread(target=lambda: [decode_image(source) for _ in range(60)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
    finally:
        sys.setswitchinterval(interval)
        warnings.filters = before


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.int32, np.float32, np.bool_], ids=lambda dtype: dtype.__name__
)
def test_mask_is_true_where_the_file_is_not_zero(dtype: type) -> None:
    marked = GRAY > 128
    # 1 of 65535 would be 0 of 255.
    stored = marked.astype(dtype)
    np.testing.assert_array_equal(decode_mask(stored), marked)
    source = encoded(Image.fromarray(stored), "TIFF")
    decoded = decode_mask(source)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, marked)


def test_transparent_pixels_of_a_mask_mark_no_defect() -> None:
    empty = np.zeros((3, 4, 4), np.uint8)
    empty[..., 3] = 255
    assert not decode_mask(empty).any()
    empty[1, 2, 1] = 1
    assert decode_mask(encoded(Image.fromarray(empty), "PNG")).sum() == 1
    # White everywhere, and transparent but for the defect, as image editors write a layer.
    layer = np.full((3, 4, 4), 255, np.uint8)
    layer[..., 3] = 0
    layer[1, 1:3, 3] = 255, 9
    expected = layer[..., 3] > 0
    for mode, file_format in (("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF")):
        stored = encoded(Image.fromarray(layer).convert(mode), file_format)
        np.testing.assert_array_equal(decode_mask(stored), expected)
    layer[..., :3] = 0
    with pytest.raises(InputError, match="mask m: black with transparent parts, expected 255"):
        decode_mask(encoded(Image.fromarray(layer)), "m")


def test_masks_that_mark_most_of_an_image_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    _report_large_mask.cache_clear()
    mask = np.zeros((4, 8), np.uint8)
    mask[1, 2:5] = 255
    with caplog.at_level(logging.WARNING):
        assert decode_mask(encoded(mask), "masks/1.png").sum() == 3
        assert not caplog.records
        assert decode_mask(encoded(255 - mask), "masks/1.png").sum() == 29
    assert "masks in masks mark more than half" in caplog.text


def soft_mask(side: int = 64) -> np.ndarray:
    """A disk with an anti-aliased edge, 0 to 255."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    edge = np.clip(side / 4 - np.hypot(y, x) + 0.5, 0, 1)
    return np.rint(255 * edge).astype(np.uint8)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {"quality": 75}), ("JPEG", {"quality": 20}), ("WEBP", {"lossless": False})],
)
def test_a_mask_of_a_lossy_format_has_the_regions_of_the_original(
    file_format: str, options: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    _report_gray_mask.cache_clear()
    original = np.zeros((96, 96), np.uint8)
    original[10:40, 20:60] = original[70:75, 5:90] = 255
    stored = encoded(Image.fromarray(original), file_format, **options)
    with Image.open(io.BytesIO(stored)) as image:
        noisy = np.asarray(image.convert("L"))
    assert label(noisy)[1] > 2  # with each value but 0
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            decoded = decode_mask(stored, "ground_truth/crack/1_mask.jpg")
    assert label(decoded)[1] == 2
    assert np.mean(decoded != (original > 0)) < 0.01
    (record,) = caplog.records
    assert "ground_truth/crack" in record.getMessage()
    assert "128" in record.getMessage() or "127.5" in record.getMessage()


def test_a_black_mask_of_a_lossy_format_marks_nothing_and_a_dark_one_is_refused() -> None:
    black = np.zeros((32, 32), np.uint8)
    assert not decode_mask(encoded(Image.fromarray(black), "JPEG")).any()
    dark = black.copy()
    dark[8:24, 8:24] = 1
    with pytest.raises(
        InputError, match=r"m\.jpg: a file of the lossy format JPEG .* save it as PNG"
    ):
        decode_mask(encoded(Image.fromarray(dark * 40), "JPEG"), "m.jpg")


def test_half_of_an_anti_aliased_edge_belongs_to_the_defect() -> None:
    mask = soft_mask()
    decoded = decode_mask(encoded(Image.fromarray(mask), "PNG"))
    np.testing.assert_array_equal(decoded, mask >= 128)
    # The same mask in 16 bits that were never stretched.
    sixteen = encoded(Image.fromarray(mask.astype(np.uint16)), "PNG")
    np.testing.assert_array_equal(decode_mask(sixteen), mask >= 128)


@pytest.mark.parametrize("values", [[1, 2, 3], [255], [100], [*range(1, 20)], [*range(236, 256)]])
def test_a_lossless_mask_may_name_its_defects_by_values(values: list[int]) -> None:
    """VisA counts from 1; MVTec LOCO AD has values from 236 on."""
    mask = np.zeros((4, 32), np.uint8)
    mask[1, : len(values)] = values
    decoded = decode_mask(encoded(Image.fromarray(mask), "PNG"))
    np.testing.assert_array_equal(decoded, mask > 0)


def triangle_weights(old: int, new: int) -> np.ndarray:
    """Weight of each old pixel in each new one: a triangle as wide as the pixels shrink."""
    weights = np.zeros((new, old))
    scale = old / new
    for i in range(new):
        for j in range(old):
            distance = abs((j + 0.5) - (i + 0.5) * scale) / max(scale, 1)
            weights[i, j] = max(0, 1 - distance)
        weights[i] /= weights[i].sum()
    return weights


@pytest.mark.parametrize(("height", "width"), [(7, 11), (31, 47), (100, 5), (20, 30)])
def test_resize_is_bilinear_with_antialiasing(height: int, width: int) -> None:
    image = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)
    rows, columns = triangle_weights(20, height), triangle_weights(30, width)
    expected = np.einsum("ia,jb,abc->ijc", rows, columns, image.astype(float))
    decoded = resize_image(image, height, width)
    assert decoded.shape == (height, width, 3)
    assert decoded.dtype == np.uint8
    # Pillow rounds after each of the two directions.
    assert np.abs(decoded - expected).max() <= 1.05
