"""How many defects have a region, and how many regions good images have, at one pixel threshold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from efficientad_jax.detection.regions.components import Region, label_pixels, region_mask
from efficientad_jax.detection.threshold import RegionRule

# Left, top, width and height as parts of the image's width and height.
RelativeBox = tuple[float, float, float, float]


class RegionCounts(NamedTuple):
    """The regions of a test split, compared with the masks.

    Attributes:
      defects: connected defects in the masks of the anomalous images.
      found: those of them with at least one pixel in a region.
      good_images: number of images with label 0.
      good_images_with_regions: those of them with at least one region.
      false_regions: number of regions in them.
    """

    defects: int
    found: int
    good_images: int
    good_images_with_regions: int
    false_regions: int

    @property
    def recall(self) -> float | None:
        """The part of the defects that is found, in [0, 1]; None without defects."""
        return self.found / self.defects if self.defects else None

    @property
    def false_regions_per_good_image(self) -> float | None:
        """The mean number of regions of a good image; None without good images."""
        return self.false_regions / self.good_images if self.good_images else None

    def as_dict(self, rule: RegionRule) -> dict[str, Any]:
        """The counts, and the rule that they belong to, as `metrics.json` has them."""
        return {
            "pixel_threshold": rule.threshold.limit,
            "smallest_area": rule.smallest_area,
            "false_positive_rate": rule.threshold.false_alarm_rate,
            "recall": self.recall,
            "false_regions_per_good_image": self.false_regions_per_good_image,
            **self._asdict(),
        }


def count_regions(
    rule: RegionRule,
    maps: Sequence[Float32[np.ndarray, "_ _"]],
    labels: Int[np.ndarray, " n"],
    masks: Sequence[Bool[np.ndarray, "_ _"] | None],
) -> tuple[RegionCounts, list[list[RelativeBox]]]:
    """Finds the regions of all images and compares them with the masks.

    A defect is a set of marked pixels of one image that touch, corners included, as in AU-PRO. It
    is found if one of its pixels is in a region.

    Args:
      rule: by which regions are found.
      maps: combined maps at the images' own sizes; they are read one at a time.
      labels: 0 for good, 1 for anomalous.
      masks: True on defects, of the maps' shapes; None without one.

    Returns:
      The counts, and the boxes of each image's regions.
    """
    defects = found = 0
    numbers, boxes = [], []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        regions = rule.find(anomaly_map)
        numbers.append(len(regions))
        boxes.append([_relative(region, anomaly_map.shape) for region in regions])
        if mask is not None and mask.any():
            numbered, count = label_pixels(mask)
            marked = region_mask(anomaly_map, rule.threshold.limit, rule.smallest_area)
            defects += count
            found += np.count_nonzero(np.unique(numbered[marked]))
    of_good = np.array(numbers, int)[labels == 0]
    counts = RegionCounts(
        defects=defects,
        found=int(found),
        good_images=len(of_good),
        good_images_with_regions=int(np.count_nonzero(of_good)),
        false_regions=int(of_good.sum()),
    )
    return counts, boxes


def _relative(region: Region, shape: tuple[int, ...]) -> RelativeBox:
    """The box of a region of a map with this shape."""
    x, y, width, height = region.box
    return x / shape[1], y / shape[0], width / shape[1], height / shape[0]
