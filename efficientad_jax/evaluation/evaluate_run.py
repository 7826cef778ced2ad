"""Evaluates a detector on a test split: metrics, baselines and report, as files in a folder."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from sklearn.metrics import roc_auc_score

from efficientad_jax.config import Config, read_config, replace
from efficientad_jax.data.framing import Framing
from efficientad_jax.data.framing_file import has_own_masks
from efficientad_jax.data.loading import Dataset, ImageSet, load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import (
    RegionRule,
    Threshold,
    VerdictCounts,
    count_verdicts,
    percent,
    region_summary,
    summary,
)
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.baselines import mean_brightness_scores, pca_reconstruction_scores
from efficientad_jax.evaluation.metrics import NO_SATURATION_AREAS, Metrics, evaluate
from efficientad_jax.evaluation.nearest_neighbors import nearest_neighbor_scores
from efficientad_jax.evaluation.region_detection import RegionCounts, RelativeBox, count_regions
from efficientad_jax.evaluation.report import ScoredImages, write_report
from efficientad_jax.evaluation.split_maps import (
    SplitMaps,
    images_of_one_size,
    maps_of_split,
    shown_images,
)
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.pdn import NAMES
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.runs.tracking import track_evaluation
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.storage.atomic import write_atomically


class Evaluation(NamedTuple):
    """The result of evaluating a detector on the test images of its dataset.

    Attributes:
      metrics: of the detector; all undefined where the dataset has no test images.
      baselines: image AU-ROC of each trivial detector in [0, 1], by name; None where the test
        images are all normal or all anomalous.
      threshold: of the detector, None for a detector without one.
      verdicts: the verdicts by that threshold, None without one.
      report: the HTML file, None where the dataset has no test images: then no file is written.
      dataset_root: the folder or archive of the dataset.
      region_rule: of the detector, None for a detector without one.
      regions: the regions of the test images by that rule, None without one.
    """

    metrics: Metrics
    baselines: dict[str, float | None]
    threshold: Threshold | None
    verdicts: VerdictCounts | None
    report: Path | None
    dataset_root: str
    region_rule: RegionRule | None = None
    regions: RegionCounts | None = None

    def as_dict(self) -> dict[str, Any]:
        """The content of `metrics.json`."""
        content = {"detector": self.metrics.as_dict(), "baselines_image_auroc": self.baselines}
        if self.threshold is not None and self.verdicts is not None:
            content["threshold"] = self.threshold._asdict() | self.verdicts._asdict()
        if self.region_rule is not None and self.regions is not None:
            content["regions"] = self.regions.as_dict(self.region_rule)
        return content


def evaluate_workdir(
    workdir: Path, dataset: Dataset | None = None, *, root: str = "", ignore_masks: str = ""
) -> Evaluation:
    """Evaluates the detector of a work directory on the dataset of its configuration.

    Adds the metrics to the detector's `detector.json`. Nothing is written where the dataset has no
    test images.

    Args:
      workdir: of a training.
      dataset: the dataset, if it is loaded already.
      root: where the dataset lies now, '' for the place in the detector's configuration.
      ignore_masks: folder of the images' own ignore masks, '' for that in the detector's
        configuration.

    Raises:
      InputError: the detector or its dataset cannot be loaded.
      OSError: a file cannot be written.
    """
    folder = Workdir(workdir).detector
    return evaluate_saved(folder, workdir, dataset, root=root, ignore_masks=ignore_masks)


def evaluate_saved(
    folder: Path,
    output: Path,
    dataset: Dataset | None = None,
    *,
    root: str = "",
    ignore_masks: str = "",
) -> Evaluation:
    """Evaluates the detector of a folder; see `evaluate_workdir`.

    Args:
      folder: of the detector.
      output: folder for `metrics.json` and `report.html`; it is created if needed.
      dataset: see `evaluate_workdir`.
      root: see `evaluate_workdir`.
      ignore_masks: see `evaluate_workdir`.

    Raises:
      InputError, OSError: see `evaluate_workdir`.
    """
    detector = Detector.load(folder)
    dataset = dataset or _load_dataset(detector, root, ignore_masks)
    evaluation = evaluate_detector(detector, dataset, output)
    if root:
        evaluation = evaluation._replace(dataset_root=root)
    if evaluation.report is not None:
        detector.with_metrics(evaluation.metrics.as_dict()).save_record(folder)
        track_evaluation(output)
    return evaluation


def _load_dataset(detector: Detector, root: str, ignore_masks: str) -> Dataset:
    config = read_config(detector.config)
    if ignore_masks and not has_own_masks(config.dataset, detector.framing):
        raise InputError(
            f"ignore masks {ignore_masks}: the detector was not trained with a mask for each "
            "image, expected none"
        )
    if ignore_masks:
        config = replace(config, {"dataset.ignore_mask": ignore_masks})
    if root:
        config = replace(config, {"dataset.root": root})
        return load_configured_dataset(config, detector.framing)
    try:
        return load_configured_dataset(config, detector.framing)
    except InputError as error:
        if config.dataset.root and not Path(config.dataset.root).exists():
            raise InputError(
                f"{error}; if it has moved, give its place as FOLDER of `efficientad evaluate`, or "
                "as --dataset_root of experiments.evaluate"
            ) from error
        raise


def evaluate_detector(detector: Detector, dataset: Dataset, workdir: Path) -> Evaluation:
    """Evaluates a detector and writes `metrics.json` and `report.html` into a work directory.

    Args:
      detector: trained and calibrated.
      dataset: its test images are scored. The trivial baselines are fitted to the images that the
        detector was trained and calibrated with.
      workdir: an existing folder for the files.

    Raises:
      InputError: the detector's configuration or a test image cannot be used.
      OSError: a file cannot be written.
    """
    config = read_config(detector.config)
    test, threshold = dataset.test, detector.threshold
    if not test.names:
        no_metrics = evaluate(np.empty(0, np.float32), np.empty(0, np.int64))
        return Evaluation(no_metrics, {}, threshold, None, None, config.dataset.root)
    maps = maps_of_split(detector, test)
    scores = maps.scores
    metrics = evaluate(
        scores,
        test.labels,
        maps.combined,
        masks=test.masks,
        defects=test.defects,
        regions=test.regions,
        ignored=ignored_pixels(detector.framing, test),
    )
    rule, region_counts, boxes = detector.region_rule, None, None
    if rule is not None:
        region_counts, boxes = count_regions(rule, maps.combined, test.labels, test.masks)
    evaluation = Evaluation(
        metrics,
        _baseline_aurocs(detector, dataset),
        threshold,
        None if threshold is None else count_verdicts(threshold, scores, test.labels),
        Workdir(workdir).report,
        config.dataset.root,
        rule,
        region_counts,
    )
    content = json.dumps(evaluation.as_dict(), indent=2) + "\n"
    write_atomically(Workdir(workdir).metrics, content.encode())
    facts = _facts(config, dataset, threshold, rule=rule) | _framing_facts(detector.framing, test)
    write_report(
        Workdir(workdir).report,
        _scored_images(detector, test, maps, boxes=boxes),
        metrics,
        title=f"{NAMES[config.model.size]} on {facts['dataset']}",
        baselines=evaluation.baselines,
        facts=facts,
        threshold=None if threshold is None else threshold.limit,
        regions=region_counts,
    )
    return evaluation


def ignored_pixels(framing: Framing, test: ImageSet) -> list[Bool[np.ndarray, "_ _"]] | None:
    """The pixels of each region of interest that no metric counts; None where all count."""
    common = framing.ignored_in_box
    if test.ignored is not None:
        return test.ignored if common is None else [common | own for own in test.ignored]
    return None if common is None else [common] * len(test.names)


def _scored_images(
    detector: Detector,
    test: ImageSet,
    maps: SplitMaps,
    *,
    boxes: Sequence[Sequence[RelativeBox]] | None,
) -> ScoredImages:
    """The contents of the report; it shows local and global maps if there are global ones."""
    return ScoredImages(
        test.names,
        test.labels,
        test.defects,
        maps.scores,
        shown_images(detector, test),
        maps.combined,
        test.masks,
        local_maps=None if maps.global_ is None else maps.local,
        global_maps=maps.global_,
        boxes=boxes,
    )


def _facts(
    config: Config, dataset: Dataset, threshold: Threshold | None, *, rule: RegionRule | None
) -> dict[str, str]:
    """The facts that head the report."""
    facts = {
        "dataset": f"{config.dataset.name} {config.category}".strip(),
        "training steps": f"{'at most ' if config.train.patience else ''}{config.train.steps}",
        "training images": f"{len(dataset.train.names)}",
        "validation images": f"{len(dataset.validation.names)}",
        "input": f"{config.model.input_height} x {config.model.input_width} pixels",
    }
    if threshold is not None:
        facts["threshold"] = summary(threshold)
    if rule is not None:
        facts["pixel threshold"] = region_summary(rule)
    return facts


def _framing_facts(framing: Framing, test: ImageSet) -> dict[str, str]:
    """Facts about the part of the images that counts, none if they count as a whole."""
    facts = {}
    if framing.fit != "resize":
        facts["fit of images"] = framing.fit
    if framing.box is not None:
        box = framing.box
        facts["region of interest"] = (
            f"{box.width} x {box.height} pixels from ({box.left}, {box.top})"
        )
    if framing.ignored is not None:
        facts["ignored"] = f"{percent(framing.ignored_fraction)} of the pixels, gray in the images"
    elif test.ignored is not None:
        fraction = float(np.mean([own.mean() for own in test.ignored]))
        facts["ignored"] = f"{percent(fraction)} of the pixels on average, gray in the images"
    return facts


def _baseline_aurocs(detector: Detector, dataset: Dataset) -> dict[str, float | None]:
    """Image AU-ROC of each baseline, None where the test images are of one class."""
    train, validation, test_images = (images_of_one_size(detector, part) for part in dataset)
    normal = np.concatenate([train, validation])
    test = dataset.test
    defined = len(np.unique(test.labels)) == 2
    baselines = {
        "nearest neighbors": partial(_neighbor_scores, detector),
        "PCA reconstruction": pca_reconstruction_scores,
        "mean brightness": mean_brightness_scores,
    }
    return {
        name: float(roc_auc_score(test.labels, score(normal, test_images))) if defined else None
        for name, score in baselines.items()
    }


def _neighbor_scores(
    detector: Detector, normal: UInt8[np.ndarray, "m h w 3"], test: UInt8[np.ndarray, "n h w 3"]
) -> Float32[np.ndarray, " n"]:
    """Scores by the teacher's features, without a student; every second patch is enough."""
    network, params = detector.networks.teacher, detector.params.teacher

    def features(image: UInt8[jax.Array, "1 h w 3"]) -> Float[jax.Array, "1 fh fw c"]:
        return float32_features(network, params, normalize_images(to_unit_range(image)))

    return nearest_neighbor_scores(features, normal, test, spacing=2).mean_of_largest


