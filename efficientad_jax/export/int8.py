"""A detector as an ONNX model with convolutions in 8 bits, by ONNX Runtime's static quantisation.

Kernels get a scale for each output channel, activations one for each layer, from their range on
normal images. In float32 stay the autoencoder, which is 6 % of the operations or less, and what
comes after the features: differences, means, quantiles.
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
    """The detector in ONNX with convolutions in 8 bits; inputs and outputs are `onnx_model`'s.

    Rounding moves the maps as a whole. The quantiles that they are normalised by are moved along,
    so that on `images` the 8-bit maps lie where the float32 maps do.

    Args:
      detector: trained.
      images: normal ones, at the detector's input size.

    Raises:
      InputError: the 8-bit maps of the images are constant, so that they have no scale.
    """
    calibration = detector.calibration
    identity = Calibration(IDENTITY, calibration.global_ and IDENTITY, calibration.upsample_first)
    exact = onnx_model(replace(detector, calibration=identity))
    rounded = _quantized(exact, images)
    before, after = (_raw_maps(model, detector, images) for model in (exact, rounded))
    local = _moved(calibration.local, before["local"], after["local"])
    global_ = calibration.global_ and _moved(calibration.global_, before["global"], after["global"])
    return with_calibration(rounded, calibration._replace(local=local, global_=global_))


def calibration_images(detector: Detector, folder: str) -> UInt8[np.ndarray, "n h w 3"]:
    """Normal images for `int8_model`: at most 100, spread over all there are.

    Args:
      detector: whose input size they get.
      folder: where to look for them; '' takes the validation images of the dataset that the
        detector was trained on.

    Raises:
      InputError: folder or dataset cannot be read.
    """
    if not folder:
        images = load_configured_dataset(read_config(detector.config)).validation.images
        return images[_spread(len(images))]
    files = list_images(Path(folder))
    return load_images([files[i] for i in _spread(len(files))], detector.spec.input_size)


def _spread(count: int) -> Int[np.ndarray, " m"]:
    """Indices of at most `_MOST_IMAGES` of `count` images, at equal distances."""
    return np.linspace(0, count - 1, min(count, _MOST_IMAGES)).round().astype(int)


def _quantized(model: onnx.ModelProto, images: UInt8[np.ndarray, "n h w 3"]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        prepared, result = Path(folder, "prepared.onnx"), Path(folder, "result.onnx")
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
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
    """Images one at a time, in the form that ONNX Runtime asks for."""

    def __init__(self, images: Iterator[UInt8[np.ndarray, "h w 3"]]) -> None:
        self.images = images

    def get_next(self) -> dict[str, UInt8[np.ndarray, "1 h w 3"]]:
        """The next input, empty after the last."""
        image = next(self.images, None)
        return {} if image is None else {"images": image[None]}


def _raw_maps(
    model: onnx.ModelProto, detector: Detector, images: UInt8[np.ndarray, "n h w 3"]
) -> dict[str, Float[np.ndarray, "n oh ow"]]:
    """Maps of a model that does not normalise them, without their margin."""
    spec = detector.spec
    found = run_in_batches(onnx_program(model.SerializeToString()), images)
    height, width = output_size(*spec.input_size, padding=spec.padding)
    if detector.calibration.upsample_first:
        height, width = spec.input_size
    top, left = (
        (s - m) // 2 for s, m in zip(found["local"].shape[1:], (height, width), strict=True)
    )
    return {
        name: maps[:, top : top + height, left : left + width]
        for name, maps in found.items()
        if name in ("local", "global")
    }


def _moved(
    quantiles: MapQuantiles,
    before: Float[np.ndarray, "n oh ow"],
    after: Float[np.ndarray, "n oh ow"],
) -> MapQuantiles:
    """Quantiles that normalise the maps `after` as `quantiles` do the maps `before`.

    They go by the straight line that takes the two quantiles of one to those of the other.
    """
    x, y = map_quantiles(before), map_quantiles(after)
    if y.b <= y.a or x.b <= x.a:
        raise InputError(
            f"int8: the maps of all {len(after)} calibration images are constant, expected them "
            "to vary; give other images"
        )
    slope = (y.b - y.a) / (x.b - x.a)
    return MapQuantiles(*(y.a + slope * (q - x.a) for q in quantiles))
