"""A trained, calibrated detector: what people hold in their hands."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors.numpy import save

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.configuration import LARGEST_SIDE, SMALLEST_SIDE
from efficientad_jax.data.decoding import ImageSource, decode_image, resize_image
from efficientad_jax.errors import InputError
from efficientad_jax.inference import (
    Anomalies,
    Calibration,
    DetectorParams,
    computes_singly,
    jitted_detect,
    prepared_params,
)
from efficientad_jax.map_normalization import MapQuantiles
from efficientad_jax.pdn import Size
from efficientad_jax.regular_file import require_regular_file
from efficientad_jax.safetensors_file import read_safetensors
from efficientad_jax.teacher import MOST_CHANNELS
from efficientad_jax.threshold import (
    Threshold,
    checked_scores,
    checked_threshold,
    choose_threshold,
)
from efficientad_jax.training import Networks, create_networks

FORMAT = "efficientad_jax detector"
VERSION = 2

# Images that are computed in one go, at most.
BATCH_SIZE = 8

_RECORD_FILE = "detector.json"
_MOST_RECORD_BYTES = 16 << 20


class DetectorSpec(NamedTuple):
    """What is needed to rebuild the networks.

    Attributes:
      size: of the PDNs, 'small' or 'medium'.
      out_channels: of the teacher.
      input_size: height and width that images are resized to.
      padding: whether the PDNs are padded.
      dtype: of the computation, 'float32' or 'bfloat16'.
      autoencoder: whether there is one.
    """

    size: str
    out_channels: int
    input_size: tuple[int, int]
    padding: bool
    dtype: str
    autoencoder: bool


class Detection(NamedTuple):
    """What the detector says of one image.

    Attributes:
      score: of the whole image; the higher, the more anomalous. Normal images lie about 0.1.
      anomaly_map: `[h, w]` at the image's own size: 0 where a pixel is as anomalous as the
        `q_a`-quantile of normal pixels (0.9), 0.1 at the `q_b`-quantile (0.995).
      local_map: the student-teacher part, for structural defects.
      global_map: the autoencoder-student part, for logical ones; None without an autoencoder.
    """

    score: float
    anomaly_map: Float[np.ndarray, "h w"]
    local_map: Float[np.ndarray, "h w"]
    global_map: Float[np.ndarray, "h w"] | None


@dataclass(frozen=True)
class Detector:
    """A trained detector. Call it on images; `save` and `load` it as a folder.

    Attributes:
      spec: what networks it has.
      params: their parameters.
      calibration: quantiles of the validation maps.
      config: the configuration it was trained with.
      metrics: what an evaluation found, empty before one.
      threshold: from which score on an image counts as anomalous, None where none was chosen.
      validation_scores: those of the validation images, from which another can be chosen.
    """

    spec: DetectorSpec
    params: DetectorParams
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]
    threshold: Threshold | None = None
    validation_scores: tuple[float, ...] = ()

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Detection | list[Detection]:
        """Detects anomalies in one image or in a list of images.

        Args:
          images: each a path, encoded bytes, a PIL image or a NumPy array (`[h, w]`, or
            `[h, w, c]` with 1 to 4 channels) of any size; grayscale, RGB, RGBA or 16-bit.

        Returns:
          A `Detection` for one image, a list of them for a list or tuple.

        Raises:
          InputError: an image cannot be decoded; it names which.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]  # pyright: ignore
        decoded = [decode_image(image) for image in images]
        if not decoded:
            return []
        height, width = self.spec.input_size
        resized = np.stack([resize_image(image, height, width) for image in decoded])
        return self.detect_resized(resized, [image.shape[:2] for image in decoded])

    def detect_resized(
        self, images: UInt8[np.ndarray, "n h w 3"], sizes: Sequence[tuple[int, int]]
    ) -> list[Detection]:
        """Detects in images that are already resized to the input size.

        Args:
          images: RGB at `spec.input_size`.
          sizes: height and width that each image's maps are to have.
        """
        size = self.batch_size(len(images))
        detections = []
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            fill = size - len(batch)
            anomalies = self.detect(np.concatenate([batch, batch[-1:].repeat(fill, axis=0)]))
            anomalies = jax.device_get(anomalies)
            for i in range(len(batch)):
                detections.append(_at_own_size(anomalies, i, sizes[start + i]))
        return detections

    def batch_size(self, images: int) -> int:
        """How many of so many images `detect` is best given at once, the last batch filled up.

        Two compiled programs then serve every number of images: one on a CPU, where an image that
        fills a batch costs as much as any other.
        """
        return 1 if images == 1 or computes_singly(self.networks) else BATCH_SIZE

    def detect(self, images: UInt8[np.ndarray, "n h w 3"]) -> Anomalies:
        """Scores and maps of images that already have the input size; see `inference.detect`."""
        return jitted_detect(self.networks, self._prepared, self.calibration, images)

    def detect_tiles(self, tiles: UInt8[np.ndarray, "n h w 3"]) -> Anomalies:
        """As `detect`, with maps of a quarter of the size whatever `upsample_first`."""
        calibration = self.calibration._replace(upsample_first=False)
        return jitted_detect(self.networks, self._prepared, calibration, tiles)

    @cached_property
    def _prepared(self) -> DetectorParams:
        return prepared_params(self.networks, self.params, self.spec.input_size)

    @property
    def networks(self) -> Networks:
        """The modules, without parameters."""
        return networks_of(self.spec)

    def with_metrics(self, metrics: dict[str, Any]) -> "Detector":
        """The same detector with these metrics on record."""
        return replace(self, metrics=metrics)

    def with_threshold(self, false_alarm_rate: float) -> "Detector":
        """The same detector with the threshold for another rate; see `choose_threshold`.

        Args:
          false_alarm_rate: wanted part of the normal images that count as anomalous, in (0, 1).

        Raises:
          InputError: the rate is out of range, or the detector has no validation scores.
        """
        if not self.validation_scores:
            raise InputError(
                "detector: holds no scores of validation images to choose a threshold by, expected "
                "those that `python -m experiments.train` leaves; train it again"
            )
        return replace(self, threshold=choose_threshold(self.validation_scores, false_alarm_rate))

    def save(self, folder: str | Path) -> None:
        """Writes the detector to a folder: `detector.json` and a safetensors file of its arrays.

        A detector already there is replaced in one move: the new arrays are written beside its
        own, then `detector.json`, which names them by their digest, then its own are removed.

        Raises:
          OSError: it cannot be written; what was there before is untouched.
        """
        folder = Path(folder).absolute()
        content = self._serialised_arrays()
        file = folder / _arrays_file(hashlib.sha256(content).hexdigest())
        before = set(folder.glob(_arrays_file("*")))
        write_atomically(file, content)
        try:
            self.save_record(folder)
        except OSError:
            if file not in before:
                file.unlink()
            raise
        for old in before - {file}:
            old.unlink()

    def save_record(self, folder: str | Path) -> None:
        """Writes `detector.json` alone, after a change of the metrics or the threshold.

        Raises:
          OSError: it cannot be written; the one before is untouched.
        """
        record = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec._asdict(),
            "calibration": {
                "local": _stored(self.calibration.local),
                "global": self.calibration.global_ and _stored(self.calibration.global_),
                "upsample_first": self.calibration.upsample_first,
            },
            "threshold": self.threshold and self.threshold._asdict(),
            "validation_scores": self.validation_scores,
            "config": self.config,
            "metrics": self.metrics,
            "arrays_sha256": hashlib.sha256(self._serialised_arrays()).hexdigest(),
        }
        content = json.dumps(record, indent=2) + "\n"
        write_atomically(Path(folder) / _RECORD_FILE, content.encode())

    def _serialised_arrays(self) -> bytes:
        arrays = _flat(self.params)
        return save({k: np.ascontiguousarray(v, np.float32) for k, v in arrays.items()})

    @classmethod
    def load(cls, folder: str | Path) -> "Detector":
        """Reads what `save` wrote. The folder may come from anyone: see SECURITY.md.

        Raises:
          InputError: there is no detector, its version is unknown, or it is damaged.
        """
        folder = Path(folder).absolute()
        record = _read_record(folder / _RECORD_FILE)
        try:
            spec = _checked_spec(record["spec"])
            calibration = _checked_calibration(record["calibration"], spec)
            # Both are absent where no threshold was ever chosen.
            threshold = checked_threshold(record.get("threshold"))
            scores = checked_scores(record.get("validation_scores", []))
            config, metrics = record["config"], record["metrics"]
            digest = record["arrays_sha256"]
            if not isinstance(config, dict) or not isinstance(metrics, dict):
                raise TypeError("config and metrics have to be objects")
            # It becomes part of a file's name.
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError("arrays_sha256 is no SHA-256")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"detector {folder}: {_RECORD_FILE} is not as version {VERSION} has it ({error!r})"
            ) from error
        params = _read_arrays(folder / _arrays_file(digest), digest, abstract_params(spec))
        return cls(spec, params, calibration, config, metrics, threshold, scores)


