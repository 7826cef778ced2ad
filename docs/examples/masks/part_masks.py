"""Writes an ignore mask for each image of a folder: white where the part is, black elsewhere.

    pip install numpy pillow scipy
    python part_masks.py IMAGES MASKS --brighter-than=30 --margin=8
    efficientad train IMAGES --config.dataset.ignore_mask=MASKS

The part is the largest set of pixels that touch and are brighter than a limit, without its holes.
Replace `part_of` where parts do not stand out by their brightness.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}


def part_of(gray: np.ndarray, limit: int, margin: int) -> np.ndarray:
    """The pixels of the part and of a margin around it: True there."""
    labels, count = ndimage.label(ndimage.gaussian_filter(gray.astype(np.float32), 2) > limit)
    if not count:
        return np.ones(gray.shape, bool)
    largest = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    filled = ndimage.binary_fill_holes(largest)
    return ndimage.binary_dilation(filled, iterations=margin) if margin else filled


def main() -> None:
    """Writes the masks, at the same places in another folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("--brighter-than", type=int, default=30)
    parser.add_argument("--margin", type=int, default=8, help="in pixels")
    options = parser.parse_args()

    seen = []
    for file in sorted(options.images.rglob("*")):
        inside = file.relative_to(options.images)
        if file.suffix.lower() not in SUFFIXES or inside.parts[0] == "ground_truth":
            continue
        gray = np.asarray(Image.open(file).convert("L"))
        part = part_of(gray, options.brighter_than, options.margin)
        path = (options.masks / inside).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(part).save(path)
        seen.append(part.mean())
    if not seen:
        raise SystemExit(f"{options.images}: no images")
    print(f"{len(seen)} masks; parts are {min(seen):.0%} to {max(seen):.0%} of their images")


if __name__ == "__main__":
    main()
