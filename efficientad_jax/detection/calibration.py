"""Phase 3: quantiles of the maps of the validation images (paper, Algorithm 1, lines 36-46)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.detection.inference import (
    Calibration,
    DetectorParams,
    RawMaps,
    combine_maps,
    image_scores,
    jitted_raw_maps,
    pad_maps,
    prepared_params,
    zero_ignored,
)
from efficientad_jax.detection.map_normalization import MapQuantiles, map_quantiles
from efficientad_jax.errors import DivergenceError, InputError
from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.model import Networks

# `normalize_map` with these quantiles changes nothing: for the paper's ablation of normalization.
IDENTITY = MapQuantiles(0.0, 0.1)

_BATCH_SIZE = 8


def calibrate(
    networks: Networks,
    params: DetectorParams,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    q_a: float = 0.9,
    q_b: float = 0.995,
    upsample_first: bool = False,
    normalize: bool = True,
    score_values: int = 1,
    ignored: Ignored | None = None,
) -> tuple[Calibration, Float[np.ndarray, " n"], Float[np.ndarray, "n mh mw"]]:
    """Computes the quantiles over all pixels of all validation maps.

    Args:
      networks: their modules.
      params: their parameters.
      images: validation images: normal, and in neither the training nor the test set.
      q_a: the quantile that becomes 0, in [0, 1].
      q_b: the quantile that becomes 0.1, in [0, 1].
      upsample_first: see `Calibration`.
      normalize: False leaves the maps unchanged.
      score_values: see `Calibration`.
      ignored: what is ignored of each image, None for nothing.

    Returns:
      The calibration, and the scores and combined maps of the images with it; the maps are those
      of `inference.detect` up to the last bits.

    Raises:
      InputError: a map has the same value at both quantiles, so that it has no scale.
      DivergenceError: a map is not finite.
    """
    maps = collect_raw_maps(
        networks, params, images, upsample_first=upsample_first, ignored=ignored
    )
    calibration = calibration_of_maps(
        maps, q_a, q_b, upsample_first=upsample_first, normalize=normalize, ignored=ignored
    )._replace(score_values=score_values)
    combined, _, _ = combine_maps(maps, calibration)
    combined = zero_ignored(combined, ignored)
    if not upsample_first:
        combined = pad_maps(combined, (images.shape[1], images.shape[2]))
    return calibration, scores_of_maps(maps, calibration, ignored), np.asarray(combined)


def collect_raw_maps(
    networks: Networks,
    params: DetectorParams,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    upsample_first: bool = False,
    ignored: Ignored | None = None,
    weights: Float[np.ndarray, "m oh ow"] | None = None,
) -> RawMaps:
    """The two maps of each image, computed in batches; arguments are those of `raw_maps`."""
    if weights is not None and len(weights) == 1:
        weights = np.broadcast_to(weights, (len(images), *weights.shape[1:]))
    params = prepared_params(networks, params, (images.shape[1], images.shape[2]))
    batches = [
        jitted_raw_maps(
            networks,
            params,
            images[i : i + _BATCH_SIZE],
            upsample_first=upsample_first,
            ignored=None if ignored is None else ignored.of(slice(i, i + _BATCH_SIZE)),
            weights=None if weights is None else weights[i : i + _BATCH_SIZE],
        )
        for i in range(0, len(images), _BATCH_SIZE)
    ]
    return jax.tree.map(lambda *maps: jnp.concatenate(maps), *batches)


def calibration_of_maps(
    maps: RawMaps,
    q_a: float,
    q_b: float,
    *,
    upsample_first: bool = False,
    normalize: bool = True,
    ignored: Ignored | None = None,
) -> Calibration:
    """The calibration by the quantiles of given maps; see `calibrate`.

    Values that are ignored do not count.

    Raises:
      InputError: a map has no scale: its quantiles are the same.
      DivergenceError: a map is not finite.
    """

    def quantiles(name: str, raw: jax.Array) -> MapQuantiles:
        values = np.asarray(raw)
        if ignored is not None:
            values = values[np.broadcast_to(~np.asarray(ignored.values), values.shape)]
        if not np.isfinite(values).all():
            raise DivergenceError(
                f"calibration: the {name} maps of the validation images are not finite; train "
                "again with a lower config.train.learning_rate"
            )
        result = map_quantiles(values, q_a, q_b)
        if result.b <= result.a:
            raise InputError(
                f"calibration: the {name} maps of all {len(raw)} validation images are "
                f"constant ({result.a:g} at both quantiles, {q_a} and {q_b}), expected them to "
                "vary; train longer or give other images"
            )
        return result

    if not normalize:
        return Calibration(IDENTITY, None if maps.global_ is None else IDENTITY, upsample_first)
    local = quantiles("local", maps.local)
    global_ = None if maps.global_ is None else quantiles("global", maps.global_)
    return Calibration(local, global_, upsample_first)


def scores_of_maps(
    maps: RawMaps, calibration: Calibration, ignored: Ignored | None = None
) -> Float[np.ndarray, " n"]:
    """Image scores of given maps without PUAD, as `inference.detect` returns them.

    They are the same up to the last bits.

    XLA rounds the two programs differently; `threshold.MARGIN` is far above the difference.
    """
    combined, _, _ = combine_maps(maps, calibration)
    return np.asarray(image_scores(combined, calibration.score_values, ignored))
