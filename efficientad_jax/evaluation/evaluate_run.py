"""A detector against a test split: figures, baselines, report, as files in a folder."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8
from sklearn.metrics import roc_auc_score

from efficientad_jax.config import read_config
from efficientad_jax.data.loading import Dataset, load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.detection.threshold import Threshold, Verdicts, describe, judge, percent
from efficientad_jax.evaluation.baselines import mean_brightness_scores, pca_reconstruction_scores
from efficientad_jax.evaluation.metrics import NO_SATURATION_AREAS, Metrics, evaluate
from efficientad_jax.evaluation.nearest_neighbors import nearest_neighbor_scores
from efficientad_jax.evaluation.report import ScoredImages, write_report
from efficientad_jax.networks.layers import float32_features
from efficientad_jax.networks.pdn import NAMES
from efficientad_jax.networks.preprocessing import normalize_images, to_unit_range
from efficientad_jax.runs.workdir import METRICS_FILE
from efficientad_jax.storage.atomic import write_atomically

REPORT_FILE = "report.html"


def assess(
    detector: Detector,
    dataset: Dataset,
    folder: Path,
    title: str,
    facts: Mapping[str, str],
) -> tuple[Metrics, dict[str, float | None], Verdicts | None]:
    """Evaluates a detector and writes `metrics.json` and `report.html`.

    Args:
      detector: calibrated.
      dataset: its test images are scored; the trivial baselines also look at those it was
        trained and calibrated with.
      folder: where the files go.
      title: heading of the report.
      facts: what the report should name besides.

    Returns:
      The detector's figures; the image AU-ROC of each baseline, None where the test images are all
      normal or all anomalous; what the detector's threshold makes of them, None without one.
    """
    test = dataset.test
    detections = detector.detect_resized(test.images, test.sizes)
    scores = np.array([detection.score for detection in detections])
    maps = [detection.anomaly_map for detection in detections]
    global_maps = [found.global_map for found in detections if found.global_map is not None]
    metrics = evaluate(scores, test.labels, maps, test.masks, test.defects, test.regions)
    normal = np.concatenate([dataset.train.images, dataset.validation.images])
    both = len(np.unique(test.labels)) == 2
    baselines = {
        name: float(roc_auc_score(test.labels, score(normal, test.images))) if both else None
        for name, score in (
            ("nearest neighbors", partial(_neighbor_scores, detector)),
            ("PCA reconstruction", pca_reconstruction_scores),
            ("mean brightness", mean_brightness_scores),
        )
    }
    summary = {"detector": metrics.as_dict(), "baselines_image_auroc": baselines}
    threshold, verdicts = detector.threshold, None
    if threshold is not None:
        verdicts = judge(threshold, scores, test.labels)
        summary["threshold"] = threshold._asdict() | verdicts._asdict()
    write_atomically(folder / METRICS_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    write_report(
        folder / REPORT_FILE,
        title,
        metrics,
        baselines,
        facts,
        ScoredImages(
            test.names,
            test.labels,
            test.defects,
            scores,
            test.images,
            maps,
            test.masks,
            local_maps=[found.local_map for found in detections] if global_maps else None,
            global_maps=global_maps or None,
        ),
        None if threshold is None else threshold.value,
    )
    return metrics, baselines, verdicts


def _neighbor_scores(
    detector: Detector, normal: UInt8[np.ndarray, "m h w 3"], test: UInt8[np.ndarray, "n h w 3"]
) -> Float32[np.ndarray, " n"]:
    """What the teacher tells apart before a student is trained; every second patch is enough."""
    network, params = detector.networks.teacher, detector.params.teacher

    def describe(image: jax.Array) -> jax.Array:
        return float32_features(network, params, normalize_images(to_unit_range(image)))

    return nearest_neighbor_scores(describe, normal, test, spacing=2).mean_of_largest


def evaluate_workdir(workdir: Path, dataset: Dataset | None = None) -> str:
    """Evaluates `workdir / "detector"` on the dataset of the configuration it keeps.

    Args:
      workdir: of `experiments.train`.
      dataset: that dataset, where it is loaded already.

    Returns:
      A few lines for the terminal; where the dataset has no test images, one that says so, and no
      file is written.

    Raises:
      InputError: the detector or its dataset cannot be loaded.
    """
    folder = workdir / "detector"
    detector = Detector.load(folder)
    config = read_config(detector.config)
    dataset = dataset or load_configured_dataset(config)
    if not dataset.test.names:
        return f"no test images to evaluate: {config.dataset.root} holds good images alone"
    facts = {
        "dataset": f"{config.dataset.name} {config.category}".strip(),
        "training steps": f"{config.train.steps}",
        "training images": f"{len(dataset.train.names)}",
        "validation images": f"{len(dataset.validation.names)}",
        "input": f"{config.model.input_height} x {config.model.input_width} pixels",
    }
    title = f"{NAMES[config.model.size]} on {facts['dataset']}"
    if detector.threshold is not None:
        facts["threshold"] = describe(detector.threshold)
    metrics, baselines, verdicts = assess(detector, dataset, workdir, title, facts)
    detector.with_metrics(metrics.as_dict()).save_record(folder)
    lines = [_summarise(metrics, baselines), *_judged(detector.threshold, verdicts)]
    return "\n".join([*lines, f"report: {workdir / REPORT_FILE}"])


def _summarise(metrics: Metrics, baselines: Mapping[str, float | None]) -> str:
    """A few lines for the terminal: the figures, and the baselines beside them."""

    def figure(value: float | None, reason: str | None = None) -> str:
        return f"{value:.4f}" if value is not None else f"not defined ({reason or 'one class'})"

    lines = [
        f"image AU-ROC         {figure(metrics.image_auroc, metrics.image_reason)}",
        *(f"  {name:<19}{figure(value)}" for name, value in baselines.items()),
        f"average precision    {figure(metrics.image_average_precision, metrics.image_reason)}",
        f"F1 at its best       {figure(metrics.image_best_f1, metrics.image_reason)}",
        f"pixel AU-ROC         {figure(metrics.pixel_auroc, metrics.pixel_reason)}",
        f"AU-PRO (FPR < 0.3)   {figure(metrics.au_pro, metrics.pixel_reason)}",
        f"test images          {metrics.good_images} normal, {metrics.anomalous_images} anomalous",
    ]
    if metrics.au_spro_reason != NO_SATURATION_AREAS:
        value = figure(metrics.au_spro, metrics.au_spro_reason)
        lines.insert(-1, f"AU-sPRO (FPR < 0.05) {value}")
    if metrics.anomalous_without_mask and metrics.pixel_auroc is not None:
        lines.append(
            f"                     {metrics.anomalous_without_mask} anomalous ones have no mask or "
            "an empty one and count in no pixel figure"
        )
    return "\n".join(lines)


def _judged(threshold: Threshold | None, verdicts: Verdicts | None) -> list[str]:
    """Lines for the terminal: the threshold, and what it makes of the test images."""
    if threshold is None or verdicts is None:
        return []

    def part(count: int, of: int, kind: str) -> str:
        return f"{count} of {of} {kind} test images" + (f", {percent(count / of)}" if of else "")

    return [
        f"threshold            {describe(threshold)}",
        f"  false alarms       {part(verdicts.false_alarms, verdicts.normal, 'normal')}",
        f"  found              {part(verdicts.found, verdicts.anomalous, 'anomalous')}",
    ]
