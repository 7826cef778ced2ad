"""Phase 3: quantiles of the maps of the validation images (paper, Algorithm 1, lines 36-46)."""

import jax
import numpy as np
from jaxtyping import UInt8

from efficientad_jax.errors import InputError
from efficientad_jax.inference import (
    Calibration,
    DetectorParams,
    jitted_raw_maps,
    prepared_params,
)
from efficientad_jax.map_normalization import MapQuantiles, map_quantiles
from efficientad_jax.training import Networks

# `normalize_map` with these changes nothing: for the paper's ablation of the normalisation.
IDENTITY = MapQuantiles(0.0, 0.1)

_BATCH_SIZE = 8


def calibrate(
    networks: Networks,
    params: DetectorParams,
    images: UInt8[np.ndarray, "n h w 3"],
    q_a: float = 0.9,
    q_b: float = 0.995,
    upsample_first: bool = False,
    normalize: bool = True,
) -> Calibration:
    """Takes the quantiles over all pixels of all validation maps.

    Args:
      networks: their modules.
      params: their parameters.
      images: validation images: normal ones, neither trained on nor tested with.
      q_a: which quantile becomes 0.
      q_b: which quantile becomes 0.1.
      upsample_first: see `Calibration`.
      normalize: False leaves maps as they are.

    Raises:
      InputError: a map is the same everywhere on all images, so that it has no scale.
    """
    if not normalize:
        global_ = None if params.autoencoder is None else IDENTITY
        return Calibration(IDENTITY, global_, upsample_first)
    params = prepared_params(networks, params, (images.shape[1], images.shape[2]))
    maps = [
        jax.device_get(
            jitted_raw_maps(networks, params, images[i : i + _BATCH_SIZE], upsample_first)
        )
        for i in range(0, len(images), _BATCH_SIZE)
    ]

    def quantiles(name: str, of: list[np.ndarray]) -> MapQuantiles:
        found = map_quantiles(of, q_a, q_b)
        if found.b <= found.a:
            raise InputError(
                f"calibration: the {name} maps of all {len(images)} validation images are "
                f"constant ({found.a:g}), expected them to vary; train longer or give other images"
            )
        return found

    local = quantiles("local", [m.local for m in maps])
    if params.autoencoder is None:
        return Calibration(local, None, upsample_first)
    global_ = quantiles("global", [m.global_ for m in maps])
    return Calibration(local, global_, upsample_first)
