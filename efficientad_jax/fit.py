"""Fits a detector: phases 2 and 3, from a configuration and images to a saved detector."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float16, PyTree, UInt8

from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.data.files import list_images
from efficientad_jax.data.framing import Framing, ignored_pixels, read_framing
from efficientad_jax.data.loading import Dataset
from efficientad_jax.data.pretraining_images import PretrainingImages, open_pretraining_images
from efficientad_jax.detection.calibration import calibrate
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import DetectorParams
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import choose_threshold
from efficientad_jax.errors import InputError
from efficientad_jax.networks.channel_statistics import ChannelStatistics, channel_statistics
from efficientad_jax.networks.ignored import Ignored, ignored_places
from efficientad_jax.networks.pdn import PatchDescriptionNetwork, output_size
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.networks.teacher import Teacher, load_teacher, normalize_teacher
from efficientad_jax.runs.workdir import DataIdentity, Workdir, chosen_steps, claim_workdir
from efficientad_jax.storage.cache import processor_features
from efficientad_jax.storage.feature_cache import cached_features
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.loop import run_training
from efficientad_jax.training.rate import seconds_per_step, steps_within
from efficientad_jax.training.step import TrainState

_log = logging.getLogger(__name__)

_IMAGES_PER_DISPATCH = 16


class _Inputs(NamedTuple):
    """The inputs of a training.

    Attributes:
      config: of the training, with its number of steps.
      spec: of the detector that is trained.
      teacher_params: of the teacher, normalized over the training images.
      data: the images and features that the steps use, in the host's memory.
      photographs: for the penalty, None without it.
      workdir: absolute; claimed for the configuration and the teacher.
      teacher: identifies the teacher, see `Detector.teacher`.
      initial_params: of student and autoencoder, None for random ones.
      framing: which part of an image counts.
    """

    config: Config
    spec: DetectorSpec
    teacher_params: PyTree
    data: TrainData
    photographs: PretrainingImages | None
    workdir: Path
    teacher: dict[str, Any]
    initial_params: dict[str, PyTree] | None
    framing: Framing


def fit_detector(
    config: Config,
    dataset: Dataset,
    workdir: Path,
    *,
    on_steps: Callable[[int, float], None] | None = None,
    disk_cache_gb: float = 0.0,
    profile_steps: range | None = None,
) -> Detector:
    """Trains student and autoencoder, calibrates on the validation images, saves the detector.

    Args:
      config: of the training.
      dataset: its training and validation images are used, its test images are not.
      workdir: for checkpoints and the detector; see `Workdir`. It is created, or claimed for
        `config`, after all inputs have been read, so that a mistake in the configuration leaves
        nothing behind that would stop the corrected command.
      on_steps: see `run_training`.
      disk_cache_gb: size in GB of the teacher features that this and other trainings keep on disk,
        so that trainings on the same images compute them once; 0 for none. Results are the same.
      profile_steps: see `run_training`.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the training before its last step; its state is
        saved.
      InputError: the configuration or one of its inputs cannot be used, or the work directory
        belongs to another configuration or cannot be written.
      DivergenceError: a loss or a parameter is no longer finite.
    """
    inputs = _prepare(config, dataset, workdir, disk_cache_gb=disk_cache_gb)
    config = inputs.config
    data = jax.tree.map(jnp.asarray, inputs.data)
    state = run_training(
        config,
        networks_of(inputs.spec),
        inputs.teacher_params,
        data=data,
        photographs=inputs.photographs,
        workdir=inputs.workdir,
        initial_params=inputs.initial_params,
        on_steps=on_steps,
        profile_steps=profile_steps,
    )
    return _finish(config, dataset, inputs, state=state)


def _prepare(
    config: Config, dataset: Dataset, workdir: Path, *, disk_cache_gb: float = 0.0
) -> _Inputs:
    """Reads the inputs of a training and claims its work directory.

    Arguments and errors are those of `fit_detector`.
    """
    model = config.model
    teacher = load_teacher(config.teacher, model.size)
    spec = DetectorSpec(
        size=model.size,
        out_channels=teacher.out_channels,
        input_size=model.input_size,
        padding=model.padding,
        dtype=model.dtype,
        autoencoder=config.losses.autoencoder,
    )
    images, framing = dataset.train.images, read_framing(config.dataset)
    ignored = _ignored(framing, spec)
    photographs = None
    if config.losses.penalty:
        if not config.pretraining_images:
            raise InputError(
                "config.losses.penalty = True: needs photographs, give their folder as "
                "config.pretraining_images, or switch it off"
            )
        folder = Path(config.pretraining_images)
        photographs = open_pretraining_images(folder, spec.input_size)
    identities = {"images": _identity_of_images(dataset)}
    if config.losses.penalty:
        identities["pretraining images"] = _identity_of_files(config.pretraining_images)
    if framing.ignored is not None:
        packed = np.packbits(framing.ignored).tobytes()
        identities["ignore mask"] = DataIdentity(hashlib.sha256(packed).hexdigest())
    initial_params = _initial_params(config.start_from, spec, teacher.sha256)
    if config.train.minutes:
        steps = _steps_for_minutes(config, spec, teacher, images=images, workdir=workdir)
        config = replace(config, {"train.steps": steps})
    workdir = claim_workdir(workdir, config, teacher_sha256=teacher.sha256, data=identities)
    teacher_params, features = _normalize_over_images(
        networks_of(spec).teacher,
        teacher,
        images,
        ignored=ignored,
        config=config,
        disk_cache_gb=disk_cache_gb,
    )
    return _Inputs(
        config,
        spec,
        teacher_params,
        TrainData(images, features, None, ignored),
        photographs,
        workdir,
        {"sha256": teacher.sha256, "record": teacher.record},
        initial_params,
        framing,
    )


def _ignored(
    framing: Framing, spec: DetectorSpec, *, upsample_first: bool = False
) -> Ignored | None:
    """What is ignored of each image, None for nothing; see `ignored_places`."""
    pixels = ignored_pixels(framing, spec.input_size)
    if pixels is None:
        return None
    return ignored_places(pixels, padding=spec.padding, upsample_first=upsample_first)


def _finish(config: Config, dataset: Dataset, inputs: _Inputs, *, state: TrainState) -> Detector:
    """Calibrates after the last step, and saves the detector in the work directory.

    Raises:
      InputError: a map has no scale, or the detector cannot be written.
      DivergenceError: a map is not finite.
    """
    spec = inputs.spec
    params = DetectorParams(
        inputs.teacher_params,
        state.params["student"],
        state.params["autoencoder"] if spec.autoencoder else None,
    )
    chosen = config.calibration
    calibration, scores = calibrate(
        networks_of(spec),
        params,
        dataset.validation.images,
        q_a=chosen.q_a,
        q_b=chosen.q_b,
        upsample_first=chosen.upsample_first,
        normalize=chosen.normalize,
        score_values=chosen.score_values,
        ignored=_ignored(inputs.framing, spec, upsample_first=chosen.upsample_first),
    )
    rate = chosen.false_alarm_rate
    detector = Detector(
        spec,
        params,
        calibration,
        as_dict(config),
        metrics={},
        threshold=None if rate is None else choose_threshold(scores, rate),
        validation_scores=tuple(scores.tolist()),
        teacher=inputs.teacher,
        framing=inputs.framing,
    )
    detector.save(Workdir(inputs.workdir).detector)
    return detector


def _steps_for_minutes(
    config: Config,
    spec: DetectorSpec,
    teacher: Teacher,
    *,
    images: UInt8[np.ndarray, "n h w 3"],
    workdir: Path,
) -> int:
    """The number of steps that a run chose for its minutes, or else chooses by measuring them."""
    file = Workdir(workdir.expanduser()).config
    stored = json.loads(file.read_text()) if file.is_file() else None
    if steps := chosen_steps(stored, config):
        return steps
    networks = networks_of(spec)
    seconds = seconds_per_step(
        config,
        networks,
        teacher.params,
        has_cached_features=_features_fit(images, networks.teacher, config),
    )
    steps = steps_within(config.train.minutes, seconds, config.train.steps_per_dispatch)
    _log.info(
        "training: %.1f ms per step, %d steps in %g minutes",
        1000 * seconds,
        steps,
        config.train.minutes,
    )
    return steps


def _features_fit(images: np.ndarray, network: PatchDescriptionNetwork, config: Config) -> bool:
    """Whether the teacher's features of the images fit into the cache."""
    size_gb = math.prod(_features_shape(images, network)) * np.dtype(np.float16).itemsize / 1e9
    return size_gb <= config.train.feature_cache_gb


