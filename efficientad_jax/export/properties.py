"""The facts in an exported file: threshold, input, normalization and origin.

An ONNX file holds its properties in `metadata_props`, as text. A StableHLO file has no place for
them: they are in a JSON file next to it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from efficientad_jax.data.framing import Framing
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.file import serialized_arrays
from efficientad_jax.detection.threshold import Threshold
from efficientad_jax.errors import InputError
from efficientad_jax.networks.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.regular import require_regular_file

_MOST_BYTES = 1 << 20


def export_properties(
    detector: Detector, precision: str, threshold: Threshold | None
) -> dict[str, Any]:
    """The properties of an exported detector.

    Args:
      detector: the one that is exported. Without a pixel threshold, the properties of regions are
        left out.
      precision: type that the convolutions are computed in, for example 'float32' or 'int8'.
      threshold: for the scores of the exported file; without one, its properties are left out.

    Returns:
      Texts, numbers and lists of numbers by name.
    """
    height, width = detector.spec.input_size
    properties: dict[str, Any] = {
        "format": "efficientad_jax export",
        "format_version": 1,
        "efficientad_jax_version": _package_version(),
        "arrays_sha256": arrays_sha256(detector),
        "precision": precision,
        "input_dtype": "uint8",
        "input_layout": "NHWC",
        "input_height": height,
        "input_width": width,
        "color_order": "RGB",
        "resizing": "by the caller: bilinear, with antialiasing when it shrinks",
        "white_level": detector.white_level,
        "normalization": "in the file: (pixel / 255 - mean) / std",
        "normalization_mean": [round(float(value), 6) for value in IMAGENET_MEAN],
        "normalization_std": [round(float(value), 6) for value in IMAGENET_STD],
    }
    properties |= _framing_properties(detector.framing)
    if detector.calibration.puad is not None:
        properties["puad"] = "in the file"
    if threshold is not None:
        properties |= {
            "verdict": "anomalous if score >= threshold",
            "threshold": threshold.limit,
            "false_alarm_rate": threshold.false_alarm_rate,
            "false_alarm_rate_low": threshold.low,
            "false_alarm_rate_high": threshold.high,
            "threshold_images": threshold.images,
        }
    rule = detector.region_rule
    if rule is not None:
        properties |= {
            "regions": "by the caller: connected pixels of the map at the image's own size",
            "pixel_threshold": rule.threshold.limit,
            "smallest_region": rule.smallest_area,
            "region_false_positive_rate": rule.threshold.false_alarm_rate,
            "region_false_positive_rate_low": rule.threshold.low,
            "region_false_positive_rate_high": rule.threshold.high,
        }
    return properties


def _framing_properties(framing: Framing) -> dict[str, Any]:
    """How the caller makes the input of an image; none if it only resizes it."""
    properties: dict[str, Any] = {}
    if framing.fit != "resize":
        properties["fit"] = framing.fit
    if framing.usual_size is not None:
        properties["padded_from"] = list(framing.usual_size)
    if framing.box is not None:
        properties["region_of_interest"] = list(framing.box)
    if framing.ignored is not None:
        properties["ignore_mask"] = "in the file"
    return properties


def check_exportable(detector: Detector) -> None:
    """Checks that a program for one input can do what the detector does.

    Raises:
      InputError: it cannot.
    """
    if detector.framing.fit == "tile" and detector.framing.ignored is not None:
        raise InputError(
            "export: the detector cuts images into tiles and has an ignore mask, which is another "
            "one in each tile; expected one of the two"
        )
    if detector.framing.fit == "tile" and detector.calibration.puad is not None:
        raise InputError(
            "export: the detector cuts images into tiles and its score has PUAD, which is of the "
            "whole image; expected one of the two (`efficientad set-threshold DETECTOR --puad=off`)"
        )


def as_texts(properties: Mapping[str, Any]) -> dict[str, str]:
    """The properties as `metadata_props` stores them: numbers and lists as in JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in properties.items()
    }


def stored_threshold(properties: Mapping[str, Any], name: str) -> float | None:
    """The threshold among the properties of a file, None if it has none.

    Args:
      properties: as `export_properties` or `as_texts` returns them.
      name: of the file, for the message.

    Raises:
      InputError: it is not a finite number.
    """
    stored = properties.get("threshold")
    if stored is None:
        return None
    try:
        threshold = float(stored)
    except (TypeError, ValueError):
        threshold = math.nan
    if not math.isfinite(threshold):
        raise InputError(
            f"{name}: its threshold is {str(stored)[:50]!r}, expected a finite number; export the "
            "detector again"
        )
    return threshold


def properties_file(file: Path) -> Path:
    """The JSON file with the properties of a StableHLO file."""
    return file.with_name(f"{file.name}.json")


def write_properties(file: Path, content: bytes, properties: Mapping[str, Any]) -> None:
    """Writes the properties of a StableHLO file with this content next to it.

    Raises:
      OSError: they cannot be written.
    """
    stored = {**properties, "file_sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(properties_file(file), (json.dumps(stored, indent=2) + "\n").encode())


def read_properties(file: Path, content: bytes) -> dict[str, Any]:
    """The properties of a StableHLO file with this content; empty if it has none.

    Raises:
      InputError: the JSON file cannot be read, or describes another content.
    """
    path = properties_file(file)
    if not path.exists():
        return {}
    name = f"properties {path}"
    require_regular_file(path, name, _MOST_BYTES)
    try:
        stored = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: cannot be read as JSON ({error}); export again") from error
    digest = hashlib.sha256(content).hexdigest()
    if not isinstance(stored, dict) or stored.get("file_sha256") != digest:
        raise InputError(
            f"{name}: describes another file than {file.name}, expected file_sha256 {digest}; "
            "export again, or remove it"
        )
    return stored


def arrays_sha256(detector: Detector) -> str:
    """The SHA-256 of the detector's arrays, as in its `detector.json`."""
    saved = detector.saved_arrays
    if saved is not None and saved.params is detector.params:
        return saved.sha256
    return hashlib.sha256(serialized_arrays(detector.params)).hexdigest()


def _package_version() -> str:
    try:
        return version("efficientad-jax")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"
