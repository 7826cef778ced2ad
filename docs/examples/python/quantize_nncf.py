"""Converts an exported detector to 8 bits with NNCF, with thresholds of its own.

    pip install nncf openvino pillow scipy
    python quantize_nncf.py mine.onnx GOOD_IMAGE... --output=mine_int8.xml

The images are good ones that the detector was not trained on. The thresholds are chosen from their
8-bit scores and maps, for the rates of mine.onnx.
"""

import argparse

import nncf
import numpy as np
import openvino
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from processing import enlarge, load_image, network_input
from scipy import ndimage

# These stay in float32:
# - the autoencoder, and what follows the features of the networks. Small differences of large
#   features would be lost in 8 bits. Scores would be cut off at the highest one of the good images.
# - the first convolutions. NNCF gives their weights only 7 bits, for processors without VNNI, and
#   they have few operations.
EXACT = nncf.IgnoredScope(
    patterns=[
        *("autoencoder/.*", "local/.*", "global/.*", "combined/.*", "puad/.*", "scores.*"),
        ".*/conv1",
    ],
    validate=False,
)
# NNCF's default cuts off peaks, which defects have.
WHOLE_RANGES = AdvancedQuantizationParameters(
    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
)


def limit_for(scores: list[float], rate: float) -> float:
    """The threshold that a new good image reaches with a probability of at most `rate`."""
    rank = max(1, int(rate * (len(scores) + 1) + 1e-9))
    value = float(np.nextafter(np.float32(sorted(scores)[-rank]), np.float32(np.inf)))
    return value + 1e-4 * (1 + abs(value))  # scores differ a little between machines


def region_score(anomaly_map: np.ndarray, smallest: int) -> float:
    """The highest threshold at which a map has a region of `smallest` pixels, by bisection."""
    values = np.unique(anomaly_map)
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        labels, _ = ndimage.label(anomaly_map >= values[middle], np.ones((3, 3)))
        is_region = np.bincount(labels.ravel())[1:].max() >= smallest
        low, high = (middle, high) if is_region else (low, middle)
    return float(values[low])


def main() -> None:
    """Quantizes, chooses the thresholds and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--output", required=True)
    options = parser.parse_args()

    core = openvino.Core()
    model = core.read_model(options.model)
    stored = model.get_rt_info(["framework"]).astype(dict)
    properties = {name: value.astype(str) for name, value in stored.items()}
    images = [load_image(file) for file in options.images]
    inputs = [network_input(image, properties)[None] for image in images]
    dataset = nncf.Dataset(inputs)
    model = nncf.quantize(
        model,
        dataset,
        subset_size=len(inputs),
        ignored_scope=EXACT,
        advanced_parameters=WHOLE_RANGES,
    )

    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = [compiled(each) for each in inputs]
    changed = {"precision": "int8", "threshold_images": str(len(images))}
    if "threshold" in properties:
        scores = [float(output["scores"][0]) for output in outputs]
        changed["threshold"] = str(limit_for(scores, float(properties["false_alarm_rate"])))
    if "pixel_threshold" in properties:
        smallest, rate = (
            float(properties[name]) for name in ("smallest_region", "region_false_positive_rate")
        )
        maps = [
            enlarge(output["combined"][0], image.size)
            for output, image in zip(outputs, images, strict=True)
        ]
        scores = [region_score(anomaly_map, int(smallest)) for anomaly_map in maps]
        changed["pixel_threshold"] = str(limit_for(scores, rate))
    for name, value in changed.items():
        model.set_rt_info(value, ["framework", name])
    openvino.save_model(model, options.output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
