"""Scores and maps of the images of a split, by the detector's way to fit images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.data.decoding import resize_image
from efficientad_jax.data.framing import Framing, map_of_region, masked_pixels, place_in_input
from efficientad_jax.data.image_rows import rows_of_array
from efficientad_jax.data.loading import ImageSet
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.tiling import compute_tiled_maps, enlarge_cells
from efficientad_jax.evaluation.lazy_maps import Enlarged, Maps


class SplitMaps(NamedTuple):
    """Scores, and maps at the sizes of the images.

    Attributes:
      scores: of the images.
      combined: their maps.
      local: of the student against the teacher.
      global_: of the autoencoder, None without one.
    """

    scores: Float[np.ndarray, " n"]
    combined: Maps
    local: Maps
    global_: Maps | None


def maps_of_split(detector: Detector, split: ImageSet) -> SplitMaps:
    """Detects in all images of a split; the images are those of its regions of interest."""
    if detector.framing.fit == "tile":
        return _tiled_maps(detector, split)
    detections = detector.detect_resized(split.images, seen=split.sizes, own_masks=split.own_masks)
    enlarge = partial(map_of_region, detector.framing, input_size=detector.spec.input_size)
    globals_ = [d.global_map for d in detections if d.global_map is not None]
    return SplitMaps(
        np.array([detection.score for detection in detections]),
        Enlarged([detection.anomaly_map for detection in detections], split.sizes, enlarge),
        Enlarged([detection.local_map for detection in detections], split.sizes, enlarge),
        Enlarged(globals_, split.sizes, enlarge) if globals_ else None,
    )


def _tiled_maps(detector: Detector, split: ImageSet) -> SplitMaps:
    images = shown_images(detector, split)
    size = images[0].shape[:2] if images else detector.spec.input_size
    # The images are cut out and enlarged already.
    framing = Framing(None, masked_pixels(detector.framing, size), "tile")
    of_regions = replace(detector, framing=framing)
    tiled = [compute_tiled_maps(of_regions, rows_of_array(image)) for image in images]

    def enlarge(cells: np.ndarray, seen: tuple[int, int]) -> np.ndarray:
        place = place_in_input(detector.framing, seen, detector.spec.input_size)
        return enlarge_cells(of_regions, cells, (place.height, place.width), size=seen)

    combined = [maps.combined for maps in tiled]
    parts = [maps.parts for maps in tiled if maps.parts]
    local = [part[0] for part in parts] or combined
    return SplitMaps(
        np.array([maps.score for maps in tiled]),
        Enlarged(combined, split.sizes, enlarge),
        Enlarged(local, split.sizes, enlarge),
        Enlarged([part[1] for part in parts], split.sizes, enlarge) if parts else None,
    )


def shown_images(
    detector: Detector, split: ImageSet
) -> Sequence[UInt8[np.ndarray, "_h _w 3"]] | UInt8[np.ndarray, "n h w 3"]:
    """The images of a split without what was added to make them the networks' input."""
    if detector.framing.fit == "resize":
        return split.images
    places = [
        place_in_input(detector.framing, size, detector.spec.input_size) for size in split.sizes
    ]
    return [image[place.window] for image, place in zip(split.images, places, strict=True)]


def images_of_one_size(detector: Detector, split: ImageSet) -> UInt8[np.ndarray, "n h w 3"]:
    """The images of a split at the detector's input size."""
    size = detector.spec.input_size
    if detector.framing.fit != "tile":
        return split.images
    if not split.names:
        return np.empty((0, *size, 3), np.uint8)
    return np.stack([resize_image(image, *size) for image in shown_images(detector, split)])
