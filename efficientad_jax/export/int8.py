"""Converts a detector to an ONNX model with 8-bit convolutions, by ONNX Runtime's quantization.

Kernels have one scale per output channel. Activations have one scale per layer, from their range
on normal images. The autoencoder, with at most 6 % of the operations, stays in float32, and so does
everything after the features: differences, means, and normalization by quantiles.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, Int, UInt8
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from efficientad_jax.config import read_config
from efficientad_jax.data.files import list_images
from efficientad_jax.data.loading import load_configured_dataset, load_images
from efficientad_jax.detection.calibration import IDENTITY
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration
from efficientad_jax.detection.map_normalization import MapQuantiles, map_quantiles
from efficientad_jax.errors import InputError
from efficientad_jax.export.onnx_model import onnx_model, with_calibration
from efficientad_jax.export.programs import onnx_program, run_in_batches
from efficientad_jax.networks.pdn import output_size

_MOST_IMAGES = 100


def int8_model(detector: Detector, images: UInt8[np.ndarray, "n h w 3"]) -> onnx.ModelProto:
    """Converts a detector to ONNX with 8-bit convolutions; inputs and outputs as in `onnx_model`.

    Rounding shifts and scales the maps. The quantiles of their normalization are adjusted, so that
    the 8-bit maps of `images` have the same quantiles as the float32 maps.

    Args:
      detector: a trained one.
      images: normal images at the detector's input size.

    Raises:
      InputError: the maps of the images are constant, so that they have no scale.
    """
    calibration = detector.calibration
    identity = Calibration(IDENTITY, calibration.global_ and IDENTITY, calibration.upsample_first)
    exact = onnx_model(replace(detector, calibration=identity))
    rounded = _quantized(exact, images)
    before, after = (_raw_maps(model, detector, images) for model in (exact, rounded))
    local = _adjusted(calibration.local, before["local"], after["local"])
    global_ = calibration.global_ and _adjusted(
        calibration.global_, before["global"], after["global"]
    )
    return with_calibration(rounded, calibration._replace(local=local, global_=global_))


def calibration_images(detector: Detector, folder: str) -> UInt8[np.ndarray, "n h w 3"]:
    """Loads normal images for `int8_model`: at most 100, evenly spaced among the available ones.

    Args:
      detector: the images are resized to its input size.
      folder: of the images; '' takes the validation images of the dataset that the detector was
        trained on.

    Raises:
      InputError: folder or dataset cannot be read.
    """
    if not folder:
        images = load_configured_dataset(read_config(detector.config)).validation.images
        return images[_evenly_spaced(len(images))]
    files = list_images(Path(folder))
    return load_images([files[i] for i in _evenly_spaced(len(files))], detector.spec.input_size)


def _evenly_spaced(count: int) -> Int[np.ndarray, " m"]:
    """Computes evenly spaced indices of at most `_MOST_IMAGES` of `count` images."""
    return np.linspace(0, count - 1, min(count, _MOST_IMAGES)).round().astype(int)


def _quantized(model: onnx.ModelProto, images: UInt8[np.ndarray, "n h w 3"]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        preprocessed, result = Path(folder, "preprocessed.onnx"), Path(folder, "result.onnx")
        quant_pre_process(model, preprocessed, skip_optimization=True, skip_symbolic_shape=True)
        quantization.quantize_static(
            preprocessed,
            result,
            _Images(iter(images)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "AveragePool"],
            nodes_to_exclude=[
                n.name for n in model.graph.node if n.name.startswith("autoencoder/")
            ],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load_model(result)


class _Images(quantization.CalibrationDataReader):
    """Provides images one at a time through the interface of ONNX Runtime."""

    def __init__(self, images: Iterator[UInt8[np.ndarray, "h w 3"]]) -> None:
        self.images = images

    def get_next(self) -> dict[str, UInt8[np.ndarray, "1 h w 3"]]:
        """Returns the next input; an empty dict after the last."""
        image = next(self.images, None)
        return {} if image is None else {"images": image[None]}


def _raw_maps(
    model: onnx.ModelProto, detector: Detector, images: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, Float[np.ndarray, "n oh ow"]]:
    """Computes maps with a model that does not normalize them, and cuts off their margin."""
    spec = detector.spec
    outputs = run_in_batches(onnx_program(model.SerializeToString()), images)
    height, width = output_size(*spec.input_size, padding=spec.padding)
    if detector.calibration.upsample_first:
        height, width = spec.input_size
    top, left = (
        (s - m) // 2 for s, m in zip(outputs["local"].shape[1:], (height, width), strict=True)
    )
    return {
        name: maps[:, top : top + height, left : left + width]
        for name, maps in outputs.items()
        if name in ("local", "global")
    }


def _adjusted(
    quantiles: MapQuantiles,
    before: Float[np.ndarray, "n oh ow"],
    after: Float[np.ndarray, "n oh ow"],
) -> MapQuantiles:
    """Adjusts quantiles of the maps `before` to the maps `after`.

    A linear function maps the two quantiles of the maps `before` to those of the maps `after`; it
    is applied to `quantiles`.
    """
    x, y = map_quantiles(before), map_quantiles(after)
    if y.b <= y.a or x.b <= x.a:
        raise InputError(
            f"int8: the maps of all {len(after)} calibration images are constant, expected them "
            "to vary; use other images"
        )
    slope = (y.b - y.a) / (x.b - x.a)
    return MapQuantiles(*(y.a + slope * (q - x.a) for q in quantiles))
