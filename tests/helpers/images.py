"""Random images: as arrays, as encoded bytes and as files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

# The size of the files that `write_image` and `write_mask` write.
HEIGHT, WIDTH = 12, 18

_GENERATOR = np.random.default_rng(0)


def uint8_images(
    count: int = 1, size: tuple[int, int] = (128, 128), seed: int = 0, *, block: int = 1
) -> np.ndarray:
    """Uniform noise, `[count, *size, 3]`; each value fills a square of `block` by `block` pixels.

    With blocks of 8 pixels the noise remains after an average over patches.
    """
    height, width = size[0] // block, size[1] // block
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    return pixels.repeat(block, axis=1).repeat(block, axis=2)


def picture(height: int = 70, width: int = 90, seed: int = 0) -> np.ndarray:
    """Noise of a contrast that depends on the seed, as scores do, then: `[height, width, 3]`."""
    rng = np.random.default_rng(seed)
    contrast = rng.integers(1, 128)
    return rng.integers(128 - contrast, 128 + contrast, (height, width, 3)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options) -> bytes:
    """The bytes of an image file; `options` are those of Pillow's encoder."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if file_format == "WEBP":
        options = {"lossless": True} | options
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Writes noise, in each file another, and returns the path; makes the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _GENERATOR.integers(0, 256, (height, width, 3), np.uint8)
    # PNG is not compressed, so that files of the same shape have the same size in bytes.
    Image.fromarray(pixels).save(path, compress_level=0)
    return path


def write_mask(
    path: Path,
    top: int = 1,
    area: tuple[int, int] = (4, 5),
    *,
    value: int = 255,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """Writes a mask with a rectangle of `value`, whose first row is `top`; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[top : top + area[0], 2 : 2 + area[1]] = value
    Image.fromarray(mask).save(path)
    return path
