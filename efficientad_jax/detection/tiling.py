"""Detection in large images: overlapping tiles, and one map without seams.

An output of an unpadded PDN depends on only 33x33 pixels, and the next output on the 33x33 pixels
that are shifted by 4 (paper, Section 3.1). Tiles that begin at multiples of 4 pixels therefore give
the same features as the whole image, and all of them with an overlap of 32 pixels: without an
autoencoder the map is that of the whole image, up to rounding. An autoencoder sees
a tile as a whole; its maps of neighboring tiles differ where they overlap, and are blended there
by weights that fall linearly toward each tile's border.

A cell is one value of the map and covers 4x4 pixels. An unpadded network does not compute the outer
4 cells of a tile, and a padded one sees zeros there in place of pixels: they count only at the
border of the image, as in an image that is not tiled.
"""

from collections.abc import Callable, Sequence
from itertools import islice, product
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Float64, Shaped, UInt8

from efficientad_jax.data.decoding import ImageSource, resize_image, resize_map
from efficientad_jax.data.framing import Framing, filled_rows, masked_pixels, put_back, seen_rows
from efficientad_jax.data.image_rows import ImageRows, rows_of_array
from efficientad_jax.detection.calibration import scores_of_maps
from efficientad_jax.detection.inference import (
    Anomalies,
    Calibration,
    Detection,
    DetectorParams,
    RawMaps,
)
from efficientad_jax.detection.puad.distance import distances_on_host
from efficientad_jax.detection.puad.standardization import add_distances
from efficientad_jax.detection.spec import DetectorSpec
from efficientad_jax.detection.threshold import RegionRule
from efficientad_jax.detection.tiles.cutting import (
    SMALLEST_OVERLAP,
    blend_shares,
    cut_row_by_row,
    tile_offsets,
)
from efficientad_jax.errors import InputError
from efficientad_jax.networks.ignored import ignored_outputs
from efficientad_jax.networks.pdn import MARGIN, STRIDE