def _features_shape(
    images: np.ndarray, network: PatchDescriptionNetwork
) -> tuple[int, int, int, int]:
    size = output_size(images.shape[1], images.shape[2], network.padding)
    return len(images), *size, network.out_channels


def _identity_of_images(dataset: Dataset) -> DataIdentity:
    """Identifies the images that a detector is made from: those of training and validation."""
    names = dataset.train.names, dataset.validation.names
    colors = [
        image.mean((0, 1)).round(1).tolist()
        for images in (dataset.train.images, dataset.validation.images)
        for image in images
    ]
    return DataIdentity(hashlib.sha256(repr(names).encode()).hexdigest(), colors)


def _identity_of_files(folder: str) -> DataIdentity:
    """Identifies the photographs in a folder, which may be too many to be read, by their names."""
    names = [file.relative_to(folder).as_posix() for file in list_images(Path(folder))]
    return DataIdentity(hashlib.sha256(repr(names).encode()).hexdigest())


def _initial_params(
    folder: str, spec: DetectorSpec, teacher_sha256: str
) -> dict[str, PyTree] | None:
    """The parameters of the detector that a training starts from; None without one.

    Raises:
      InputError: the detector cannot be loaded, or has another teacher or other networks.
    """
    if not folder:
        return None
    detector = Detector.load(Path(folder).expanduser())
    for name in ("size", "input_size", "padding"):
        found, expected = getattr(detector.spec, name), getattr(spec, name)
        if found != expected:
            raise InputError(
                f"config.start_from = {folder!r}: its {name} is {found}, expected {expected}"
            )
    found = (detector.teacher or {}).get("sha256", "")
    if found != teacher_sha256:
        raise InputError(
            f"config.start_from = {folder!r}: its teacher's SHA-256 is {found[:16] or 'unknown'}, "
            f"expected {teacher_sha256[:16]}; give its teacher as --config.teacher=FILE"
        )
    params = {"student": detector.params.student}
    if spec.autoencoder and detector.params.autoencoder is not None:
        params["autoencoder"] = detector.params.autoencoder
    return params


