"""A trained, calibrated detector: what people hold in their hands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.checkpoints import load_arrays, save_arrays
from efficientad_jax.data.decoding import ImageSource, decode_image, resize_image
from efficientad_jax.errors import InputError
from efficientad_jax.inference import (
    Anomalies,
    Calibration,
    DetectorParams,
    jitted_detect,
    prepared_params,
)
from efficientad_jax.map_normalization import MapQuantiles
from efficientad_jax.training import Networks, create_networks

FORMAT = "efficientad_jax detector"
VERSION = 1

_RECORD_FILE = "detector.json"
_ARRAYS_FOLDER = "arrays"
_BATCH_SIZE = 8


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
    """

    spec: DetectorSpec
    params: DetectorParams
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]

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
        detections = []
        for start in range(0, len(images), _BATCH_SIZE):
            batch = images[start : start + _BATCH_SIZE]
            # Two compiled programs, for one image and for a full batch, serve every number.
            fill = 0 if len(images) == 1 else _BATCH_SIZE - len(batch)
            anomalies = self.detect(np.concatenate([batch, batch[-1:].repeat(fill, axis=0)]))
            anomalies = jax.device_get(anomalies)
            for i in range(len(batch)):
                detections.append(_at_own_size(anomalies, i, sizes[start + i]))
        return detections

    def detect(self, images: UInt8[np.ndarray, "n h w 3"]) -> Anomalies:
        """Scores and maps of images that already have the input size; see `inference.detect`."""
        return jitted_detect(self.networks, self._prepared, self.calibration, images)

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

    def save(self, folder: str | Path) -> None:
        """Writes the detector to a folder: `detector.json` and arrays by orbax.

        A detector already there is replaced: its arrays go first, so that a half-written folder
        is never taken for a whole one.
        """
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _RECORD_FILE).unlink(missing_ok=True)
        save_arrays(folder / _ARRAYS_FOLDER, self.params._asdict())
        self.save_record(folder)

    def save_record(self, folder: str | Path) -> None:
        """Writes `detector.json` alone, after a change of the metrics."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "spec": self.spec._asdict(),
            "calibration": {
                "local": self.calibration.local._asdict(),
                "global": self.calibration.global_ and self.calibration.global_._asdict(),
                "upsample_first": self.calibration.upsample_first,
            },
            "config": self.config,
            "metrics": self.metrics,
        }
        content = json.dumps(record, indent=2) + "\n"
        write_atomically(Path(folder) / _RECORD_FILE, content.encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Detector":
        """Reads what `save` wrote.

        Raises:
          InputError: there is no detector, its version is unknown, or it is damaged.
        """
        folder = Path(folder).absolute()
        record = _read_record(folder / _RECORD_FILE)
        try:
            spec = DetectorSpec(**record["spec"])
            spec = spec._replace(input_size=tuple(spec.input_size))
            stored = record["calibration"]
            calibration = Calibration(
                MapQuantiles(**stored["local"]),
                MapQuantiles(**stored["global"]) if stored["global"] else None,
                stored["upsample_first"],
            )
            like = abstract_params(spec)
            config, metrics = record["config"], record["metrics"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"detector {folder}: {_RECORD_FILE} is not as version {VERSION} has it ({error!r})"
            ) from error
        try:
            arrays = load_arrays(folder / _ARRAYS_FOLDER, like._asdict())
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"detector {folder}: its arrays cannot be read ({reason}); save it again"
            ) from error
        return cls(spec, DetectorParams(**arrays), calibration, config, metrics)


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


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"detector {file.parent}: no {_RECORD_FILE}, expected a folder that "
            "`python -m experiments.train` or Detector.save left"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"detector {file}: cannot be read as JSON ({error})") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(f"detector {file}: not a detector's record, expected format {FORMAT!r}")
    if record.get("version") != VERSION:
        raise InputError(
            f"detector {file}: version {record.get('version')!r}, this package reads version "
            f"{VERSION}; use the release of efficientad-jax that wrote it, or a newer one"
        )
    return record
