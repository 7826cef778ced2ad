"""A detector as a folder: `detector.json`, and a safetensors file of its arrays.

The folder may come from anyone: see SECURITY.md.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save

from efficientad_jax.config import MOST_SCORE_VALUES
from efficientad_jax.data.framing import Framing
from efficientad_jax.data.framing_file import checked_framing, framing_fields
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.map_normalization import MapQuantiles
from efficientad_jax.detection.puad.distance import PuadStatistics, abstract_statistics
from efficientad_jax.detection.puad.standardization import PuadScale, PuadScores, sets_scale
from efficientad_jax.detection.spec import DetectorSpec, abstract_params, checked_spec
from efficientad_jax.detection.threshold import (
    RegionRule,
    Threshold,
    checked_region_rule,
    checked_scores,
    checked_threshold,
    region_rule_fields,
)
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.storage.regular import require_regular_file
from efficientad_jax.storage.safetensors import read_safetensors

FORMAT = "efficientad_jax detector"
VERSION = 2
# Of detectors whose score is not the maximum, which earlier packages would compute silently.
_VERSION_WITH_SCORE_RULE = 3
# Of detectors that see a part of an image, of which earlier packages would show them all.
_VERSION_WITH_FRAMING = 4
# Of detectors with statistics of PUAD, whose arrays earlier packages do not know.
_VERSION_WITH_PUAD = 5
_VERSIONS = (VERSION, _VERSION_WITH_SCORE_RULE, _VERSION_WITH_FRAMING, _VERSION_WITH_PUAD)

_RECORD_FILE = "detector.json"
_MOST_RECORD_BYTES = 16 << 20


class SavedArrays(NamedTuple):
    """Parameters, and the SHA-256 of the file that they were read from or written to."""

    params: DetectorParams
    sha256: str


class StoredFields(NamedTuple):
    """The fields of a detector that `detector.json` holds, by their names in `Detector`."""

    spec: DetectorSpec
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]
    threshold: Threshold | None
    validation_scores: tuple[float, ...]
    teacher: dict[str, Any]
    region_rule: RegionRule | None
    framing: Framing
    validation_brightness: tuple[float, ...]
    puad: PuadScores | None


def json_fields(stored: StoredFields) -> dict[str, Any]:
    """The fields as JSON has them, without those that `write_record` adds."""
    threshold = stored.threshold and stored.threshold._asdict()
    margin = threshold.pop("margin") if threshold else 0.0
    # Absent without a mask, a region or PUAD, as in detectors of older versions.
    parts = {} if stored.framing.is_plain else {"framing": framing_fields(stored.framing)}
    if stored.puad is not None:
        parts["puad"] = _puad_fields(stored.puad, stored.calibration)
    return parts | {
        "spec": stored.spec._asdict(),
        "calibration": calibration_fields(stored.calibration),
        "threshold": threshold,
        "threshold_margin": margin,
        "validation_scores": stored.validation_scores,
        "validation_brightness": stored.validation_brightness,
        "regions": region_rule_fields(stored.region_rule),
        "config": stored.config,
        "teacher": stored.teacher,
        "metrics": stored.metrics,
    }


def read_files(folder: Path) -> tuple[StoredFields, SavedArrays]:
    """Reads a detector. The folder may come from anyone: see SECURITY.md.

    Raises:
      InputError: there is no detector, its version is unknown, or it is damaged.
    """
    record = read_record(folder)
    with _record_errors(folder):
        stored = _checked_fields(record)
        digest = _checked_digest(record["arrays_sha256"])
    like = abstract_params(stored.spec)
    if stored.puad is not None:
        like = like._replace(puad=abstract_statistics(stored.spec.out_channels))
    return stored, _read_arrays(folder, digest, like)


def _checked_fields(record: dict[str, Any]) -> StoredFields:
    """The fields of `detector.json`.

    Raises:
      KeyError, TypeError, ValueError: one is missing, of another type or out of range.
    """
    spec = checked_spec(record["spec"])
    calibration = checked_calibration(record["calibration"], spec)
    # Both are absent where no threshold was ever chosen.
    threshold = checked_threshold(record.get("threshold"), record.get("threshold_margin", 0.0))
    scores = checked_scores(record.get("validation_scores", []))
    # Those that follow are absent in detectors of older versions.
    brightness = checked_scores(record.get("validation_brightness", []))
    region_rule = checked_region_rule(record.get("regions"))
    framing = checked_framing(record.get("framing"))
    puad, scale = _checked_puad(record.get("puad"))
    calibration = calibration._replace(puad=scale)
    config, metrics = record["config"], record["metrics"]
    teacher = record.get("teacher", {})
    if not all(isinstance(part, dict) for part in (config, metrics, teacher)):
        raise TypeError("config, metrics and teacher have to be objects")
    return StoredFields(
        spec,
        calibration,
        config,
        metrics,
        threshold,
        scores,
        teacher,
        region_rule,
        framing,
        brightness,
        puad,
    )


def _puad_fields(scores: PuadScores, calibration: Calibration) -> dict[str, Any]:
    """The scores with and without PUAD, its scale, and whether the detector uses it."""
    return {
        "used": calibration.puad is not None,
        **scores.scale._asdict(),
        "scores": scores.combined,
        "scores_without": scores.plain,
    }


def _checked_puad(stored: dict[str, Any] | None) -> tuple[PuadScores | None, PuadScale | None]:
    """The scores of `_puad_fields`, and the scale if the detector uses PUAD.

    Raises:
      KeyError, TypeError, ValueError: a field is missing, of another type or out of range.
    """
    if stored is None:
        return None, None
    scale = PuadScale(stored["distance_mean"], stored["weight"])
    finite = all(type(value) is float and math.isfinite(value) for value in scale)
    if not finite or scale.weight <= 0:
        raise ValueError(f"puad {str(scale)[:200]}: expected finite numbers, the weight above 0")
    if type(stored["used"]) is not bool:
        raise TypeError("puad: used is not true or false")
    combined, plain = (checked_scores(stored[name]) for name in ("scores", "scores_without"))
    if len(combined) < 2 or len(combined) != (~sets_scale(len(plain))).sum():
        raise ValueError(f"puad: {len(combined)} scores with it do not suit {len(plain)} without")
    return PuadScores(scale, combined, plain), scale if stored["used"] else None


def write_files(folder: Path, fields: dict[str, Any], params: DetectorParams) -> SavedArrays:
    """Writes a detector; an existing one is replaced in one step.

    The new arrays are written next to the old ones, then `detector.json`, which names them by
    their digest; then the old ones are removed.

    Args:
      folder: created if needed.
      fields: of `detector.json`, without those that this module adds.
      params: the arrays.

    Raises:
      OSError: a file cannot be written; the detector in the folder is unchanged.
    """
    content = serialized_arrays(params)
    digest = hashlib.sha256(content).hexdigest()
    file = folder / _arrays_file(digest)
    before = set(folder.glob(_arrays_file("*")))
    write_atomically(file, content)
    try:
        write_record(folder, fields, digest)
    except OSError:
        if file not in before:
            file.unlink()
        raise
    for old in before - {file}:
        old.unlink()
    return SavedArrays(params, digest)


def write_record(folder: Path, fields: dict[str, Any], arrays_sha256: str) -> None:
    """Writes only `detector.json`.

    Args:
      folder: that holds the arrays.
      fields: without those that this module adds.
      arrays_sha256: digest of the file of arrays.

    Raises:
      OSError: it cannot be written; the previous one is unchanged.
    """
    is_maximum = fields["calibration"]["score_values"] == 1
    version = VERSION if is_maximum else _VERSION_WITH_SCORE_RULE
    version = _VERSION_WITH_FRAMING if "framing" in fields else version
    version = _VERSION_WITH_PUAD if "puad" in fields else version
    record = {"format": FORMAT, "version": version, **fields, "arrays_sha256": arrays_sha256}
    write_atomically(folder / _RECORD_FILE, (json.dumps(record, indent=2) + "\n").encode())


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a completely saved detector: its `detector.json` is written last."""
    return (folder / _RECORD_FILE).is_file()


