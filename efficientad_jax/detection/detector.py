# long: one class, whose methods are all ways to detect and the thresholds of a detector
"""A trained, calibrated detector."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from efficientad_jax.convolution import is_for_accelerator
from efficientad_jax.data.decoding import WHITE_LEVEL, ImageSource, decode_image
from efficientad_jax.data.framing import (
    PLAIN,
    Framing,
    check_image_size,
    map_of_image,
    network_input,
    seen_size,
)
from efficientad_jax.data.framing_file import own_masks_in_input
from efficientad_jax.detection.accelerated import AcceleratedDetection
from efficientad_jax.detection.file import (
    SavedArrays,
    StoredFields,
    json_fields,
    read_files,
    serialized_arrays,
    write_files,
    write_record,
)
from efficientad_jax.detection.inference import (
    Anomalies,
    Calibration,
    Detection,
    DetectorParams,
    jitted_detect,
    prepared_params,
    runs_images_sequentially,
)
from efficientad_jax.detection.puad.distance import output_weights
from efficientad_jax.detection.puad.standardization import PuadScores
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import (
    RegionRule,
    Threshold,
    choose_threshold,
    required_rule,
)
from efficientad_jax.detection.tiling import detect_tiled
from efficientad_jax.errors import InputError
from efficientad_jax.networks.ignored import Ignored, ignored_in_images
from efficientad_jax.networks.model import Networks

# The largest number of images in a batch.
BATCH_SIZE = 8

_Source = TypeVar("_Source", bound=ImageSource)


@dataclass(frozen=True)
class Detector:
    """A trained detector. Call it on images; `save` and `load` it as a folder.

    Attributes:
      spec: describes its networks.
      params: their parameters.
      calibration: quantiles of the validation maps.
      config: the configuration that it was trained with.
      metrics: the metrics of its evaluation, empty before one.
      threshold: a score at or above its `limit` counts as anomalous; None where none was chosen.
      validation_scores: scores of the validation images, to choose other thresholds by.
      teacher: the `sha256` of the teacher file that it was trained with, and the `record` in that
        file; empty for a detector of a version that did not store them.
      region_rule: the pixel threshold and the smallest area of regions; None where none was chosen.
      framing: which part of an image counts, and how it becomes the networks' input.
      validation_brightness: mean values of the validation images' pixels, to notice drift by; empty
        in detectors of older versions.
      puad: scores of the validation images with and without PUAD; None without its statistics.
      saved_arrays: the parameters that were loaded or saved last, with their digest.
    """

    spec: DetectorSpec
    params: DetectorParams
    calibration: Calibration
    config: dict[str, Any]
    metrics: dict[str, Any]
    threshold: Threshold | None = None
    validation_scores: tuple[float, ...] = ()
    teacher: dict[str, Any] = field(default_factory=dict)
    region_rule: RegionRule | None = None
    framing: Framing = PLAIN
    validation_brightness: tuple[float, ...] = ()
    puad: PuadScores | None = None
    saved_arrays: SavedArrays | None = field(default=None, repr=False, compare=False)

    @overload
    def __call__(
        self, images: ImageSource, ignore_masks: ImageSource | None = None
    ) -> Detection: ...

    @overload
    def __call__(
        self,
        images: list[_Source] | tuple[_Source, ...],
        ignore_masks: Sequence[ImageSource | None] | None = None,
    ) -> list[Detection]: ...

    def __call__(
        self,
        images: ImageSource | Sequence[ImageSource],
        ignore_masks: ImageSource | Sequence[ImageSource | None] | None = None,
    ) -> Detection | list[Detection]:
        """Detects anomalies in one image or in a list of images.

        Args:
          images: each a path, encoded bytes, a PIL image or a NumPy array (`[h, w]`, or
            `[h, w, c]` with 1 to 4 channels) of any size; grayscale, RGB, RGBA or 16-bit.
          ignore_masks: the mask of each image, as large as it and black where it is ignored, in
            addition to that of the detector; None to ignore nothing more.

        Returns:
          A `Detection` for one image, a list of them for a list or tuple.

        Raises:
          InputError: an image or a mask cannot be decoded, or its size does not suit the mask or
            the region of interest; the message names it.
        """
        if not isinstance(images, list | tuple):
            masks = None if ignore_masks is None else [ignore_masks]
            return self([images], masks)[0]  # pyright: ignore
        decoded = [self.decode(image) for image in images]
        if not decoded:
            return []
        sizes, size = [image.shape[:2] for image in decoded], self.spec.input_size
        own_masks = None
        if ignore_masks is not None:
            given: Any = ignore_masks
            own_masks = own_masks_in_input(self.framing, given, sizes, input_size=size)
        if self.framing.fit == "tile":
            return [detect_tiled(self, image) for image in decoded]
        each = [None] * len(decoded) if own_masks is None else own_masks
        inputs = [
            self.network_input(image, own_mask=own_mask)
            for image, own_mask in zip(decoded, each, strict=True)
        ]
        return self.detect_resized(np.stack(inputs), sizes, own_masks=own_masks)

    def decode(
        self, image: ImageSource, name: str = "", most_pixels: int | None = None
    ) -> UInt8[np.ndarray, "h w 3"]:
        """Decodes an image with the white level of the training images; see `decode_image`.

        Raises:
          InputError: also if its size does not suit the mask or the region of interest.
        """
        pixels = decode_image(image, name, most_pixels, white_level=self.white_level)
        if not self.framing.is_plain:
            is_path = isinstance(image, str | os.PathLike)
            check_image_size(
                self.framing, pixels.shape[:2], name or (os.fspath(image) if is_path else "")
            )
        return pixels

    def network_input(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        name: str = "",
        *,
        own_mask: Bool[np.ndarray, "_h _w"] | None = None,
    ) -> UInt8[np.ndarray, "_h _w 3"]:
        """A decoded image at `spec.input_size`: its region of interest, ignored pixels filled."""
        size = self.spec.input_size
        return network_input(self.framing, image, size, name=name, own_mask=own_mask)

    @property
    def white_level(self) -> int:
        """The value of 16-bit pixels that becomes 255: `dataset.white_level` of the training.

        Detectors of versions without that field have 65535. So have those whose field is damaged.
        """
        dataset = self.config.get("dataset")
        level = dataset.get("white_level") if isinstance(dataset, dict) else None
        return level if isinstance(level, int) and level >= 1 else WHITE_LEVEL

    def detect_resized(
        self,
        images: UInt8[np.ndarray, "n h w 3"],
        sizes: Sequence[tuple[int, int] | None] | None = None,
        *,
        seen: Sequence[tuple[int, int]] | None = None,
        own_masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> list[Detection]:
        """Detects in images that are already resized to the input size.

        Args:
          images: RGB at `spec.input_size`, as `network_input` returns them.
          sizes: height and width of each whole image, and so of its maps in the result; None leaves
            maps at the size at which the detector computes them.
          seen: see `detect`; None takes it from `sizes`.
          own_masks: see `detect`.
        """
        size = self.batch_size(len(images))
        if seen is None and sizes is not None and None not in sizes:
            seen = [seen_size(self.framing, whole) for whole in sizes if whole is not None]
        detections = []
        for start in range(0, len(images), size):
            rows = [min(i, len(images) - 1) for i in range(start, start + size)]
            of_batch = None if seen is None else [seen[i] for i in rows]
            masks = None if own_masks is None else own_masks[rows]
            anomalies = jax.device_get(self.detect(images[rows], of_batch, masks))
            for i in range(min(size, len(images) - start)):
                size_of_image = None if sizes is None else sizes[start + i]
                detection = self._at_own_size(anomalies, i, size_of_image)
                rule = None if size_of_image is None else self.region_rule
                detections.append(detection._replace(region_rule=rule))
        return detections

    def _at_own_size(
        self, anomalies: Anomalies, index: int, size: tuple[int, int] | None
    ) -> Detection:
        """The detection in one image, its maps resized bilinearly to its size if that is given."""

        def resize(maps: np.ndarray | None) -> np.ndarray | None:
            if maps is None:
                return None
            own = np.asarray(maps[index], np.float32)
            if size is None:
                return own
            return map_of_image(self.framing, own, size, input_size=self.spec.input_size)

        return Detection(
            float(anomalies.scores[index]),
            resize(anomalies.combined),  # pyright: ignore[reportArgumentType]
            resize(anomalies.local),  # pyright: ignore[reportArgumentType]
            resize(anomalies.global_),  # pyright: ignore[reportArgumentType]
        )

    def batch_size(self, images: int) -> int:
        """The batch size for `detect` that suits so many images; the last batch is padded.

        Two compiled programs then serve every number of images. On a CPU it is always 1, because
        an image of padding costs as much as any other.
        """
        return 1 if images == 1 or runs_images_sequentially(self.networks) else BATCH_SIZE

    def detect(
        self,
        images: UInt8[np.ndarray, "n h w 3"],
        seen: Sequence[tuple[int, int]] | None = None,
        own_masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> Anomalies:
        """Scores and maps of images that already have the input size; see `inference.detect`.

        Args:
          images: as `network_input` returns them.
          seen: height and width of the region of interest of each image, of which padding depends;
            None for those of the training images.
          own_masks: see `ignored_in_images`.
        """
        weights = self.output_weights(seen, own_masks)
        ignored = self.ignored_in(seen, own_masks)
        return self._detect(self.calibration, images, ignored, weights=weights)

    def detect_tiles(
        self,
        tiles: UInt8[np.ndarray, "n h w 3"],
        weights: Float32[np.ndarray, "n oh ow"] | None = None,
    ) -> Anomalies:
        """As `detect`, with maps of a quarter of the size for either `upsample_first`.

        The caller has filled the ignored pixels, and leaves out the values that do not count. The
        scores are those of the maps, without PUAD.

        Args:
          tiles: of the networks' input size.
          weights: of the outputs of each tile in the mean features, see `mean_features`.
        """
        calibration = self.calibration._replace(upsample_first=False, puad=None)
        return self._detect(calibration, tiles, None, weights=weights)

    def _detect(
        self,
        calibration: Calibration,
        images: UInt8[np.ndarray, "n h w 3"],
        ignored: Ignored | None,
        *,
        weights: Float32[np.ndarray, "m oh ow"] | None,
    ) -> Anomalies:
        if is_for_accelerator(self.networks.teacher.convolution):
            return self._accelerated(calibration, images, ignored, weights)
        return jitted_detect(self.networks, self._prepared, calibration, images, ignored, weights)

    def ignored_in(
        self,
        seen: Sequence[tuple[int, int]] | None = None,
        own_masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> Ignored | None:
        """The ignored parts of the networks' input and of the maps; None for none.

        Arguments and errors are those of `ignored_in_images`.
        """
        return ignored_in_images(
            self.framing,
            seen,
            self.spec.input_size,
            padding=self.spec.padding,
            upsample_first=self.calibration.upsample_first,
            own_masks=own_masks,
        )

    def output_weights(
        self,
        seen: Sequence[tuple[int, int]] | None = None,
        own_masks: Bool[np.ndarray, "n h w"] | None = None,
    ) -> Float32[np.ndarray, "m oh ow"] | None:
        """The weights of the networks' outputs in the mean features of PUAD; see `mean_features`.

        None for equal ones, and without PUAD's statistics. Arguments are those of `ignored_in`.
        """
        if self.params.puad is None:
            return None
        size, padding = self.spec.input_size, self.spec.padding
        ignored = ignored_in_images(self.framing, seen, size, padding=padding, own_masks=own_masks)
        return None if ignored is None else output_weights(np.asarray(ignored.values))

    @cached_property
    def _accelerated(self) -> AcceleratedDetection:
        return AcceleratedDetection(self.networks, self.params)

    @cached_property
    def _prepared(self) -> DetectorParams:
        return prepared_params(self.networks, self.params, self.spec.input_size)

    @property
    def networks(self) -> Networks:
        """The modules, without parameters."""
        return networks_of(self.spec)

    def with_metrics(self, metrics: dict[str, Any]) -> "Detector":
        """The same detector with these metrics."""
        return replace(self, metrics=metrics)

    def with_threshold(self, false_alarm_rate: float) -> "Detector":
        """The same detector with the threshold for another rate; see `choose_threshold`.

        Args:
          false_alarm_rate: target fraction of the normal images that count as anomalous, in (0, 1).

        Raises:
          InputError: the rate is out of range, or the detector has no validation scores.
        """
        if not self.validation_scores:
            raise InputError(
                "detector: holds no scores of validation images to choose a threshold by, expected "
                "those that a training saves; train it again"
            )
        return replace(self, threshold=choose_threshold(self.validation_scores, false_alarm_rate))

    def with_puad(self, used: bool) -> "Detector":
        """The same detector with or without PUAD in its score; see docs/recipes.md.

        The threshold is chosen for the same rate. Metrics, which are of other scores, are removed.

        Raises:
          InputError: the detector has no statistics of PUAD.
        """
        if self.puad is None:
            raise InputError(
                "detector: has no statistics of PUAD; fit them with `efficientad set-threshold "
                "DETECTOR --puad=on`"
            )
        scale, combined, plain = self.puad
        config, chosen = self.config, self.config.get("calibration")
        if isinstance(chosen, dict):
            config = config | {"calibration": chosen | {"puad": used}}
        other = replace(
            self,
            calibration=self.calibration._replace(puad=scale if used else None),
            validation_scores=combined if used else plain,
            config=config,
            metrics={},
        )
        return other.with_threshold(self.threshold.false_alarm_rate) if self.threshold else other

    def with_region_rate(self, false_positive_rate: float) -> "Detector":
        """The same detector with the pixel threshold of regions for another rate.

        Args:
          false_positive_rate: target fraction of the normal images that have a region, in (0, 1).

        Raises:
          InputError: the rate is out of range, or the detector has no pixel threshold.
        """
        rule = required_rule(self.region_rule).with_rate(false_positive_rate)
        return replace(self, region_rule=rule)

    def save(self, folder: str | Path) -> None:
        """Writes the detector to a folder: `detector.json` and a safetensors file of its arrays.

        An existing detector is replaced in one step: the new arrays are written next to the old
        ones, then `detector.json`, which names them by their digest; then the old ones are removed.

        Raises:
          OSError: it cannot be written; the detector in the folder is unchanged.
        """
        saved = write_files(Path(folder).absolute(), self._json_fields, self.params)
        # Sets a field that is no part of the detector's value, as `cached_property` does.
        object.__setattr__(self, "saved_arrays", saved)

    def save_record(self, folder: str | Path) -> None:
        """Writes only `detector.json`, after a change of the metrics or the threshold.

        Raises:
          OSError: it cannot be written; the previous one is unchanged.
        """
        saved = self.saved_arrays
        if saved is not None and saved.params is self.params:
            digest = saved.sha256
        else:
            digest = hashlib.sha256(serialized_arrays(self.params)).hexdigest()
        write_record(Path(folder).absolute(), self._json_fields, digest)

    @property
    def _json_fields(self) -> dict[str, Any]:
        """The fields of `detector.json`."""
        return json_fields(StoredFields(*(getattr(self, name) for name in StoredFields._fields)))

    @classmethod
    def load(cls, folder: str | Path) -> "Detector":
        """Reads a detector that `save` wrote. The folder may come from anyone: see SECURITY.md.

        Raises:
          InputError: there is no detector, its version is unknown, or it is damaged.
        """
        stored, saved = read_files(Path(folder).absolute())
        return cls(params=saved.params, saved_arrays=saved, **stored._asdict())
