"""From uint8 images to anomaly maps and scores, in one jitted function (paper, Algorithm 2)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from efficientad_jax.convolution import is_for_accelerator
from efficientad_jax.detection.map_normalization import MapQuantiles, normalize_map
from efficientad_jax.detection.puad.distance import PuadStatistics, distances, mean_features
from efficientad_jax.detection.puad.standardization import PuadScale, add_distances
from efficientad_jax.detection.regions.components import Region
from efficientad_jax.detection.threshold import RegionRule, required_rule
from efficientad_jax.networks.ignored import Ignored, fill_ignored
from efficientad_jax.networks.layers import float32_features, with_transformed_kernels
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.pdn import STRIDE, takes_pixels
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.resize import resize_bilinear


class DetectorParams(NamedTuple):
    """Parameters of the three networks; the teacher's are those of the normalized teacher.

    `autoencoder` is None for a detector that was trained without one, and `puad` for one without
    the statistics of PUAD.
    """

    teacher: PyTree
    student: PyTree
    autoencoder: PyTree | None
    puad: PuadStatistics | None = None


class Calibration(NamedTuple):
    """Puts the two maps on a common scale.

    Attributes:
      local: quantiles of the student-teacher map.
      global_: quantiles of the autoencoder-student map, None without an autoencoder.
      upsample_first: whether maps are resized to the input's size before their quantiles are
        taken and they are combined, as the paper does, or afterwards.
      score_values: an image's score is the mean of so many of the highest values of its combined
        map; 1 is the maximum, as in the paper.
      puad: how the distance of PUAD is added to that; None for scores without it.
    """

    local: MapQuantiles
    global_: MapQuantiles | None
    upsample_first: bool = False
    score_values: int = 1
    puad: PuadScale | None = None


class RawMaps(NamedTuple):
    """Mean squared differences at the resolution of the features, before normalization.

    `features` are the means of the student's first features, None without statistics of PUAD.
    """

    local: Float[Array, "n oh ow"]
    global_: Float[Array, "n oh ow"] | None
    features: Float[Array, "n c"] | None = None


class Anomalies(NamedTuple):
    """The result of the detector for a batch of images.

    Attributes:
      scores: `image_scores` of the combined maps before they are padded, with the distance of PUAD
        if the calibration has its scale.
      combined: normalized maps; 0 is the `q_a`-quantile of normal pixels, 0.1 the `q_b`-quantile.
        A quarter of the input's size; the margin of 4 that unpadded networks cannot see is 0, and
        so are values that are ignored, in all maps.
      local: of the student against the teacher.
      global_: of the autoencoder against the student, None without an autoencoder.
      features: see `RawMaps`.
    """

    scores: Float[Array, " n"]
    combined: Float[Array, "n h w"]
    local: Float[Array, "n h w"]
    global_: Float[Array, "n h w"] | None
    features: Float[Array, "n c"] | None = None


class Detection(NamedTuple):
    """The result of the detector for one image.

    Attributes:
      score: of the whole image; higher is more anomalous. Normal images have about 0.1.
      anomaly_map: `[h, w]` at the image's own size: 0 where a pixel is as anomalous as the
        `q_a`-quantile of normal pixels (0.9), 0.1 at the `q_b`-quantile (0.995). It is also 0
        where nothing is looked at: outside of the region of interest, and where a patch of 33x33
        pixels of the networks' input is ignored as a whole.
      local_map: the student-teacher part, for structural defects.
      global_map: the autoencoder-student part, for logical ones; None without an autoencoder.
      region_rule: of the detector; None without one, and for maps of another size than the image's.
    """

    score: float
    anomaly_map: Float[np.ndarray, "h w"]
    local_map: Float[np.ndarray, "h w"]
    global_map: Float[np.ndarray, "h w"] | None
    region_rule: RegionRule | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """Where the image is anomalous, the most anomalous region first; see `find_regions`."""
        return self.find_regions()

    def find_regions(self, *, polygons: bool = False) -> tuple[Region, ...]:
        """Finds the regions by the detector's pixel threshold and its smallest area.

        Args:
          polygons: whether to trace the boundary of each.

        Raises:
          InputError: the detector has no pixel threshold.
        """
        return required_rule(self.region_rule).find(self.anomaly_map, polygons=polygons)


def runs_images_sequentially(networks: Networks) -> bool:
    """Whether the images of a batch are computed one after another.

    They are on a CPU: one image uses all cores, and several do not fit the caches.
    """
    return not is_for_accelerator(networks.teacher.convolution)


def raw_maps(
    networks: Networks,
    params: DetectorParams,
    images: UInt8[Array, "n h w 3"],
    *,
    upsample_first: bool = False,
    ignored: Ignored | None = None,
    weights: Float[Array | np.ndarray, "m oh ow"] | None = None,
) -> RawMaps:
    """The two maps of each image (Algorithm 2, lines 2-7).

    Args:
      networks: their modules.
      params: their parameters.
      images: RGB at the networks' input size.
      upsample_first: whether to resize the maps to that size.
      ignored: the pixels that the networks do not see, None for no such pixels.
      weights: of the outputs in the means of PUAD, see `mean_features`.
    """
    images = fill_ignored(images, ignored)
    # By default GPUs with tensor cores round the factors of float32 products to TF32, and TPUs to
    # bfloat16: 10 and 7 bits of mantissa in place of 23. Scores would differ from those on a CPU by
    # thousandths, and a threshold is chosen on one device and used on others. Training keeps the
    # default.
    is_float32 = jnp.dtype(networks.teacher.dtype) == jnp.float32
    with jax.default_matmul_precision("float32" if is_float32 else None):
        return _raw_maps(networks, params, (images, weights), upsample_first)


def _raw_maps(
    networks: Networks,
    params: DetectorParams,
    inputs: tuple[UInt8[Array, "n h w 3"], Float[Array | np.ndarray, "m oh ow"] | None],
    upsample_first: bool,
) -> RawMaps:
    """`raw_maps` of images and weights, with the precision of products that is set."""
    images, weights = inputs
    # That first: the program of `export.stablehlo` is traced without a number of images.
    if runs_images_sequentially(networks) and len(images) > 1:
        if weights is not None:
            weights = jnp.broadcast_to(weights, (len(images), *weights.shape[1:]))
        maps_of = partial(_raw_maps, networks, params, upsample_first=upsample_first)
        each = (images, weights)
        maps = jax.lax.map(lambda image: maps_of(jax.tree.map(lambda x: x[None], image)), each)
        return jax.tree.map(lambda m: m[:, 0], maps)
    x = normalize_images(to_unit_range(images))
    half = networks.teacher.out_channels
    channels = slice(0, half) if params.autoencoder is None else None
    seen = images if takes_pixels(networks.teacher) else x
    with jax.named_scope("teacher"):
        teacher = float32_features(networks.teacher, params.teacher, seen)
    with jax.named_scope("student"):
        student = float32_features(networks.student, params.student, seen, channels)
    local = jnp.square(teacher - student[..., :half]).mean(-1)
    maps = RawMaps(local, None)
    if params.autoencoder is not None:
        predicted = float32_features(networks.autoencoder, params.autoencoder, x)
        maps = RawMaps(local, jnp.square(predicted - student[..., half:]).mean(-1))
    if upsample_first:
        size = (images.shape[1], images.shape[2])
        maps = jax.tree.map(lambda m: resize_bilinear(m[..., None], size)[..., 0], maps)
    if params.puad is None:
        return maps
    return maps._replace(features=mean_features(student[..., :half], weights))


def detect(
    networks: Networks,
    params: DetectorParams,
    calibration: Calibration,
    images: UInt8[Array, "n h w 3"],
    ignored: Ignored | None = None,
    weights: Float[Array | np.ndarray, "m oh ow"] | None = None,
) -> Anomalies:
    """Scores and normalized maps (Algorithm 2).

    Args:
      networks: their modules.
      params: their parameters.
      calibration: quantiles of the validation maps.
      images: RGB at the networks' input size.
      ignored: what is ignored of each image, None for nothing.
      weights: see `raw_maps`.
    """
    maps = raw_maps(
        networks,
        params,
        images,
        upsample_first=calibration.upsample_first,
        ignored=ignored,
        weights=weights,
    )
    combined, local, global_ = combine_maps(maps, calibration)
    scores = image_scores(combined, calibration.score_values, ignored)
    return _anomalies(
        with_distances(scores, params, maps, scale=calibration.puad),
        RawMaps(local, global_, maps.features),
        combined,
        size=(images.shape[1], images.shape[2]),
        upsample_first=calibration.upsample_first,
        ignored=ignored,
    )


def detect_with_quantiles(
    networks: Networks,
    params: DetectorParams,
    quantiles: Float[Array, "rows 2"],
    images: UInt8[Array, "n h w 3"],
    ignored: Ignored | None = None,
    weights: Float[Array, "m oh ow"] | None = None,
    *,
    upsample_first: bool,
    score_values: int,
) -> Anomalies:
    """`detect` with the quantiles as an argument of the program, for accelerators.

    On a CPU they are constants of the program, which rounds the last bit differently.

    Args:
      networks: their modules.
      params: their parameters.
      quantiles: of the local and, with an autoencoder, of the global map; then the scale of PUAD,
        for scores with it.
      images: RGB at the networks' input size.
      ignored: what is ignored of each image, None for nothing.
      weights: see `raw_maps`.
      upsample_first: see `Calibration`.
      score_values: see `Calibration`.
    """
    maps = raw_maps(
        networks, params, images, upsample_first=upsample_first, ignored=ignored, weights=weights
    )
    found = [m for m in (maps.local, maps.global_) if m is not None]
    scaled = [
        0.1 * (m - quantiles[i, 0]) / (quantiles[i, 1] - quantiles[i, 0])
        for i, m in enumerate(found)
    ]
    combined = scaled[0] if len(scaled) == 1 else 0.5 * scaled[0] + 0.5 * scaled[1]
    global_ = None if len(scaled) == 1 else scaled[1]
    scale = None if len(quantiles) == len(found) else quantiles[-1]
    scores = image_scores(combined, score_values, ignored)
    return _anomalies(
        with_distances(scores, params, maps, scale=scale),
        RawMaps(scaled[0], global_, maps.features),
        combined,
        size=(images.shape[1], images.shape[2]),
        upsample_first=upsample_first,
        ignored=ignored,
    )


def with_distances(
    scores: Float[Array, " n"],
    params: DetectorParams,
    maps: RawMaps,
    *,
    scale: PuadScale | Float[Array, "2"] | None,
) -> Float[Array, " n"]:
    """The scores of maps with the distances of PUAD, if there is a scale for them."""
    if scale is None:
        return scores
    assert params.puad is not None
    assert maps.features is not None
    return add_distances(scores, distances(params.puad, maps.features), scale)


def _anomalies(
    scores: Float[Array, " n"],
    normalized: RawMaps,
    combined: Float[Array, "n oh ow"],
    *,
    size: tuple[int, int],
    upsample_first: bool,
    ignored: Ignored | None,
) -> Anomalies:
    """Pads maps that are not upsampled; `size` is that of the images."""

    def finished(maps: Float[Array, "n oh ow"]) -> Float[Array, "n h w"]:
        counted = zero_ignored(maps, ignored)
        return counted if upsample_first else pad_maps(counted, size)

    local, global_, features = normalized
    global_ = None if global_ is None else finished(global_)
    return Anomalies(scores, finished(combined), finished(local), global_, features)


def zero_ignored(maps: Float[Array, "n oh ow"], ignored: Ignored | None) -> Float[Array, "n oh ow"]:
    """The maps with 0 for the values that are ignored."""
    return maps if ignored is None else jnp.where(jnp.asarray(ignored.values), 0.0, maps)


def combine_maps(
    maps: RawMaps, calibration: Calibration
) -> tuple[Float[Array, "n oh ow"], Float[Array, "n oh ow"], Float[Array, "n oh ow"] | None]:
    """Normalizes both maps and takes their mean (Algorithm 2, lines 8-10).

    Returns:
      The combined, the local and the global map, the last None without an autoencoder.
    """
    local = normalize_map(maps.local, calibration.local)
    if maps.global_ is None or calibration.global_ is None:
        return local, local, None
    global_ = normalize_map(maps.global_, calibration.global_)
    return 0.5 * local + 0.5 * global_, local, global_


def image_scores(
    maps: Float[Array, "n oh ow"], values: int, ignored: Ignored | None = None
) -> Float[Array, " n"]:
    """The mean of the highest values of each map (Algorithm 2, line 11, for 1: the maximum).

    Args:
      maps: combined maps, not padded.
      values: how many; a smaller map counts with all of its values.
      ignored: the values that do not count, None if all do.
    """
    if ignored is not None:
        maps = jnp.where(jnp.asarray(ignored.values), jnp.finfo(maps.dtype).min, maps)
    if values == 1:
        return maps.max((1, 2))
    # Sorted, as `top_k` is no operation of StableHLO, to which detectors are exported.
    ordered = jnp.sort(maps.reshape(maps.shape[0], -1), axis=1)
    highest = ordered[:, -values:]
    if ignored is None:
        return highest.mean(1)
    count = jnp.minimum((~jnp.asarray(ignored.values)).sum((1, 2)), highest.shape[1])
    counts = jnp.arange(highest.shape[1]) >= highest.shape[1] - count[:, None]
    return jnp.where(counts, highest, 0.0).sum(1) / count


def pad_maps(maps: Array, image_size: tuple[int, int]) -> Array:
    """Zeros on each side, so that every value of a map lies over the patch it describes."""
    size = image_size[0] // STRIDE, image_size[1] // STRIDE
    margins = [((s - m) // 2,) * 2 for s, m in zip(size, maps.shape[1:], strict=True)]
    return jnp.pad(maps, ((0, 0), *margins))


@partial(jax.jit, static_argnames=("networks", "image_size"))
def prepared_params(
    networks: Networks, params: DetectorParams, image_size: tuple[int, int]
) -> DetectorParams:
    """Adds to the parameters what would otherwise be computed from them again for each image.

    On a CPU these are the kernels in the form of its convolutions; they take three times the memory
    of the parameters and more. Elsewhere nothing is added.

    Args:
      networks: their modules.
      params: their parameters.
      image_size: height and width of the images that will be given.
    """
    prepared = {
        name: with_transformed_kernels(network, tree, image_size)
        for name, network in networks._asdict().items()
        if (tree := getattr(params, name)) is not None
    }
    return params._replace(**prepared)


jitted_raw_maps = jax.jit(raw_maps, static_argnames=("networks", "upsample_first"))
jitted_detect = jax.jit(detect, static_argnames=("networks", "calibration"))