def evaluation_summary(evaluation: Evaluation) -> str:
    """Formats an evaluation for the terminal: a few lines, without a final line break."""
    if evaluation.report is None:
        root = evaluation.dataset_root
        return f"no test images to evaluate: {root} holds only good images"
    lines = [
        *_metric_lines(evaluation.metrics, evaluation.baselines),
        *_threshold_lines(evaluation.threshold, evaluation.verdicts),
        *_region_lines(evaluation.region_rule, evaluation.regions),
        f"report: {evaluation.report}",
    ]
    return "\n".join(lines)


def _metric_lines(metrics: Metrics, baselines: Mapping[str, float | None]) -> list[str]:
    """The metrics, with the baselines next to the image AU-ROC."""

    def value(metric: float | None, reason: str | None = None) -> str:
        return f"{metric:.4f}" if metric is not None else f"not defined ({reason or 'one class'})"

    lines = [
        f"image AU-ROC         {value(metrics.image_auroc, metrics.image_reason)}",
        *(f"  {name:<19}{value(auroc)}" for name, auroc in baselines.items()),
        f"average precision    {value(metrics.image_average_precision, metrics.image_reason)}",
        f"F1 at its best       {value(metrics.image_best_f1, metrics.image_reason)}",
        f"pixel AU-ROC         {value(metrics.pixel_auroc, metrics.pixel_reason)}",
        f"AU-PRO (FPR < 0.3)   {value(metrics.au_pro, metrics.pixel_reason)}",
        f"test images          {metrics.good_images} normal, {metrics.anomalous_images} anomalous",
    ]
    if metrics.au_spro_reason != NO_SATURATION_AREAS:
        au_spro = value(metrics.au_spro, metrics.au_spro_reason)
        lines.insert(-1, f"AU-sPRO (FPR < 0.05) {au_spro}")
    if metrics.anomalous_without_mask and metrics.pixel_auroc is not None:
        lines.append(
            f"                     {metrics.anomalous_without_mask} anomalous ones have no mask or "
            "an empty one and count in no pixel figure"
        )
    return lines


def _threshold_lines(threshold: Threshold | None, verdicts: VerdictCounts | None) -> list[str]:
    """The threshold, and the verdicts on the test images by it."""
    if threshold is None or verdicts is None:
        return []
    alarms = _part(verdicts.false_alarms, verdicts.normal, "normal test images")
    found = _part(verdicts.found, verdicts.anomalous, "anomalous test images")
    return [
        f"threshold            {summary(threshold)}",
        f"  false alarms       {alarms}",
        f"  found              {found}",
    ]


def _region_lines(rule: RegionRule | None, counts: RegionCounts | None) -> list[str]:
    """The pixel threshold, and the regions of the test images by it."""
    if rule is None or counts is None:
        return []
    false = _part(counts.good_images_with_regions, counts.good_images, "normal test images")
    return [
        f"pixel threshold      {region_summary(rule)}",
        f"  false regions      {counts.false_regions}, in {false}",
        f"  defects found      {_part(counts.found, counts.defects, 'defects in masks')}",
    ]


def _part(count: int, total: int, kind: str) -> str:
    """A count and its part of all, as text."""
    share = f", {percent(count / total)}" if total else ""
    return f"{count} of {total} {kind}{share}"
