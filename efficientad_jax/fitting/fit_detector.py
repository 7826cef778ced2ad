"""Fits a detector: phases 2 and 3, from a configuration and images to a saved detector."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, PyTree

from efficientad_jax.config import CalibrationConfig, Config, as_dict, replace
from efficientad_jax.data.decoding import resize_map
from efficientad_jax.data.framing import Framing, input_sizes, map_of_region, masked_pixels
from efficientad_jax.data.image_rows import rows_of_array
from efficientad_jax.data.loading import Dataset, ImageSet
from efficientad_jax.data.pretraining_images import PretrainingImages, open_pretraining_images
from efficientad_jax.detection.calibration import IDENTITY, calibrate, calibration_of_maps
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import RegionRule, choose_region_rule
from efficientad_jax.detection.tiling import (
    calibrate_tiled,
    compute_tiled_maps,
    enlarge,
)
from efficientad_jax.fitting.inputs import (
    identities_of,
    ignored_parts,
    initial_params_of,
    spec_of,
    suited_to,
    tiles_of,
)
from efficientad_jax.fitting.proxy import (
    ProxyImages,
    draw_proxy_images,
    proxy_measure,
    split_validation,
    write_proxy,
)
from efficientad_jax.fitting.puad import check_dataset, fit_puad
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.runs.workdir import (
    Workdir,
    claim_workdir,
)
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.loop import run_training
from efficientad_jax.training.poses import images_in_poses
from efficientad_jax.training.rate import steps_for_minutes
from efficientad_jax.training.selection import Measure
from efficientad_jax.training.step import TrainState
from efficientad_jax.training.teacher_features import (
    features_fit,
    features_gb,
    normalize_over_images,
    teacher_features,
)


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
    proxy, calibrating = None, dataset.validation
    if config.train.proxy_every:
        measured, calibrating = split_validation(dataset.validation, config)
        proxy = draw_proxy_images(measured, *suited_to(config, dataset))
    inputs = _prepare(config, dataset, workdir, disk_cache_gb=disk_cache_gb)
    config = inputs.config
    measure = None if proxy is None else _measure(proxy, inputs)
    data = jax.tree.map(jnp.asarray, inputs.data)
    state = run_training(
        config,
        networks_of(inputs.spec),
        inputs.teacher_params,
        data=data,
        photographs=inputs.photographs,
        workdir=inputs.workdir,
        initial_params=inputs.initial_params,
        measure=measure,
        on_steps=on_steps,
        profile_steps=profile_steps,
    )
    if measure is not None:
        write_proxy(inputs.workdir, int(state.step), measure(state.params))
    return _finish(config, dataset._replace(validation=calibrating), inputs, state=state)


def _prepare(
    config: Config, dataset: Dataset, workdir: Path, *, disk_cache_gb: float = 0.0
) -> _Inputs:
    """Reads the inputs of a training and claims its work directory.

    Arguments and errors are those of `fit_detector`.
    """
    if config.calibration.puad:
        check_dataset(dataset)
    config, framing = suited_to(config, dataset)
    teacher = load_teacher(config.teacher, config.model.size)
    spec = spec_of(config, teacher.out_channels)
    is_tiled, images = config.model.fit == "tile", dataset.train.images
    # Those of validation images too, so that bad masks are refused before the training.
    ignored, _ = (
        ignored_parts(framing, spec, part.sizes, own_masks=part.own_masks) for part in dataset[:2]
    )
    photographs = None
    if config.losses.penalty:
        photographs = open_pretraining_images(config.pretraining_images, spec.input_size)
    initial_params = initial_params_of(config.start_from, spec, teacher.sha256)
    networks = networks_of(spec)
    compute = partial(teacher_features, networks.teacher, teacher)
    poses_file = Workdir(workdir.expanduser()).poses
    size_gb = features_gb(images, networks.teacher)
    images, poses = images_in_poses(
        config, framing, images, compute=compute, features_gb=size_gb, file=poses_file
    )
    if config.train.minutes:
        is_cached = not is_tiled and features_fit(images, networks.teacher, config)
        steps = steps_for_minutes(
            config, networks, teacher.params, has_cached_features=is_cached, workdir=workdir
        )
        config = replace(config, {"train.steps": steps})
    data = identities_of(config, dataset, framing)
    workdir = claim_workdir(workdir, config, teacher_sha256=teacher.sha256, data=data)
    if config.train.poses == "auto":
        write_atomically(Workdir(workdir).poses, f"{json.dumps(poses)}\n".encode())
    sizes = input_sizes(framing, dataset.train.sizes, spec.input_size)
    differing = np.array(sizes, np.int32) if len(set(sizes)) > 1 else None
    teacher_params, features = normalize_over_images(
        networks.teacher,
        teacher,
        images,
        config=config,
        ignored=ignored,
        tiles=tiles_of(images, sizes, spec, ignored=ignored) if is_tiled else None,
        disk_cache_gb=disk_cache_gb,
    )
    return _Inputs(
        config,
        spec,
        teacher_params,
        TrainData(images, features, None, ignored, differing),
        photographs,
        workdir,
        {"sha256": teacher.sha256, "record": teacher.record},
        initial_params,
        framing,
    )


def _finish(config: Config, dataset: Dataset, inputs: _Inputs, *, state: TrainState) -> Detector:
    """Calibrates after the last step, and saves the detector in the work directory.

    Raises:
      InputError: a map has no scale, or the detector cannot be written.
      DivergenceError: a map is not finite.
    """
    spec, params = inputs.spec, _detector_params(inputs, state.params)
    chosen = config.calibration
    is_tiled = config.model.fit == "tile"
    calibration, scores, maps = (_calibrate_tiles if is_tiled else _calibrate)(
        dataset, inputs, params
    )
    rate = chosen.false_alarm_rate
    detector = Detector(
        spec,
        params,
        calibration,
        as_dict(config),
        metrics={},
        validation_scores=tuple(scores.tolist()),
        teacher=inputs.teacher,
        framing=inputs.framing,
        region_rule=_region_rule(chosen, maps),
        validation_brightness=_brightness(dataset.validation, is_tiled=is_tiled),
    )
    if chosen.puad:
        detector = fit_puad(detector, dataset)
    if rate is not None:
        detector = detector.with_threshold(rate)
    detector.save(Workdir(inputs.workdir).detector)
    return detector


def _brightness(images: ImageSet, *, is_tiled: bool) -> tuple[float, ...]:
    """The mean value of the pixels that the networks see of each image, in [0, 255]."""
    pairs = zip(images.images, images.sizes, strict=True)
    parts = (image[: size[0], : size[1]] if is_tiled else image for image, size in pairs)
    return tuple(float(part.mean()) for part in parts)


def _measure(proxy: ProxyImages, inputs: _Inputs) -> Measure:
    """The function that the training measures its networks with."""
    measure = proxy_measure(inputs.config, proxy, inputs.spec, framing=inputs.framing)
    return lambda trained: measure(_detector_params(inputs, trained))


def _detector_params(inputs: _Inputs, trained: dict[str, PyTree]) -> DetectorParams:
    """The parameters of all networks, by those of 'student' and 'autoencoder'."""
    autoencoder = trained["autoencoder"] if inputs.spec.autoencoder else None
    return DetectorParams(inputs.teacher_params, trained["student"], autoencoder)


def _calibrate(
    dataset: Dataset, inputs: _Inputs, params: DetectorParams
) -> tuple[Calibration, Float[np.ndarray, " n"], Iterable[Float32[np.ndarray, "_ _"]]]:
    """The calibration by the validation images, their scores, and their maps at their own sizes."""
    chosen, spec, framing = inputs.config.calibration, inputs.spec, inputs.framing
    sizes = dataset.validation.sizes
    ignored = ignored_parts(
        framing,
        spec,
        sizes,
        upsample_first=chosen.upsample_first,
        own_masks=dataset.validation.own_masks,
    )
    calibration, scores, maps = calibrate(
        networks_of(spec),
        params,
        dataset.validation.images,
        q_a=chosen.q_a,
        q_b=chosen.q_b,
        upsample_first=chosen.upsample_first,
        normalize=chosen.normalize,
        score_values=chosen.score_values,
        ignored=ignored,
    )
    enlarged = (
        map_of_region(framing, cells, size, input_size=spec.input_size)
        for cells, size in zip(maps, sizes, strict=True)
    )
    return calibration, scores, enlarged


def _calibrate_tiles(
    dataset: Dataset, inputs: _Inputs, params: DetectorParams
) -> tuple[Calibration, Float[np.ndarray, " n"], Iterable[Float32[np.ndarray, "_ _"]]]:
    """As `_calibrate`, by whole images that are cut into tiles."""
    chosen, spec, framing = inputs.config.calibration, inputs.spec, inputs.framing
    sizes = input_sizes(framing, dataset.validation.sizes, spec.input_size)
    images = [i[:h, :w] for i, (h, w) in zip(dataset.validation.images, sizes, strict=True)]
    raw = Calibration(
        IDENTITY,
        IDENTITY if spec.autoencoder else None,
        chosen.upsample_first,
        chosen.score_values,
    )
    # The region of interest is cut out already, and small images are enlarged.
    seen = Framing(None, masked_pixels(framing, sizes[0]), "tile")
    detector = Detector(spec, params, raw, {}, {}, framing=seen)
    calibration, scores = calibrate_tiled(
        detector,
        images,
        lambda maps: calibration_of_maps(
            maps,
            chosen.q_a,
            chosen.q_b,
            upsample_first=chosen.upsample_first,
            normalize=chosen.normalize,
        )._replace(score_values=chosen.score_values),
    )
    calibrated = dataclasses.replace(detector, calibration=calibration)

    def enlarged() -> Iterator[Float32[np.ndarray, "_ _"]]:
        for image, size in zip(images, dataset.validation.sizes, strict=True):
            tiled = compute_tiled_maps(calibrated, rows_of_array(image))
            yield resize_map(enlarge(calibrated, tiled, tiled.combined), size)

    return calibration, scores, enlarged()


def _region_rule(
    chosen: CalibrationConfig, maps: Iterable[Float32[np.ndarray, "_ _"]]
) -> RegionRule | None:
    """The rule for regions, by the maps of the validation images at their own sizes."""
    rate = chosen.region_false_positive_rate
    if rate is None:
        return None
    return choose_region_rule(
        maps,
        rate,
        chosen.smallest_region,
        # At the same rate the threshold of scores has the same warning.
        reports_few_images=rate != chosen.false_alarm_rate,
    )
