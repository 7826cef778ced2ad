"""A detector as a folder: `detector.json`, and a safetensors file of its arrays.

The folder may come from anyone: see SECURITY.md.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.spec import DetectorSpec, abstract_params, checked_spec
from efficientad_jax.detection.threshold import Threshold, checked_scores, checked_threshold
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.regular import require_regular_file
from efficientad_jax.storage.safetensors import read_safetensors

FORMAT = "efficientad_jax detector"
VERSION = 2

_RECORD_FILE = "detector.json"
_MOST_RECORD_BYTES = 16 << 20


class Contents(NamedTuple):
    """All that the folder holds; see the attributes of `Detector`."""

    spec: DetectorSpec
    params: DetectorParams
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]
    threshold: Threshold | None
    validation_scores: tuple[float, ...]
    teacher: dict[str, Any]


def write_detector(folder: Path, detector: Contents) -> None:
    """Writes a detector, in one move where there is one already.

    The new arrays are written beside its own, then `detector.json`, which names them by their
    digest, then its own are removed.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    content = _serialised_arrays(detector.params)
    digest = hashlib.sha256(content).hexdigest()
    file = folder / _arrays_file(digest)
    before = set(folder.glob(_arrays_file("*")))
    write_atomically(file, content)
    try:
        _write_record(folder, detector, digest)
    except OSError:
        if file not in before:
            file.unlink()
        raise
    for old in before - {file}:
        old.unlink()


def write_record(folder: Path, detector: Contents) -> None:
    """Writes `detector.json` alone.

    Raises:
      OSError: it cannot be written; the one before is untouched.
    """
    digest = hashlib.sha256(_serialised_arrays(detector.params)).hexdigest()
    _write_record(folder, detector, digest)


def _write_record(folder: Path, detector: Contents, digest: str) -> None:
    calibration = detector.calibration
    record = {
        "format": FORMAT,
        "version": VERSION,
        "spec": detector.spec._asdict(),
        "calibration": {
            "local": _stored(calibration.local),
            "global": calibration.global_ and _stored(calibration.global_),
            "upsample_first": calibration.upsample_first,
        },
        "threshold": detector.threshold and detector.threshold._asdict(),
        "validation_scores": detector.validation_scores,
        "config": detector.config,
        "teacher": detector.teacher,
        "metrics": detector.metrics,
        "arrays_sha256": digest,
    }
    write_atomically(folder / _RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a completely saved detector: its `detector.json` is written last."""
    return (folder / _RECORD_FILE).is_file()


def read_detector(folder: Path) -> Contents:
    """Reads what `write_detector` wrote.

    Raises:
      InputError: there is no detector, its version is unknown, or it is damaged.
    """
    record = _read_record(folder / _RECORD_FILE)
    try:
        spec = checked_spec(record["spec"])
        calibration = _checked_calibration(record["calibration"], spec)
        # Both are absent where no threshold was ever chosen.
        threshold = checked_threshold(record.get("threshold"))
        scores = checked_scores(record.get("validation_scores", []))
        config, metrics = record["config"], record["metrics"]
        teacher = record.get("teacher", {})  # absent in those of older versions
        digest = record["arrays_sha256"]
        if not all(isinstance(part, dict) for part in (config, metrics, teacher)):
            raise TypeError("config, metrics and teacher have to be objects")
        # It becomes part of a file's name.
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("arrays_sha256 is no SHA-256")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"detector {folder}: {_RECORD_FILE} is not as version {VERSION} has it ({error!r})"
        ) from error
    params = _read_arrays(folder / _arrays_file(digest), digest, abstract_params(spec))
    return Contents(spec, params, calibration, config, metrics, threshold, scores, teacher)


def _serialised_arrays(params: DetectorParams) -> bytes:
    return save({k: np.ascontiguousarray(v, np.float32) for k, v in _flat(params).items()})


def _stored(quantiles: MapQuantiles) -> dict[str, float]:
    return {name: float(value) for name, value in quantiles._asdict().items()}


def _arrays_file(digest: str) -> str:
    return f"arrays-{digest[:16]}.safetensors"


def _flat(params: DetectorParams) -> dict[str, Any]:
    """Parameters by names such as 'student.params.conv1.kernel'."""
    networks = {name: tree for name, tree in params._asdict().items() if tree is not None}
    return flatten_dict(networks, sep=".")


def _checked_calibration(stored: dict[str, Any], spec: DetectorSpec) -> Calibration:
    def quantiles(values: dict[str, Any]) -> MapQuantiles:
        found = MapQuantiles(**values)
        if not all(type(q) is float and math.isfinite(q) for q in found) or found.b <= found.a:
            raise ValueError(f"quantiles {str(values)[:200]}: expected finite ones, b above a")
        return found

    if (stored["global"] is not None) != spec.autoencoder:
        raise ValueError("quantiles of global maps are there without an autoencoder, or missing")
    if type(stored["upsample_first"]) is not bool:
        raise TypeError("upsample_first is not true or false")
    return Calibration(
        quantiles(stored["local"]),
        quantiles(stored["global"]) if spec.autoencoder else None,
        stored["upsample_first"],
    )


def _read_arrays(file: Path, digest: str, like: DetectorParams) -> DetectorParams:
    """The parameters, in the structure of `like`; no link is followed out of the folder."""
    name = f"detector {file.parent}: {file.name}"
    shapes = {key: leaf.shape for key, leaf in _flat(like).items()}
    _, arrays = read_safetensors(file, name, lambda metadata: shapes, follow_links=False)
    with file.open("rb") as stored:
        if hashlib.file_digest(stored, "sha256").hexdigest() != digest:
            raise InputError(f"{name}: damaged, its bytes are not those that were saved")
    trees: dict[str, Any] = unflatten_dict(
        {key: jnp.asarray(value) for key, value in arrays.items()}, sep="."
    )
    return DetectorParams(trees["teacher"], trees["student"], trees.get("autoencoder"))


def _read_record(file: Path) -> dict[str, Any]:
    if not os.path.lexists(file):
        raise InputError(
            f"detector {file.parent}: no {_RECORD_FILE}, expected a folder that "
            "`python -m experiments.train` or Detector.save left"
        )
    require_regular_file(file, f"detector {file}", _MOST_RECORD_BYTES, follow_links=False)
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"detector {file}: cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"detector {file}: not a detector's record, expected format {FORMAT!r}")
    if record.get("version") != VERSION:
        raise InputError(
            f"detector {file}: version {str(record.get('version'))[:20]}, this package reads "
            f"version {VERSION}; use the release of efficientad-jax that wrote it, or a newer one"
        )
    return record