def networks_of(spec: DetectorSpec) -> Networks:
    """The modules that a spec describes."""
    return create_networks(
        spec.size,  # pyright: ignore[reportArgumentType]
        spec.out_channels,
        spec.input_size,
        spec.padding,
        spec.dtype,
    )


def abstract_params(spec: DetectorSpec) -> DetectorParams:
    """Shapes and dtypes of a detector's parameters."""
    networks = networks_of(spec)
    image = jax.ShapeDtypeStruct((1, *spec.input_size, 3), np.float32)
    teacher, student, autoencoder = (
        jax.eval_shape(network.init, jax.random.key(0), image) for network in networks
    )
    return DetectorParams(teacher, student, autoencoder if spec.autoencoder else None)


def _at_own_size(anomalies: Anomalies, index: int, size: tuple[int, int]) -> Detection:
    """One image's maps, resized bilinearly to the size of the image."""

    def resize(maps: np.ndarray | None) -> np.ndarray | None:
        if maps is None:
            return None
        height, width = size
        image = Image.fromarray(np.asarray(maps[index], np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))

    return Detection(
        float(anomalies.scores[index]),
        resize(anomalies.combined),  # pyright: ignore[reportArgumentType]
        resize(anomalies.local),  # pyright: ignore[reportArgumentType]
        resize(anomalies.global_),  # pyright: ignore[reportArgumentType]
    )


