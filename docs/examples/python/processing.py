"""The caller's part in using an exported detector: its input, and the regions in its map.

The properties are those of the exported file, as text. Needs NumPy, Pillow and SciPy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage


def load_image(file: str) -> Image.Image:
    """Reads an image of 8 bits per channel as RGB, turned as its camera says."""
    return ImageOps.exif_transpose(Image.open(file)).convert("RGB")


def network_input(image: Image.Image, properties: Mapping[str, str]) -> np.ndarray:
    """Resizes an image to the input of the networks: uint8, height x width x 3."""
    for name in ("fit", "region_of_interest"):
        if name in properties:
            raise ValueError(f"{name} = {properties[name]}: this example only resizes images")
    size = int(properties["input_width"]), int(properties["input_height"])
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def enlarge(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an anomaly map to the width and height of the image."""
    return np.asarray(Image.fromarray(cells).resize(size, Image.Resampling.BILINEAR))


def find_regions(anomaly_map: np.ndarray, threshold: float, smallest: int) -> list[dict[str, Any]]:
    """Finds connected pixels at or above a threshold in a map of the image's own size."""
    labels, _ = ndimage.label(anomaly_map >= threshold, np.ones((3, 3)))
    regions = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        values = anomaly_map[rows, columns][inside]
        if values.size >= smallest:
            y, x = np.nonzero(inside)
            regions.append(
                {
                    "box": [columns.start, rows.start, inside.shape[1], inside.shape[0]],
                    "area": values.size,
                    "centroid": [columns.start + x.mean() + 0.5, rows.start + y.mean() + 0.5],
                    "peak_score": float(values.max()),
                    "mean_score": float(values.mean()),
                }
            )
    return sorted(regions, key=lambda region: -region["peak_score"])


def result(
    score: float, cells: np.ndarray, image: Image.Image, properties: Mapping[str, str]
) -> dict[str, Any]:
    """Score, verdict and regions of an image; None for what the file has no threshold for."""
    verdict = regions = None
    if "threshold" in properties:
        verdict = float(score) >= float(properties["threshold"])
    if "pixel_threshold" in properties:
        threshold = float(properties["pixel_threshold"])
        smallest = int(properties["smallest_region"])
        regions = find_regions(enlarge(cells, image.size), threshold, smallest)
    return {"score": float(score), "verdict": verdict, "regions": regions}
