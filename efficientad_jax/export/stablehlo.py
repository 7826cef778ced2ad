"""Exports a detector as a StableHLO program, which runs on CPU, GPU and TPU and needs only JAX."""

import jax
import jax.export
import numpy as np
from jaxtyping import Array, Float, UInt8

from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import detect
from efficientad_jax.export.programs import named_outputs
from efficientad_jax.export.properties import check_exportable
from efficientad_jax.networks.model import Networks

PLATFORMS = ("cpu", "cuda", "tpu")


def stablehlo_bytes(detector: Detector) -> bytes:
    """Serializes a detector with `jax.export`, including its weights.

    The program takes any number of uint8 RGB images `[n, h, w, 3]` at the detector's input size.
    It returns a dict of the values of `inference.Anomalies`: 'scores' `[n]`, and the maps
    'combined', 'local' and, with an autoencoder, 'global', all `[n, h / 4, w / 4]`, or `[n, h, w]`
    if the detector upsamples maps first. An ignore mask is in the program; the caller cuts out a
    region of interest.
    """
    check_exportable(detector)
    # XLA's convolution exists on every platform, the package's C++ does not.
    teacher, student, autoencoder = detector.networks
    networks = Networks(
        teacher.clone(convolution="direct"),
        student.clone(convolution="direct"),
        autoencoder.clone(convolution="direct"),
    )

    def program(images: UInt8[Array, "n h w 3"]) -> dict[str, Float[Array, "..."]]:
        return named_outputs(
            detect(
                networks,
                detector.params,
                detector.calibration,
                images,
                detector.ignored_in(),
                detector.output_weights(),
            )
        )

    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *detector.spec.input_size, 3), np.uint8)
    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(images)
    return bytes(exported.serialize())
