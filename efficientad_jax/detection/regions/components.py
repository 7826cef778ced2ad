"""Finds regions: connected pixels of an anomaly map at or above a threshold.

Pixels touch at their sides and at their corners (8-connected), as in the metrics. Coordinates are
those of the edges of pixels: the upper left corner of the image is (0, 0), and the center of its
first pixel is (0.5, 0.5).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from efficientad_jax.detection.regions.polygons import Polygon, outer_boundary

_EIGHT_NEIGHBORS = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Region:
    """Connected pixels of an image that are anomalous.

    Attributes:
      box: left, top, width and height of the smallest upright box around it, in pixels.
      area: its number of pixels.
      centroid: mean x and y of its pixels' centers, in pixels.
      peak_score: the highest value of the anomaly map in it.
      mean_score: the mean value of the anomaly map in it.
      polygon: x and y of the corners of its outer boundary, clockwise, in pixels; None if it was
        not asked for. It runs along the edges of pixels, and includes the holes of the region.
    """

    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]
    peak_score: float
    mean_score: float
    polygon: Polygon | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON has them, without a polygon that was not asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


def find_regions(
    anomaly_map: Float[np.ndarray, "h w"],
    threshold: float,
    smallest_area: int = 1,
    *,
    polygons: bool = False,
) -> tuple[Region, ...]:
    """Finds the regions of a map, the one with the highest peak first.

    Args:
      anomaly_map: combined map at the image's own size.
      threshold: a pixel with at least this value is part of a region.
      smallest_area: number of pixels below which connected pixels are no region, at least 1.
      polygons: whether to trace the boundaries, which takes longer than all else.
    """
    mask = anomaly_map >= threshold
    labels, count = label_pixels(mask)
    if not count:
        return ()
    places = np.flatnonzero(mask)
    owners = labels.ravel()[places] - 1
    areas = np.bincount(owners, minlength=count)
    # The pixels of each region together, row by row.
    places = places[np.argsort(owners, kind="stable")]
    starts = np.cumsum(areas) - areas
    rows, columns = np.divmod(places, mask.shape[1])
    values = anomaly_map.ravel()[places]
    left, top = np.minimum.reduceat(columns, starts), rows[starts]
    widths = np.maximum.reduceat(columns, starts) + 1 - left
    heights = rows[starts + areas - 1] + 1 - top
    peaks = np.maximum.reduceat(values, starts)
    x, y, means = (
        np.add.reduceat(of_pixels, starts, dtype=np.float64) / areas
        for of_pixels in (columns, rows, values)
    )
    kept = np.flatnonzero(areas >= smallest_area)
    kept = kept[np.argsort(-peaks[kept], kind="stable")]
    boxes = np.stack([left, top, widths, heights], -1)[kept].tolist()
    fields = (array[kept].tolist() for array in (areas, x + 0.5, y + 0.5, peaks, means))
    regions = []
    for i, box, area, *centroid, peak, mean in zip(kept.tolist(), boxes, *fields, strict=True):
        polygon = None
        if polygons:
            window = labels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
            polygon = outer_boundary(window == i + 1, (box[0], box[1]))
        regions.append(Region(tuple(box), area, tuple(centroid), peak, mean, polygon))
    return tuple(regions)


def region_mask(
    anomaly_map: Float[np.ndarray, "h w"], threshold: float, smallest_area: int = 1
) -> Bool[np.ndarray, "h w"]:
    """Marks the pixels of all regions; arguments as for `find_regions`."""
    labels, count = label_pixels(anomaly_map >= threshold)
    is_region = np.bincount(labels.ravel(), minlength=count + 1) >= smallest_area
    is_region[0] = False
    return is_region[labels]


def label_pixels(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """Numbers the connected parts of a mask from 1, with 0 outside; also returns their number."""
    labels, count = ndimage.label(mask, _EIGHT_NEIGHBORS)  # pyright: ignore
    return np.asarray(labels), int(count)
