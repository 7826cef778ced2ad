"""Describes a detector.

    efficientad info runs/mine/detector
    efficientad info runs/mine/detector --validation-images

Prints the size of its networks, its input, the data and the steps of its training, its teacher with
the licenses, its thresholds with the intervals of their rates, its last metrics and its format. The
folder may come from anyone: see SECURITY.md. With --validation-images it prints the paths of the
good images that the detector was not trained on, one a line, for programs that need some.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from efficientad_jax.commands.command_line import add_detector
from efficientad_jax.config import read_config
from efficientad_jax.data.datasets.folder import resolve_category
from efficientad_jax.data.framing import Framing
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.file import read_record
from efficientad_jax.detection.threshold import percent, region_summary, summary
from efficientad_jax.errors import InputError, printable
from efficientad_jax.fitting.puad_summary import puad_summary
from efficientad_jax.networks.pdn import NAMES

_METRICS = {
    "image_auroc": "image AU-ROC",
    "pixel_auroc": "pixel AU-ROC",
    "au_pro": "AU-PRO",
    "au_spro": "AU-sPRO",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_detector(parser)
    parser.add_argument(
        "--validation-images",
        action="store_true",
        help="print the paths of the validation images only, which are read where they were at the "
        "training",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the description."""
    folder = Path(options.detector)
    detector = Detector.load(folder)
    if options.validation_images:
        for path in _validation_images(detector):
            print(path)
        return 0
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    version = read_record(folder)["version"]
    facts = [("format", f"version {version}, {size / 1e6:.1f} MB"), *_facts(detector)]
    for name, value in facts:
        print(f"{name:<12}{printable(value)}")
    return 0


def _validation_images(detector: Detector) -> list[Path]:
    """The files of the validation images.

    Raises:
      InputError: the images cannot be read, or are not in a folder.
    """
    config = read_config(detector.config)
    if config.dataset.name != "folder":
        raise InputError(
            f"dataset {config.dataset.name!r}: is read from a copy, expected a dataset 'folder'"
        )
    root = resolve_category(config.dataset.root, config.category)
    validation = load_configured_dataset(config, detector.framing).validation
    return [root / name for name in validation.names]


def _facts(detector: Detector) -> Iterator[tuple[str, str]]:
    """Name and value of each line but the first."""
    spec, config, teacher = detector.spec, detector.config, detector.teacher
    branch = "with" if spec.autoencoder else "without"
    name = NAMES[spec.size]  # pyright: ignore[reportArgumentType]
    yield "networks", f"{name} {branch} autoencoder, {spec.out_channels} channels, {spec.dtype}"
    framing = _framing(detector.framing)
    if detector.framing.ignored is None and _text(config, "dataset", "ignore_mask"):
        framing += ", trained with an ignore mask for each image"
    yield "input", f"{spec.input_size[0]} x {spec.input_size[1]} pixels{framing}"
    yield "score", _score(detector.calibration.score_values)
    if detector.puad is not None:
        yield "PUAD", puad_summary(detector)
    place = [_text(config, "dataset", key) for key in ("name", "root")]
    data = " ".join(filter(None, [*place, _text(config, "category")]))
    yield "data", f"{data or 'unknown'}; {len(detector.validation_scores)} validation images"
    chosen = _text(config, "train", "patience") not in ("", "0")
    steps = _text(config, "train", "steps") or "unknown"
    yield "steps", f"at most {steps}, the best measured state" if chosen else steps
    yield "teacher", f"SHA-256 {_text(teacher, 'sha256')[:16] or 'unknown'}"
    for key, title in (("backbone", "  backbone"), ("images", "  images")):
        source = _text(teacher, "record", key, "name") or "unknown"
        yield title, f"{source}; license: {_text(teacher, 'record', key, 'license') or 'unknown'}"
    threshold = detector.threshold
    yield "threshold", "none" if threshold is None else summary(threshold)
    rule = detector.region_rule
    yield "regions", "none" if rule is None else f"pixel threshold {region_summary(rule)}"
    yield "metrics", _metrics(detector.metrics)


def _score(values: int) -> str:
    return "maximum of the map" if values == 1 else f"mean of the map's {values} highest values"


def _framing(framing: Framing) -> str:
    """How images become the input, '' if they are only resized."""
    parts = [] if framing.fit == "resize" else [f"fit: {framing.fit}"]
    if framing.box is not None:
        parts.append(f"region of interest {framing.box}")
    if framing.ignored is not None:
        parts.append(f"{percent(framing.ignored_fraction)} of it ignored")
    return "".join(f", {part}" for part in parts)


def _metrics(metrics: dict[str, Any]) -> str:
    measured = {
        title: value
        for key, title in _METRICS.items()
        if isinstance(value := metrics.get(key), float)
    }
    if not measured:
        return "none, as it was not evaluated on test images"
    images = [f"{_text(metrics, f'{kind}_images')} {kind}" for kind in ("good", "anomalous")]
    values = ", ".join(f"{title} {value:.4f}" for title, value in measured.items())
    return f"{values}; on {' and '.join(images)} test images"


def _text(values: Any, *keys: str) -> str:
    """A value in nested objects of JSON, which may come from anyone; '' where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return str(values)[:200] if isinstance(values, str | int | float) else ""
