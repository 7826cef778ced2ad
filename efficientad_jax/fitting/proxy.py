"""The proxy AU-ROC: validation images against the same ones with synthetic defects.

It stands in for the AU-ROC of test images where no defects are known. Part of the validation images
are measured: they set the maps' quantiles, as all of them do after training, and are the good
images. If a training chooses its best state by the proxy, their scores are no longer those of any
good image, as they took part in the choice. The others, which no measurement sees, then calibrate
the detector.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from sklearn.metrics import roc_auc_score

from efficientad_jax.config import Config, read_config
from efficientad_jax.data.framing import (
    Framing,
    ignored_pixels,
    input_sizes,
    masked_pixels,
    place_in_input,
)
from efficientad_jax.data.loading import ImageSet, subset
from efficientad_jax.detection.calibration import (
    IDENTITY,
    calibration_of_maps,
    collect_raw_maps,
    scores_of_maps,
)
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.inference import Calibration, DetectorParams, RawMaps
from efficientad_jax.detection.spec import DetectorSpec, networks_of
from efficientad_jax.detection.tiling import raw_maps_in_tiles
from efficientad_jax.errors import InputError
from efficientad_jax.fitting.inputs import ignored_parts
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.synthetic_defects.defect import SMALLEST_CHANGE
from efficientad_jax.synthetic_defects.kinds import KINDS, draw_defect
from efficientad_jax.training.selection import ProxyAuroc

# The most images that are measured, and the most of them that get a defect of a kind, so that a
# measurement takes as long as some 60 steps of the recipes for a CPU.
MOST_IMAGES, MOST_DEFECTS = 64, 16

# Tells the random numbers of the proxy from those of a training with the same seed.
_STREAM = 2


class ProxyImages(NamedTuple):
    """The images of a measurement, the good ones first.

    Attributes:
      images: RGB, as the networks see them; those that are cut into tiles at their own size.
      sizes: height and width of the region of interest of each.
      kinds: the kind of defect of each, '' for the good ones.
      own_masks: see `ImageSet.own_masks`.
    """

    images: list[UInt8[np.ndarray, "_h _w 3"]]
    sizes: list[tuple[int, int]]
    kinds: list[str]
    own_masks: Bool[np.ndarray, "n h w"] | None = None

    @property
    def good(self) -> int:
        """The number of good images."""
        return self.kinds.count("")


# Measures the networks with these parameters.
MeasureProxy = Callable[[DetectorParams], ProxyAuroc]


def split_validation(validation: ImageSet, config: Config) -> tuple[ImageSet, ImageSet]:
    """The validation images that are measured, and those that calibrate the detector.

    Half of them, at random, are measured, at least one and at most `MOST_IMAGES`. The others
    calibrate the detector, if the training chooses its best state; else all do.

    Raises:
      InputError: there is a single image, for a training that chooses its best state.
    """
    count = len(validation.names)
    if config.train.patience and count < 2:
        raise InputError(
            f"config.train.patience = {config.train.patience}: found {count} validation image, "
            "expected at least 2, one to choose the best state by and one to calibrate it"
        )
    order = np.random.default_rng((config.seed, _STREAM)).permutation(count)
    measured, others = np.split(order, [min(max(1, count // 2), MOST_IMAGES)])
    calibrating = subset(validation, np.sort(others)) if config.train.patience else validation
    return subset(validation, np.sort(measured)), calibrating


def draw_proxy_images(measured: ImageSet, config: Config, framing: Framing) -> ProxyImages:
    """Draws the synthetic defects; the configuration's seed determines them.

    Args:
      measured: good images.
      config: of the training, with the input's size.
      framing: which part of an image counts.

    Raises:
      InputError: no defect could be drawn on any image.
    """
    tile = config.model.input_shape
    sizes = input_sizes(framing, measured.sizes, tile)
    good = [image[:h, :w] for image, (h, w) in zip(measured.images, sizes, strict=True)]
    images, kinds, drawn_on = list(good), [""] * len(good), list(range(len(good)))
    for number, kind in enumerate(KINDS):
        order = np.random.default_rng((config.seed, _STREAM, number)).permutation(len(good))
        for i in order[:MOST_DEFECTS]:
            rng = np.random.default_rng((config.seed, _STREAM, number, i))
            size = measured.sizes[i]
            ignored = _ignored_of(framing, measured, int(i), shape=good[i].shape[:2])
            window = _window(framing, good[i].shape[:2], size, tile=tile, rng=rng)
            part = None if ignored is None else ignored[window]
            defect = draw_defect(good[i][window], kind, rng, ignored=part)
            if defect is not None:
                image = good[i].copy()
                image[window] = defect.image
                images.append(image)
                drawn_on.append(i)
                kinds.append(kind)
    if len(images) == len(good):
        raise InputError(
            "validation images: found no place for a synthetic defect that changes them by "
            f"{SMALLEST_CHANGE:g} gray levels, expected pixels that are not ignored; set "
            "config.train.proxy_every = 0"
        )
    own_masks = None if measured.own_masks is None else measured.own_masks[drawn_on]
    return ProxyImages(images, [measured.sizes[i] for i in drawn_on], kinds, own_masks)


def _ignored_of(
    framing: Framing, images: ImageSet, index: int, *, shape: tuple[int, int]
) -> Bool[np.ndarray, "_h _w"] | None:
    """The pixels that the networks do not see of an image of this shape; None for none."""
    if framing.fit == "tile":
        return masked_pixels(framing, shape)
    common = ignored_pixels(framing, shape, images.sizes[index])
    if images.own_masks is None:
        return common
    own_mask = images.own_masks[index]
    return own_mask if common is None else own_mask | common


def _window(
    framing: Framing,
    shape: tuple[int, int],
    seen: tuple[int, int],
    *,
    tile: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[slice, slice]:
    """Where in an image a defect is drawn: its part that is no padding, or as large as a tile."""
    if framing.fit != "tile":
        return place_in_input(framing, seen, shape).window
    top, left = (int(rng.integers(0, shape[i] - tile[i], endpoint=True)) for i in (0, 1))
    return np.s_[top : top + tile[0], left : left + tile[1]]


def proxy_measure(
    config: Config, proxy: ProxyImages, spec: DetectorSpec, *, framing: Framing
) -> MeasureProxy:
    """A function that calibrates networks by the good images, scores all and compares the scores.

    It raises `InputError` if a map has no scale, and `DivergenceError` if one is not finite.

    Args:
      config: of the training.
      proxy: the images.
      spec: of the detector.
      framing: of the detector.
    """
    measure = _scores_in_tiles if framing.fit == "tile" else _scores

    def measure_proxy(params: DetectorParams) -> ProxyAuroc:
        return auroc_by_kind(measure(config, proxy, spec, framing=framing, params=params), proxy)

    return measure_proxy


def auroc_by_kind(scores: Float[np.ndarray, " n"], proxy: ProxyImages) -> ProxyAuroc:
    """The AU-ROC of all defects, and of each kind of them, against the good images."""
    good = scores[: proxy.good]

    def auroc(defective: Float[np.ndarray, " d"]) -> float:
        labels = np.repeat([0, 1], [len(good), len(defective)])
        return float(roc_auc_score(labels, np.concatenate([good, defective])))

    by_kind = {
        kind: auroc(scores[[i for i, found in enumerate(proxy.kinds) if found == kind]])
        for kind in KINDS
        if kind in proxy.kinds
    }
    return ProxyAuroc(auroc(scores[proxy.good :]), by_kind)


def _calibration(config: Config, maps: RawMaps, **ignored: Any) -> Calibration:
    """The calibration by good images, as after training."""
    chosen = config.calibration
    return calibration_of_maps(
        maps,
        chosen.q_a,
        chosen.q_b,
        upsample_first=chosen.upsample_first,
        normalize=chosen.normalize,
        **ignored,
    )._replace(score_values=chosen.score_values)


def _scores(
    config: Config,
    proxy: ProxyImages,
    spec: DetectorSpec,
    *,
    framing: Framing,
    params: DetectorParams,
) -> Float[np.ndarray, " n"]:
    upsample_first = config.calibration.upsample_first
    ignored = ignored_parts(
        framing,
        spec,
        proxy.sizes,
        upsample_first=upsample_first,
        own_masks=proxy.own_masks,
    )
    maps = collect_raw_maps(
        networks_of(spec),
        params,
        np.stack(proxy.images),
        upsample_first=upsample_first,
        ignored=ignored,
    )
    good = slice(proxy.good)
    calibration = _calibration(
        config,
        jax.tree.map(lambda values: values[good], maps),
        ignored=None if ignored is None else ignored.of(good),
    )
    return scores_of_maps(maps, calibration, ignored)


def _scores_in_tiles(
    config: Config,
    proxy: ProxyImages,
    spec: DetectorSpec,
    *,
    framing: Framing,
    params: DetectorParams,
) -> Float[np.ndarray, " n"]:
    raw = Calibration(
        IDENTITY, IDENTITY if spec.autoencoder else None, config.calibration.upsample_first
    )
    # The region of interest is cut out already, and small images are enlarged.
    seen = Framing(None, masked_pixels(framing, proxy.images[0].shape[:2]), "tile")
    detector = Detector(spec, params, raw, {}, {}, framing=seen)
    maps = raw_maps_in_tiles(detector, proxy.images)
    good = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=2), *maps[: proxy.good])
    calibration = _calibration(config, good)
    return np.array([scores_of_maps(of_image, calibration)[0] for of_image in maps])


def write_proxy(workdir: Path, step: int, proxy: ProxyAuroc) -> None:
    """Writes `proxy.json` of a work directory: a detector's number of steps and proxy AU-ROC.

    Raises:
      OSError: it cannot be written.
    """
    content = {"step": step, "auroc": proxy.overall, "auroc_by_kind": dict(proxy.by_kind)}
    write_atomically(Workdir(workdir).proxy, (json.dumps(content, indent=2) + "\n").encode())


def measure_detector(detector: Detector, validation: ImageSet) -> ProxyAuroc:
    """The proxy AU-ROC of a trained detector, with the images that its training measures.

    Args:
      detector: its configuration says which images these are.
      validation: the validation images of its training.

    Raises:
      InputError: no defect could be drawn, or a map has no scale.
      DivergenceError: a map is not finite.
    """
    config, framing = read_config(detector.config), detector.framing
    measured, _ = split_validation(validation, config)
    proxy = draw_proxy_images(measured, config, framing)
    return proxy_measure(config, proxy, detector.spec, framing=framing)(detector.params)