@contextmanager
def _record_errors(folder: Path) -> Iterator[None]:
    """Turns the errors of unusable fields of `detector.json` into an InputError of one line."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"detector {folder}: {_RECORD_FILE} is not as this package writes it ({error!r})"
        ) from error


def serialized_arrays(params: DetectorParams) -> bytes:
    """The content of the file of arrays."""
    return save({k: np.ascontiguousarray(v, np.float32) for k, v in _flat(params).items()})


def calibration_fields(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON has it."""

    def fields(quantiles: MapQuantiles) -> dict[str, float]:
        return {name: float(value) for name, value in quantiles._asdict().items()}

    return {
        "local": fields(calibration.local),
        "global": calibration.global_ and fields(calibration.global_),
        "upsample_first": calibration.upsample_first,
        "score_values": calibration.score_values,
    }


def _arrays_file(digest: str) -> str:
    return f"arrays-{digest[:16]}.safetensors"


def _flat(params: DetectorParams) -> dict[str, Any]:
    """Parameters by names such as 'student.params.conv1.kernel'."""
    trees = {name: tree for name, tree in params._asdict().items() if tree is not None}
    if params.puad is not None:
        trees["puad"] = params.puad._asdict()
    return flatten_dict(trees, sep=".")


def checked_calibration(stored: dict[str, Any], spec: DetectorSpec) -> Calibration:
    """A calibration from `calibration_fields`, which may come from anyone.

    Raises:
      KeyError: a field is missing.
      TypeError: a field is of another type.
      ValueError: a field is out of range, or does not suit the networks of `spec`.
    """

    def quantiles(values: dict[str, Any]) -> MapQuantiles:
        checked = MapQuantiles(**values)
        finite = all(type(value) is float and math.isfinite(value) for value in checked)
        if not finite or checked.b <= checked.a:
            raise ValueError(f"quantiles {str(values)[:200]}: expected finite ones, b above a")
        return checked

    if (stored["global"] is not None) != spec.autoencoder:
        raise ValueError("quantiles of global maps are there without an autoencoder, or missing")
    if type(stored["upsample_first"]) is not bool:
        raise TypeError("upsample_first is not true or false")
    score_values = stored.get("score_values", 1)  # absent in detectors of older versions
    if type(score_values) is not int or not 1 <= score_values <= MOST_SCORE_VALUES:
        raise ValueError(
            f"score_values {str(score_values)[:20]}: expected 1 to {MOST_SCORE_VALUES}"
        )
    return Calibration(
        quantiles(stored["local"]),
        quantiles(stored["global"]) if spec.autoencoder else None,
        stored["upsample_first"],
        score_values,
    )


