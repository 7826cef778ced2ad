"""A detector as a StableHLO program, which JAX alone runs on CPU, GPU and TPU."""

import jax
import jax.export
import numpy as np
from jaxtyping import Array, Float, UInt8

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import detect
from efficientad_jax.export.programs import named_outputs
from efficientad_jax.networks.model import Networks

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_bytes(detector: Detector) -> bytes:
    """The detector as `jax.export` serialises it, weights included.

    It takes uint8 RGB `[n, h, w, 3]` at the detector's input size, any number of images, and gives
    a dictionary of what `inference.Anomalies` has: 'scores' `[n]`, 'combined', 'local' and, with an
    autoencoder, 'global' maps `[n, h / 4, w / 4]`, or `[n, h, w]` where maps are upsampled first.
    """
    # No convolution in C++ of this package: XLA's own is there on every platform.
    teacher, student, autoencoder = detector.networks
    networks = Networks(
        teacher.clone(convolution="direct"),
        student.clone(convolution="direct"),
        autoencoder.clone(convolution="direct"),
    )

    def program(images: UInt8[Array, "n h w 3"]) -> dict[str, Float[Array, "..."]]:
        return named_outputs(detect(networks, detector.params, detector.calibration, images))

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *detector.spec.input_size, 3), np.uint8)
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())
