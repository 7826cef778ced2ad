"""Detection on a GPU or TPU: parameters prepared once, and a program that takes them as they are.

A program that is given a detector's parameters as they are stored casts and transposes them in
every call. Here they are cast once, and then stored in the layouts that the compiler chooses for
its first program. Quantiles are arguments, so that detectors of the same networks share programs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import SingleDeviceSharding
from jaxtyping import Float, PyTree, UInt8

from efficientad_jax.detection.inference import (
    Anomalies,
    Calibration,
    DetectorParams,
    detect_with_quantiles,
)
from efficientad_jax.detection.map_normalization import check_quantiles
from efficientad_jax.networks.ignored import Ignored
from efficientad_jax.networks.layers import with_pixel_kernels
from efficientad_jax.networks.model import Networks
from efficientad_jax.networks.pdn import takes_pixels
from efficientad_jax.storage.executables import kept_executable


def cast_params(networks: Networks, params: DetectorParams) -> DetectorParams:
    """The parameters in the dtype of the computation; PUAD's statistics stay in float32."""
    dtype = networks.teacher.dtype
    if takes_pixels(networks.teacher):
        params = params._replace(
            teacher=with_pixel_kernels(params.teacher, "conv1", dtype),
            student=with_pixel_kernels(params.student, "conv1", dtype),
        )
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return cast._replace(puad=params.puad)


def quantile_array(calibration: Calibration) -> Float[np.ndarray, "rows 2"]:
    """The quantiles of the local and, if there is one, of the global map, then PUAD's scale if any.

    Raises:
      ValueError: the quantiles of a map are equal.
    """
    rows = [row for row in (calibration.local, calibration.global_) if row is not None]
    for row in rows:
        check_quantiles(row)
    scales = [] if calibration.puad is None else [calibration.puad]
    return np.array([*rows, *scales], np.float32)


def trace_detection(
    networks: Networks,
    params: DetectorParams,
    images: jax.ShapeDtypeStruct,
    *,
    upsample_first: bool,
    score_values: int = 1,
    puad: bool = False,
    formats: PyTree | None = None,
    ignored: Any = None,
    weights: Any = None,
) -> jax.stages.Traced:
    """Traces the program for a batch.

    Args:
      networks: their modules.
      params: the cast parameters; only shapes, dtypes and devices matter.
      images: the batch, on a device.
      upsample_first: see `Calibration`.
      score_values: see `Calibration`.
      puad: whether scores have the distance of PUAD.
      formats: of the parameters in memory; None lets the compiler choose.
      ignored: an `Ignored` of abstract arrays on the device, None for a program without a mask.
      weights: of `mean_features`, an abstract array on the device; None for equal ones.
    """
    sharding: Any = images.sharding
    if formats is None:
        formats = jax.tree.map(lambda _: Format(Layout.AUTO, sharding), params)
    rows = (1 if params.autoencoder is None else 2) + puad
    quantiles = jax.ShapeDtypeStruct((rows, 2), jnp.float32, sharding=sharding)
    rule = {"upsample_first": upsample_first, "score_values": score_values}
    inputs = _inputs(quantiles, images, ignored, weights=weights)
    program = jax.jit(
        partial(detect_with_quantiles, networks, **rule),
        in_shardings=(formats, *(Format(None, sharding) for _ in inputs)),
    )
    return program.trace(params, *inputs)


def _inputs(quantiles: Any, images: Any, ignored: Any, *, weights: Any) -> tuple[Any, ...]:
    """The arguments of the program after the parameters, without those at the end that are None."""
    if weights is not None:
        return quantiles, images, ignored, weights
    return (quantiles, images) if ignored is None else (quantiles, images, ignored)


class AcceleratedDetection:
    """A detector's parameters on an accelerator, and its compiled programs.

    The first program chooses the layouts of the parameters; the others take them as they are.
    """

    def __init__(self, networks: Networks, params: DetectorParams, device: Any = None) -> None:
        """Casts the parameters.

        Args:
          networks: their modules.
          params: as they are stored.
          device: to run on; None for JAX's default.
        """
        self._networks = networks
        self._device = jax.devices()[0] if device is None else device
        self._params = cast_params(networks, params)
        self._formats: PyTree | None = None
        self._programs: dict[tuple[int, ...], jax.stages.Compiled] = {}
        self._quantiles: dict[Calibration, jax.Array] = {}

    def __call__(
        self,
        calibration: Calibration,
        images: UInt8[np.ndarray | jax.Array, "n h w 3"],
        ignored: Ignored | None = None,
        weights: Float[np.ndarray, "m oh ow"] | None = None,
    ) -> Anomalies:
        """Scores and maps of a batch, on the device; see `inference.detect`."""
        rule = (calibration.upsample_first, calibration.score_values, calibration.puad is not None)
        parts = (None if ignored is None else ignored.pixels, weights)
        key = (*images.shape[:3], *rule, *(0 if part is None else len(part) for part in parts))
        program = self._programs.get(key)
        if program is None:
            program = self._program(images.shape, rule, ignored=ignored, weights=weights)
            self._programs[key] = program
        quantiles = self._quantiles.get(calibration)
        if quantiles is None:
            quantiles = jax.device_put(quantile_array(calibration), self._device)
            self._quantiles[calibration] = quantiles
        inputs = _inputs(quantiles, images, ignored, weights=weights)
        return program(self._params, *jax.device_put(inputs, self._device))

    def _program(
        self,
        shape: tuple[int, ...],
        rule: tuple[bool, int, bool],
        *,
        ignored: Ignored | None,
        weights: Float[np.ndarray, "m oh ow"] | None,
    ) -> jax.stages.Compiled:
        sharding = SingleDeviceSharding(self._device)
        images = jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharding)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._params)
        upsample_first, score_values, puad = rule
        ignored, weights = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), (ignored, weights)
        )
        trace = partial(
            trace_detection,
            self._networks,
            abstract,
            images,
            upsample_first=upsample_first,
            score_values=score_values,
            puad=puad,
            formats=self._formats,
            ignored=ignored,
            weights=weights,
        )
        identity = [repr(part) for part in (self._networks, abstract, images, rule)]
        identity += [repr(part) for part in (ignored, weights) if part is not None]
        program = kept_executable(
            ["detection", *identity, repr(self._formats)],
            self._device,
            lambda: trace().lower().compile(),
        )
        if self._formats is None:
            self._formats = program.input_formats[0][0]
            self._params = jax.device_put(self._params, self._formats)
        return program
