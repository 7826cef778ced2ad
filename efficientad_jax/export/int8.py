"""Converts a detector to an ONNX model with 8-bit convolutions, by ONNX Runtime's quantization.

Kernels have one scale per output channel. Activations have one scale per layer, from their range
on normal images and on disturbed copies of them: the activations of defects are larger, and ranges
of normal images only would clip them, and with them their scores. But wide ranges are rounded
coarsely. Where that changes the scores of normal images by more than these differ from each other,
weak defects would be lost, and the ranges are those of normal images only. The autoencoder, with at
most 6 % of the operations, stays in float32, and so does everything after the features:
differences, means, and normalization by quantiles.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from jaxtyping import Float, Int, UInt8
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from efficientad_jax.config import read_config
from efficientad_jax.data.decoding import size_of_image
from efficientad_jax.data.files import list_images
from efficientad_jax.data.framing import map_of_region, seen_size
from efficientad_jax.data.loading import load_configured_dataset, load_images
from efficientad_jax.detection.calibration import IDENTITY
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.map_normalization import MapQuantiles, map_quantiles
from efficientad_jax.detection.threshold import (
    RegionRule,
    choose_region_rule,
    choose_threshold,
)
from efficientad_jax.errors import InputError
from efficientad_jax.export.onnx_model import onnx_model, with_calibration
from efficientad_jax.export.programs import onnx_program, run_in_batches
from efficientad_jax.export.properties import as_texts, export_properties
from efficientad_jax.networks.pdn import output_size

# Images from a folder, and those among them on which ranges and quantiles are measured.
_MOST_LOADED, _MOST_MEASURED = 1000, 100

# Factor of the contrast, and sides of the cells in pixels, of `_disturbed`.
_CONTRAST = 3.0
_CELLS = (2, 6, 16, 64)


class CalibrationImages(NamedTuple):
    """Normal images that a detector was not trained on.

    Attributes:
      images: at the detector's input size.
      sizes: original height and width of each, or of its region of interest.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    sizes: Sequence[tuple[int, int]]


def int8_model(
    detector: Detector,
    images: UInt8[np.ndarray, "n h w 3"],
    sizes: Sequence[tuple[int, int]] | None = None,
) -> onnx.ModelProto:
    """Converts a detector to ONNX with 8-bit convolutions; inputs and outputs as in `onnx_model`.

    Rounding shifts and scales the maps. The quantiles of their normalization are adjusted, so that
    the 8-bit maps have the same quantiles as the float32 maps. Both, and the ranges of the
    activations, are measured on at most 100 of the images.

    Scores and maps still change, so the model gets thresholds of its own. They are chosen from the
    8-bit scores and maps of all images, for the detector's rates and smallest area of regions. A
    detector without a threshold gives a model without it.

    Args:
      detector: a trained one.
      images: normal images at the detector's input size that it was not trained on.
      sizes: of `CalibrationImages`; None if the images have the input size from the start.

    Raises:
      InputError: the maps of the images are constant, so that they have no scale.
    """
    if detector.framing.fit == "tile":
        raise InputError(
            "int8: the detector cuts images into tiles, expected one that resizes or pads them; "
            "export it without --int8"
        )
    if detector.calibration.puad is not None:
        raise InputError(
            "int8: the detector's score has PUAD, whose statistics are of float32 features; export "
            "it without --int8, or leave PUAD out (`efficientad set-threshold DETECTOR --puad=off`)"
        )
    measured = images[_evenly_spaced(len(images), _MOST_MEASURED)]
    model = _rounded(detector, measured, np.concatenate([measured, _disturbed(measured)]))
    exact_scores, scores = (
        run_in_batches(onnx_program(m.SerializeToString()), measured)["scores"]
        for m in (onnx_model(detector), model)
    )
    if (scores - exact_scores).std() > exact_scores.std():
        model = _rounded(detector, measured, measured)
    threshold = rule = None
    if detector.threshold is not None or detector.region_rule is not None:
        outputs = run_in_batches(onnx_program(model.SerializeToString()), images)
        if detector.threshold is not None:
            rate = detector.threshold.false_alarm_rate
            threshold = choose_threshold(outputs["scores"], rate)
        rule = _region_rule(detector, outputs["combined"], sizes)
    properties = export_properties(replace(detector, region_rule=rule), "int8", threshold)
    onnx.helper.set_model_props(model, as_texts(properties))
    return model


