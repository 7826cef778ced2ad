"""Fits a detector: phases 2 and 3, from a configuration and images to a saved detector."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, PyTree, UInt8

from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.data.files import list_images
from efficientad_jax.data.framing import Framing, masked_pixels, place_in_input
from efficientad_jax.data.framing_file import read_framing
from efficientad_jax.data.loading import Dataset
from efficientad_jax.data.pretraining_images import PretrainingImages, open_pretraining_images
from efficientad_jax.detection.calibration import IDENTITY, calibrate, calibration_of_maps
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.threshold import choose_threshold
from efficientad_jax.detection.tiling import calibrate_tiled, cut_all_tiles
from efficientad_jax.errors import InputError
from efficientad_jax.networks.ignored import Ignored, ignored_in_images, ignored_in_tiles
from efficientad_jax.networks.pdn import STRIDE, output_size
from efficientad_jax.networks.teacher import Teacher, load_teacher
from efficientad_jax.runs.workdir import DataIdentity, Workdir, chosen_steps, claim_workdir
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.loop import run_training
from efficientad_jax.training.rate import seconds_per_step, steps_within
from efficientad_jax.training.step import TrainState
from efficientad_jax.training.teacher_features import (
    TileOfImage,
    features_fit,
    normalize_over_images,
)

_log = logging.getLogger(__name__)


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
    config, framing = _suited_to(config, dataset)
    model = config.model
    teacher = load_teacher(config.teacher, model.size)
    spec = DetectorSpec(
        size=model.size,
        out_channels=teacher.out_channels,
        input_size=model.input_shape,
        padding=model.padding,
        dtype=model.dtype,
        autoencoder=config.losses.autoencoder,
    )
    images = dataset.train.images
    ignored = _ignored(framing, spec, dataset.train.sizes)
    photographs = None
    if config.losses.penalty:
        if not config.pretraining_images:
            raise InputError(
                "config.losses.penalty = True: needs photographs, give their folder as "
                "config.pretraining_images, or switch it off"
            )
        folder = Path(config.pretraining_images)
        photographs = open_pretraining_images(folder, spec.input_size)
    identities = _identities(config, dataset, framing)
    initial_params = _initial_params(config.start_from, spec, teacher.sha256)
    if config.train.minutes:
        steps = _steps_for_minutes(config, spec, teacher, images=images, workdir=workdir)
        config = replace(config, {"train.steps": steps})
    workdir = claim_workdir(workdir, config, teacher_sha256=teacher.sha256, data=identities)
    sizes = _input_sizes(framing, spec, dataset.train.sizes)
    differing = np.array(sizes, np.int32) if len(set(sizes)) > 1 else None
    teacher_params, features = normalize_over_images(
        networks_of(spec).teacher,
        teacher,
        images,
        config=config,
        ignored=ignored,
        tiles=_tiles(images, sizes, spec, ignored=ignored) if model.fit == "tile" else None,
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


def _suited_to(config: Config, dataset: Dataset) -> tuple[Config, Framing]:
    """The configuration with the input's size, and the framing with that of the images."""
    framing = read_framing(config)
    if config.model.input_size == "auto":
        height, width = dataset.train.images.shape[1:3]
        config = replace(config, {"model.input_size": f"{height}x{width}"})
    sizes = {*dataset.train.sizes, *dataset.validation.sizes}
    if framing.fit == "pad" and len(sizes) == 1:
        framing = dataclasses.replace(framing, usual_size=sizes.pop())
    return config, framing


def _ignored(
    framing: Framing,
    spec: DetectorSpec,
    sizes: list[tuple[int, int]],
    *,
    upsample_first: bool = False,
) -> Ignored | None:
    """The ignored parts of images of these sizes, None for none; see `ignored_places`."""
    if framing.fit == "tile":
        return ignored_in_tiles(framing, _input_sizes(framing, spec, sizes[:1])[0])
    return ignored_in_images(
        framing,
        sizes,
        spec.input_size,
        padding=spec.padding,
        upsample_first=upsample_first,
    )


def _input_sizes(
    framing: Framing, spec: DetectorSpec, sizes: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Height and width of images as `ImageSet.images` has them; `sizes` are their own."""
    if framing.fit != "tile":
        return [spec.input_size] * len(sizes)
    places = (place_in_input(framing, size, spec.input_size) for size in sizes)
    return [(place.height, place.width) for place in places]


def _tiles(
    images: UInt8[np.ndarray, "n h w 3"],
    sizes: list[tuple[int, int]],
    spec: DetectorSpec,
    *,
    ignored: Ignored | None,
) -> Iterator[TileOfImage]:
    """The tiles that cover the images, with the outputs that are ignored of each."""
    height, width = output_size(*spec.input_size)
    for tile in cut_all_tiles(images, sizes, spec.input_size):
        top, left = tile.top // STRIDE, tile.left // STRIDE
        window = np.s_[0, top : top + height, left : left + width]
        yield tile.pixels, None if ignored is None else np.asarray(ignored.values[window])


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
    rule = {"upsample_first": chosen.upsample_first, "normalize": chosen.normalize}
    quantiles = {"q_a": chosen.q_a, "q_b": chosen.q_b}
    if config.model.fit == "tile":
        calibration, scores = _calibrate_tiles(dataset, inputs, params, rule | quantiles)
    else:
        calibration, scores = calibrate(
            networks_of(spec),
            params,
            dataset.validation.images,
            **quantiles,
            **rule,
            score_values=chosen.score_values,
            ignored=_ignored(
                inputs.framing,
                spec,
                dataset.validation.sizes,
                upsample_first=chosen.upsample_first,
            ),
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


def _calibrate_tiles(
    dataset: Dataset, inputs: _Inputs, params: DetectorParams, rule: dict[str, Any]
) -> tuple[Calibration, Float32[np.ndarray, " n"]]:
    """The calibration by whole validation images that are cut into tiles, and their scores."""
    chosen, spec, framing = inputs.config.calibration, inputs.spec, inputs.framing
    raw = Calibration(
        IDENTITY,
        IDENTITY if spec.autoencoder else None,
        chosen.upsample_first,
        chosen.score_values,
    )
    sizes = _input_sizes(framing, spec, dataset.validation.sizes)
    # The region of interest is cut out already, and small images are enlarged.
    seen = Framing(None, masked_pixels(framing, sizes[0]), "tile")
    return calibrate_tiled(
        Detector(spec, params, raw, {}, {}, framing=seen),
        [i[:h, :w] for i, (h, w) in zip(dataset.validation.images, sizes, strict=True)],
        lambda maps: calibration_of_maps(maps, **rule)._replace(score_values=chosen.score_values),
    )


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
    is_cached = config.model.fit != "tile" and features_fit(images, networks.teacher, config)
    seconds = seconds_per_step(config, networks, teacher.params, has_cached_features=is_cached)
    steps = steps_within(config.train.minutes, seconds, config.train.steps_per_dispatch)
    _log.info(
        "training: %.1f ms per step, %d steps in %g minutes",
        1000 * seconds,
        steps,
        config.train.minutes,
    )
    return steps


def _identities(config: Config, dataset: Dataset, framing: Framing) -> dict[str, DataIdentity]:
    """Identifies all that a training reads, by its name in messages."""
    identities = {"images": _identity_of_images(dataset)}
    if config.losses.penalty:
        identities["pretraining images"] = _identity_of_files(config.pretraining_images)
    if framing.ignored is not None:
        packed = np.packbits(framing.ignored).tobytes()
        identities["ignore mask"] = DataIdentity(hashlib.sha256(packed).hexdigest())
    return identities


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
