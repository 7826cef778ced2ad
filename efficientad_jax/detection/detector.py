"""A trained, calibrated detector: what people hold in their hands."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from efficientad_jax.data.decoding import ImageSource, decode_image, resize_image
from efficientad_jax.detection.file import Contents, read_detector, write_detector, write_record
from efficientad_jax.detection.inference import (
    Anomalies,
    Calibration,
    DetectorParams,
    jitted_detect,
    prepared_params,
    runs_images_sequentially,
)
from efficientad_jax.detection.maps import resize_map
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import Threshold, choose_threshold
from efficientad_jax.errors import InputError
from efficientad_jax.networks.model import Networks

# Images that are computed in one go, at most.
BATCH_SIZE = 8


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
      teacher: the `sha256` of the file of the teacher it was trained with, and that one's
        `record`; empty for a detector of a version that did not keep them.
    """

    spec: DetectorSpec
    params: DetectorParams
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]
    threshold: Threshold | None = None
    validation_scores: tuple[float, ...] = ()
    teacher: dict[str, Any] = field(default_factory=dict)

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
        return 1 if images == 1 or runs_images_sequentially(self.networks) else BATCH_SIZE

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
        write_detector(Path(folder).absolute(), self._contents)

    def save_record(self, folder: str | Path) -> None:
        """Writes `detector.json` alone, after a change of the metrics or the threshold.

        Raises:
          OSError: it cannot be written; the one before is untouched.
        """
        write_record(Path(folder).absolute(), self._contents)

    @property
    def _contents(self) -> Contents:
        return Contents(*(getattr(self, name) for name in Contents._fields))

    @classmethod
    def load(cls, folder: str | Path) -> "Detector":
        """Reads what `save` wrote. The folder may come from anyone: see SECURITY.md.

        Raises:
          InputError: there is no detector, its version is unknown, or it is damaged.
        """
        return cls(*read_detector(Path(folder).absolute()))


def _at_own_size(anomalies: Anomalies, index: int, size: tuple[int, int]) -> Detection:
    """One image's maps, resized bilinearly to the size of the image."""

    def resize(maps: np.ndarray | None) -> np.ndarray | None:
        if maps is None:
            return None
        return resize_map(np.asarray(maps[index], np.float32), size)

    return Detection(
        float(anomalies.scores[index]),
        resize(anomalies.combined),  # pyright: ignore[reportArgumentType]
        resize(anomalies.local),  # pyright: ignore[reportArgumentType]
        resize(anomalies.global_),  # pyright: ignore[reportArgumentType]
    )
