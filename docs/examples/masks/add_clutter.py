"""Copies a dataset, with squares of random colors outside of the parts in every other test image.

    python add_clutter.py IMAGES MASKS COPY

MASKS is a folder of ignore masks, as `part_masks.py` writes them. The squares stand for a hand, a
tool or a lamp that comes into the picture: all that a detector finds there is a false alarm.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

SQUARES, SMALLEST, LARGEST = 6, 0.03, 0.08  # sides, as parts of the image's shorter side


def add_squares(image: np.ndarray, part: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with squares where the part is not."""
    cluttered = image.copy()
    for _ in range(SQUARES):
        side = int(rng.uniform(SMALLEST, LARGEST) * min(part.shape))
        top, left = (int(rng.integers(0, size - side)) for size in part.shape)
        window = np.s_[top : top + side, left : left + side]
        cluttered[window] = rng.integers(0, 256, 3)
    return np.where(part[..., None], image, cluttered)


def main() -> None:
    """Copies the folder and draws the squares."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "masks", "copy"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()

    shutil.copytree(options.images, options.copy)
    rng = np.random.default_rng(0)
    for file in sorted((options.copy / "test").glob("*/*"))[::2]:
        mask = (options.masks / file.relative_to(options.copy)).with_suffix(".png")
        part = np.asarray(Image.open(mask).convert("L")) > 0
        image = np.asarray(Image.open(file).convert("RGB"))
        file.unlink()  # lossless, so that the part keeps its pixels
        Image.fromarray(add_squares(image, part, rng)).save(file.with_suffix(".png"))


if __name__ == "__main__":
    main()