def _checked_digest(stored: Any) -> str:
    """A digest from `detector.json`, which becomes part of a file name.

    Raises:
      TypeError: it is no text.
      ValueError: it is no SHA-256.
    """
    if not re.fullmatch("[0-9a-f]{64}", stored):
        raise ValueError("arrays_sha256 is no SHA-256")
    return stored


def _read_arrays(folder: Path, sha256: str, like: DetectorParams) -> SavedArrays:
    """Reads the parameters, in the structure of `like`. It follows no link out of the folder.

    Raises:
      InputError: the file is missing, damaged, or holds other arrays.
    """
    file = folder / _arrays_file(sha256)
    name = f"detector {folder}: {file.name}"
    shapes = {key: leaf.shape for key, leaf in _flat(like).items()}
    _, arrays = read_safetensors(file, name, lambda metadata: shapes, follow_links=False)
    with file.open("rb") as stored:
        if hashlib.file_digest(stored, "sha256").hexdigest() != sha256:
            raise InputError(f"{name}: damaged, its bytes are not those that were saved")
    trees: dict[str, Any] = unflatten_dict(
        {key: jnp.asarray(value) for key, value in arrays.items()}, sep="."
    )
    puad = None if like.puad is None else PuadStatistics(**trees["puad"])
    params = DetectorParams(trees["teacher"], trees["student"], trees.get("autoencoder"), puad)
    return SavedArrays(params, sha256)


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `detector.json` and checks its format and version, not its fields.

    Raises:
      InputError: there is no detector, or its version is unknown.
    """
    file = folder / _RECORD_FILE
    if not os.path.lexists(file):
        raise InputError(
            f"detector {file.parent}: no {_RECORD_FILE}, expected the folder of a "
            "detector, as a training or Detector.save writes it"
        )
    require_regular_file(file, f"detector {file}", _MOST_RECORD_BYTES, follow_links=False)
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"detector {file}: cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"detector {file}: not a detector's record, expected format {FORMAT!r}")
    if record.get("version") not in _VERSIONS:
        raise InputError(
            f"detector {file}: version {str(record.get('version'))[:20]}, this package reads "
            f"versions {', '.join(map(str, _VERSIONS))}; use the release of efficientad-jax that "
            "wrote it, or a newer one"
        )
    return record