def _stored(quantiles: MapQuantiles) -> dict[str, float]:
    return {name: float(value) for name, value in quantiles._asdict().items()}


def _arrays_file(digest: str) -> str:
    return f"arrays-{digest[:16]}.safetensors"


def _flat(params: DetectorParams) -> dict[str, Any]:
    """Parameters by names such as 'student.params.conv1.kernel'."""
    networks = {name: tree for name, tree in params._asdict().items() if tree is not None}
    return flatten_dict(networks, sep=".")


def _checked_spec(stored: dict[str, Any]) -> DetectorSpec:
    """A spec that networks can be made of without taking much memory."""
    spec = DetectorSpec(**stored)
    spec = spec._replace(input_size=tuple(spec.input_size))
    sides = range(SMALLEST_SIDE, LARGEST_SIDE + 1, 32)
    ints = (spec.out_channels, *spec.input_size)
    if not (
        spec.size in get_args(Size)
        and all(type(number) is int for number in ints)
        and 1 <= spec.out_channels <= MOST_CHANNELS
        and len(spec.input_size) == 2
        and all(side in sides for side in spec.input_size)
        and type(spec.padding) is bool
        and type(spec.autoencoder) is bool
        and spec.dtype in ("float32", "bfloat16")
    ):
        raise ValueError(f"no networks can be made of the spec {str(stored)[:200]}")
    return spec


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