@runtime_checkable
class TileDetector(Protocol):
    """The parts of a `Detector` that tiles need; it needs this module itself."""

    @property
    def spec(self) -> DetectorSpec:
        """Of its networks."""
        ...

    @property
    def params(self) -> DetectorParams:
        """Of its networks."""
        ...

    @property
    def calibration(self) -> Calibration:
        """Of its maps."""
        ...

    @property
    def region_rule(self) -> RegionRule | None:
        """Of its regions."""
        ...

    @property
    def framing(self) -> Framing:
        """Which part of an image counts."""
        ...

    def decode(self, image: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
        """See `Detector.decode`."""
        ...

    def batch_size(self, images: int) -> int:
        """See `Detector.batch_size`."""
        ...

    def detect_tiles(
        self,
        tiles: UInt8[np.ndarray, "n h w 3"],
        weights: Float32[np.ndarray, "n oh ow"] | None = None,
    ) -> Anomalies:
        """See `Detector.detect_tiles`."""
        ...


def detect_tiled(
    detector: TileDetector, image: ImageSource, overlap: int | None = None
) -> Detection:
    """Detects in an image at its own scale, in tiles of the detector's input size.

    The result for an image of the input's size is that of `detector(image)`. A side shorter than
    the input's is resized to it; the other side is not resized.

    In addition to the image and its maps it needs memory for the tiles of one batch, for any size
    of the image. Two compiled programs serve every size, as in `Detector.batch_size`.

    Args:
      detector: trained and calibrated.
      image: as for `Detector.__call__`, of any size.
      overlap: the smallest number of pixels that neighboring tiles share; None for 32, and with an
        autoencoder an eighth of the shorter side of the input more, over which maps are blended.

    Returns:
      The detection. Its score is that of the whole map, by the detector's rule.

    Raises:
      InputError: the image cannot be decoded, or the overlap does not suit.
    """
    tiled = compute_tiled_maps(detector, rows_of_array(detector.decode(image)), overlap)
    anomaly_map = enlarge(detector, tiled, tiled.combined)
    parts = [enlarge(detector, tiled, part) for part in tiled.parts]
    local, global_ = parts or (anomaly_map, None)
    return Detection(tiled.score, anomaly_map, local, global_, detector.region_rule)


class TiledMaps(NamedTuple):
    """The maps of all tiles of an image together, a value for each cell.

    Attributes:
      score: of the combined map, as in `inference.image_scores`; with the distance of PUAD if the
        detector uses it.
      combined: the combined map, with the outer cells that an unpadded network does not compute.
      parts: the local and the global map; none without an autoencoder, where the combined map is
        the local one.
      tiled_size: height and width of the image that was cut into tiles.
      size: height and width of the part of the image that counts.
      image_size: height and width of the whole image.
      features: means of the student's first features over the image, each output counted once; None
        without the statistics of PUAD.
    """

    score: float
    combined: Float32[np.ndarray, "c d"]
    parts: list[Float32[np.ndarray, "c d"]]
    tiled_size: tuple[int, int]
    size: tuple[int, int]
    image_size: tuple[int, int]
    features: Float64[np.ndarray, " f"] | None


def compute_tiled_maps(
    detector: TileDetector, image: ImageRows, overlap: int | None = None, *, name: str = ""
) -> TiledMaps:
    """The maps of `detect_tiled` at a quarter of the image's size.

    Of the image it reads the rows of one row of tiles at a time. If a side is shorter than the
    input's, it reads the whole image, to resize it. `name` is that of the image, for messages.

    Raises:
      InputError: the image cannot be read or does not suit the mask or the region of interest, or
        the overlap does not suit.
    """
    overlap, image_size = chosen_overlap(detector.spec, overlap), image.size
    image = seen_rows(detector.framing, image, name)
    size, tile = image.size, detector.spec.input_size
    if size[0] < tile[0] or size[1] < tile[1]:
        pixels = image.read(0, size[0])
        image = rows_of_array(resize_image(pixels, max(size[0], tile[0]), max(size[1], tile[1])))
    ignored = masked_pixels(detector.framing, image.size)
    image = filled_rows(image, ignored)
    rows, columns = (tile_offsets(image.size[i], tile[i], overlap) for i in (0, 1))
    shares_down, shares_across = blend_shares(rows, tile[0]), blend_shares(columns, tile[1])
    shape = ((rows[-1] + tile[0]) // STRIDE, (columns[-1] + tile[1]) // STRIDE)
    combined = np.zeros(shape, np.float32)
    # Without an autoencoder the combined map is the local one.
    parts = [np.zeros(shape, np.float32) for _ in range(2 if detector.spec.autoencoder else 0)]
    weights = _weights_of_cells(detector, combined, ignored)
    features = None if weights is None else np.zeros(detector.spec.out_channels)
    places = list(product(range(len(rows)), range(len(columns))))
    cut = cut_row_by_row(image, rows, columns, tile=tile)
    batch = detector.batch_size(len(places))
    for start in range(0, len(places), batch):
        chosen = []
        for i, j in places[start : start + batch]:
            top, left = rows[i] // STRIDE, columns[j] // STRIDE
            window = np.s_[top : top + tile[0] // STRIDE, left : left + tile[1] // STRIDE]
            chosen.append((window, np.outer(shares_down[i], shares_across[j])))
        tiles = list(islice(cut, len(chosen)))
        tiles += tiles[-1:] * (batch - len(tiles))
        counted = None if weights is None else _weights_of_tiles(detector, weights, chosen, batch)
        anomalies = jax.device_get(detector.detect_tiles(np.stack(tiles), counted))
        for k, (window, share) in enumerate(chosen):  # the tiles that pad the batch are left out
            combined[window] += share * anomalies.combined[k]
            for part, of_tiles in zip(parts, (anomalies.local, anomalies.global_), strict=False):
                part[window] += share * of_tiles[k]
        if features is not None:
            features += anomalies.features[: len(chosen)].sum(0)
    if ignored is not None:
        places = ignored_outputs(ignored, combined.shape, MARGIN)
        for cells in (combined, *parts):
            cells[places] = 0
    values = values_that_count(detector, image.size, combined)
    score = _score_of_map(values, detector.calibration.score_values)
    if features is not None:
        score = _with_distance(detector, score, features)
    return TiledMaps(score, combined, parts, image.size, size, image_size, features)


def _weights_of_cells(
    detector: TileDetector,
    cells: Float32[np.ndarray, "c d"],
    ignored: Bool[np.ndarray, "h w"] | None,
) -> Float64[np.ndarray, "c d"] | None:
    """The weight of each cell in the mean features of an image; None without PUAD's statistics."""
    if detector.params.puad is None:
        return None
    counts = np.zeros(cells.shape)
    counts[_inner(detector, cells)] = 1
    if ignored is not None:
        counts[ignored_outputs(ignored, cells.shape, MARGIN)] = 0
    return counts / max(1, counts.sum())


def _weights_of_tiles(
    detector: TileDetector,
    weights: Float64[np.ndarray, "c d"],
    chosen: list[tuple[tuple[slice, slice], Float32[np.ndarray, "tc td"]]],
    batch: int,
) -> Float32[np.ndarray, "n oh ow"]:
    """The weights of the outputs of some tiles, by their windows and shares, for a whole batch."""
    parts = [share * weights[window] for window, share in chosen]
    parts += parts[-1:] * (batch - len(parts))
    return np.stack([part[_inner(detector, part)] for part in parts]).astype(np.float32)


def _with_distance(
    detector: TileDetector, score: float, features: Float64[np.ndarray, " f"]
) -> float:
    """The score of an image with the distance of PUAD, if the detector uses it."""
    statistics, scale = detector.params.puad, detector.calibration.puad
    if statistics is None or scale is None:
        return score
    distances = distances_on_host(statistics, features[None])
    return float(add_distances(np.array([score]), distances, scale)[0])


def values_that_count(
    detector: TileDetector, tiled_size: tuple[int, int], cells: Float32[np.ndarray, "c d"]
) -> Float32[np.ndarray, "*shape"]:
    """The values of a map that the detector's networks compute and that are not ignored.

    They are resized to `tiled_size`, the size of the image that was cut into tiles, if the detector
    does that first.

    Raises:
      InputError: all are ignored.
    """
    values = cells[_inner(detector, cells)]
    upsample_first = detector.calibration.upsample_first
    if upsample_first:
        values = resize_map(values, tiled_size)
    ignored = masked_pixels(detector.framing, tiled_size)
    if ignored is None:
        return values
    places = ignored_outputs(ignored, cells.shape, MARGIN)
    left_out = places[_inner(detector, places)]
    if upsample_first:
        left_out = resize_map(left_out.astype(np.float32), tiled_size) > 0
    if left_out.all():
        raise InputError("ignore mask: every patch of the image is ignored, expected pixels to see")
    return values[~left_out]


def enlarge(
    detector: TileDetector, tiled: TiledMaps, cells: Float32[np.ndarray, "c d"]
) -> Float32[np.ndarray, "h w"]:
    """One of the maps at the image's own size.

    Args:
      detector: that computed them.
      tiled: result of `compute_tiled_maps`.
      cells: its combined map or one of its parts.
    """
    seen = enlarge_cells(detector, cells, tiled.tiled_size, size=tiled.size)
    return put_back(detector.framing, seen, tiled.image_size)


def enlarge_cells(
    detector: TileDetector,
    cells: Float32[np.ndarray, "c d"],
    tiled_size: tuple[int, int],
    *,
    size: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """A map at the size of the part of the image that counts; see `TiledMaps`."""
    if detector.calibration.upsample_first:
        inner = cells[_inner(detector, cells)]
        return resize_map(resize_map(inner, tiled_size), size)
    # A cell stands for 4x4 pixels, also where the last ones reach beyond the image.
    height, width = tiled_size
    return resize_map(cells, size, (0.0, 0.0, width / STRIDE, height / STRIDE))


def chosen_overlap(spec: DetectorSpec, overlap: int | None) -> int:
    """The overlap in pixels, where it is given, or the one that suits the detector.

    Raises:
      InputError: with it tiles would leave gaps in the map, or not advance.
    """
    shorter = min(spec.input_size)
    if overlap is None:
        return SMALLEST_OVERLAP + (shorter // 8 if spec.autoencoder else 0)
    if not SMALLEST_OVERLAP <= overlap <= shorter - STRIDE:
        raise InputError(
            f"overlap {overlap}: expected {SMALLEST_OVERLAP} to {shorter - STRIDE} pixels for "
            f"tiles of {spec.input_size[0]}x{spec.input_size[1]}"
        )
    return overlap


def _score_of_map(values: Float32[np.ndarray, "*shape"], count: int) -> float:
    """`inference.image_scores` of one map, which may be large, on the host."""
    if count == 1:
        return float(values.max())
    count = min(count, values.size)
    return float(np.partition(values, values.size - count, axis=None)[-count:].mean())


def _inner(detector: TileDetector, cells: Shaped[np.ndarray, "c d"]) -> tuple[slice, slice]:
    """The cells that the detector's networks compute."""
    margin = 0 if detector.spec.padding else MARGIN
    return np.s_[margin : cells.shape[0] - margin, margin : cells.shape[1] - margin]


def calibrate_tiled(
    detector: TileDetector,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    choose: Callable[[RawMaps], Calibration],
) -> tuple[Calibration, Float32[np.ndarray, " n"]]:
    """As `calibration.calibrate`, of whole images that are scored in tiles.

    Args:
      detector: its calibration changes no map.
      images: validation images of any sizes, not cut out yet.
      choose: the calibration for the values of all images together, as maps of one image.

    Raises:
      InputError: a map has no scale.
      DivergenceError: a map is not finite.
    """
    found = raw_maps_in_tiles(detector, images)
    calibration = choose(jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *found))
    scores = [scores_of_maps(maps, calibration)[0] for maps in found]
    return calibration, np.array(scores, np.float32)


def raw_maps_in_tiles(
    detector: TileDetector, images: Sequence[UInt8[np.ndarray, "_h _w 3"]]
) -> list[RawMaps]:
    """The values that count of each image's maps, as maps of one row.

    Arguments are those of `calibrate_tiled`.
    """
    found = []
    for image in images:
        tiled = compute_tiled_maps(detector, rows_of_array(image))
        local, *others = [
            jnp.asarray(values_that_count(detector, tiled.tiled_size, cells)).reshape(1, 1, -1)
            for cells in tiled.parts or [tiled.combined]
        ]
        found.append(RawMaps(local, others[0] if others else None))
    return found