def _normalize_over_images(
    network: PatchDescriptionNetwork,
    teacher: Teacher,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    ignored: Ignored | None,
    config: Config,
    disk_cache_gb: float,
) -> tuple[PyTree, Float16[np.ndarray, "n oh ow c"] | None]:
    """Normalizes the teacher over the training images (Algorithm 1, lines 3-11).

    Outputs that are ignored do not count.

    Returns:
      Parameters of the normalized teacher, and its features of each image if they fit into
      `config.train.feature_cache_gb` gigabytes, so that training does not compute them again.
    """
    fits = _features_fit(images, network, config)
    features = np.empty(_features_shape(images, network), np.float16) if fits else None

    def batches() -> Iterator[Float[Any, "b oh ow c"]]:
        start = 0
        for batch in _teacher_features(
            network, teacher, images, config=config, disk_cache_gb=disk_cache_gb
        ):
            if features is not None:
                features[start : start + len(batch)] = batch
            start += len(batch)
            if ignored is None:
                yield batch
            else:  # one row of the outputs that count
                values = np.asarray(ignored.of(slice(start - len(batch), start)).values)
                yield batch[np.broadcast_to(~values, batch.shape[:3])][None, None]

    statistics: ChannelStatistics = channel_statistics(batches())
    if statistics.constant_channels:
        _log.warning(
            "teacher: %d of %d channels are constant on all training images (%s) and are not "
            "scaled",
            len(statistics.constant_channels),
            network.out_channels,
            ", ".join(map(str, statistics.constant_channels[:20])),
        )
    if features is not None:
        for feature in features:
            feature[:] = (feature - statistics.mean) / statistics.std
    return normalize_teacher(teacher.params, network.size, statistics), features


def _teacher_features(
    network: PatchDescriptionNetwork,
    teacher: Teacher,
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    config: Config,
    disk_cache_gb: float,
) -> Iterator[Float[Any, "b oh ow c"]]:
    """The features of all images, in batches, by the teacher before it is normalized."""

    @jax.jit
    def compute(batch: jax.Array) -> jax.Array:
        def features_of(image: jax.Array) -> jax.Array:
            return network.apply(teacher.params, normalize_images(to_unit_range(image[None])))[0]

        return jax.lax.map(features_of, batch)

    if not disk_cache_gb:
        for i in range(0, len(images), _IMAGES_PER_DISPATCH):
            yield compute(images[i : i + _IMAGES_PER_DISPATCH])
        return
    # In other versions, on other devices and with other numbers of threads, the last bits differ.
    versions = version("efficientad-jax"), jax.__version__
    cores = os.environ.get("NPROC"), len(os.sched_getaffinity(0))
    device = jax.devices()[0].device_kind, processor_features()
    yield from cached_features(
        images,
        lambda batch: np.asarray(compute(batch), np.float32),
        identity=repr((teacher.sha256, network, versions, device, cores)),
        dataset=repr((config.dataset, config.category)),
        batch_size=_IMAGES_PER_DISPATCH,
        limit_gb=disk_cache_gb,
    )