def _rounded(
    detector: Detector,
    measured: UInt8[np.ndarray, "n h w 3"],
    shown: UInt8[np.ndarray, "m h w 3"],
) -> onnx.ModelProto:
    """The model with the ranges of activations on the images `shown`.

    Its maps have the quantiles of the float32 maps on the images `measured`.
    """
    calibration = detector.calibration
    identity = calibration._replace(local=IDENTITY, global_=calibration.global_ and IDENTITY)
    exact = onnx_model(replace(detector, calibration=identity))
    rounded = _quantized(exact, shown)
    before, after = (_raw_maps(model, detector, measured) for model in (exact, rounded))
    local = _adjusted(calibration.local, before["local"], after["local"])
    global_ = calibration.global_ and _adjusted(
        calibration.global_, before["global"], after["global"]
    )
    return with_calibration(rounded, calibration._replace(local=local, global_=global_))


def _region_rule(
    detector: Detector,
    maps: Float[np.ndarray, "n _h _w"],
    sizes: Sequence[tuple[int, int]] | None,
) -> RegionRule | None:
    """The rule for regions of the 8-bit maps; None for a detector without one."""
    rule, size = detector.region_rule, detector.spec.input_size
    if rule is None:
        return None
    enlarged = (
        map_of_region(detector.framing, cells, seen, input_size=size)
        for cells, seen in zip(maps, sizes or [size] * len(maps), strict=True)
    )
    return choose_region_rule(enlarged, rule.threshold.false_alarm_rate, rule.smallest_area)


def calibration_images(detector: Detector, folder: str) -> CalibrationImages:
    """Loads normal images for `int8_model`.

    Args:
      detector: the images are resized to its input size.
      folder: of the images; at most 1,000 are loaded, evenly spaced among them. '' takes all
        validation images of the dataset that the detector was trained on.

    Raises:
      InputError: folder or dataset cannot be read.
    """
    framing = detector.framing
    if not folder:
        validation = load_configured_dataset(read_config(detector.config), framing).validation
        return CalibrationImages(validation.images, validation.sizes)
    files = list_images(Path(folder))
    chosen = [files[i] for i in _evenly_spaced(len(files), _MOST_LOADED)]
    images = load_images(
        chosen, detector.spec.input_size, white_level=detector.white_level, framing=framing
    )
    sizes = [seen_size(framing, size_of_image(file)) for file in chosen]
    return CalibrationImages(images, sizes)


def _evenly_spaced(count: int, most: int) -> Int[np.ndarray, " m"]:
    """Computes evenly spaced indices of at most `most` of `count` images."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


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


def _disturbed(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Copies images with more contrast, and with squares of random black and white cells.

    The activations of such images are about as large as those of any defect. Large cells resemble
    blots, and small ones scratches.
    """
    pixels = images.astype(np.float32)
    mean = pixels.mean((1, 2), keepdims=True)
    copies = np.clip(mean + _CONTRAST * (pixels - mean), 0, 255).astype(np.uint8)
    rng = np.random.default_rng(0)
    side = min(images.shape[1:3]) // 4
    for copy in copies:
        for cell in _CELLS * 2:
            top, left = (rng.integers(size - side + 1) for size in copy.shape[:2])
            cells = 255 * rng.integers(0, 2, (-(-side // cell),) * 2, np.uint8)
            square = cells.repeat(cell, axis=0).repeat(cell, axis=1)[:side, :side]
            copy[top : top + side, left : left + side] = square[..., None]
    return copies


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
) -> dict[str, Float[np.ndarray, "n ..."]]:
    """Computes the values that count of the maps of a model that does not normalize them."""
    spec = detector.spec
    outputs = run_in_batches(onnx_program(model.SerializeToString()), images)
    height, width = output_size(*spec.input_size, padding=spec.padding)
    if detector.calibration.upsample_first:
        height, width = spec.input_size
    top, left = (
        (s - m) // 2 for s, m in zip(outputs["local"].shape[1:], (height, width), strict=True)
    )
    maps = {
        name: outputs[name][:, top : top + height, left : left + width]
        for name in ("local", "global")
        if name in outputs
    }
    ignored = detector.ignored_in()
    if ignored is None:
        return maps
    (counted,) = ~np.asarray(ignored.values)
    return {name: values[:, counted] for name, values in maps.items()}


def _adjusted(
    quantiles: MapQuantiles,
    before: Float[np.ndarray, "n ..."],
    after: Float[np.ndarray, "n ..."],
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
