"""How well the proxy AU-ROC ranks trainings: its rank correlation with the image AU-ROC."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from efficientad_jax.config import Config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.detection.detector import Detector
from efficientad_jax.fitting.proxy import measure_detector, write_proxy
from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.sweep.plan import Training
from efficientad_jax.sweep.summary import Metrics, markdown_table
from efficientad_jax.synthetic_defects.kinds import KINDS

# Their names in `figures.csv` and in tables.
PROXY_METRICS = {
    "proxy_auroc": "proxy AU-ROC",
    **{f"proxy_auroc_{kind}": f"proxy, {kind.replace('_', ' ')}" for kind in KINDS},
}

# Fewer trainings have no ranking to speak of.
_FEWEST = 3


class Ranking(NamedTuple):
    """The trainings of a category, as the proxy and the test images rank them.

    Attributes:
      pairs: proxy and image AU-ROC of each.
      correlations: Spearman's correlation with the image AU-ROC by the name of a proxy metric; None
        where it is not defined: of fewer than three trainings, or of equal values.
    """

    pairs: list[tuple[float, float]]
    correlations: dict[str, float | None]


def measure_finished(config: Config, workdir: Path) -> None:
    """Measures the detector of a work directory, unless its `proxy.json` exists.

    Args:
      config: of the training.
      workdir: with a detector.

    Raises:
      InputError: the detector or its dataset cannot be loaded, or see `measure_detector`.
      DivergenceError: a map is not finite.
      OSError: the file cannot be written.
    """
    files = Workdir(workdir)
    if not files.proxy.is_file():
        detector = Detector.load(files.detector)
        validation = load_configured_dataset(config, detector.framing).validation
        write_proxy(workdir, config.train.steps, measure_detector(detector, validation))


def with_proxies(
    trainings: Sequence[Training], results: Mapping[str, Metrics], workdir: Path
) -> dict[str, Metrics]:
    """Adds the proxy metrics of the work directories to the metrics of trainings, by their names.

    Args:
      trainings: all of them.
      results: their metrics, see `read_metrics`.
      workdir: the folder of all trainings.
    """
    completed = {}
    for training in trainings:
        if training.name in results:
            file = Workdir(workdir / training.name).proxy
            stored = json.loads(file.read_text()) if file.is_file() else {}
            by_kind = stored.get("auroc_by_kind", {})
            values = {"proxy_auroc": stored.get("auroc")}
            values |= {f"proxy_auroc_{kind}": by_kind.get(kind) for kind in KINDS}
            completed[training.name] = {**results[training.name], **values}
    return completed


def rankings(trainings: Sequence[Training], results: Mapping[str, Metrics]) -> dict[str, Ranking]:
    """The ranking of each category: over all of its settings, lengths and seeds.

    Trainings without test images of both classes do not count.
    """
    by_category: dict[str, list[Metrics]] = {}
    for training in trainings:
        metrics = results.get(training.name, {})
        if metrics.get("image_auroc") is not None:
            by_category.setdefault(training.category or "images", []).append(metrics)
    return {
        category: Ranking(
            _pairs(measured, "proxy_auroc"),
            {name: _correlation(_pairs(measured, name)) for name in PROXY_METRICS},
        )
        for category, measured in by_category.items()
    }


def _pairs(measured: Sequence[Metrics], name: str) -> list[tuple[float, float]]:
    """The values of a proxy metric that are defined, each with the image AU-ROC."""
    pairs = [(metrics.get(name), metrics["image_auroc"]) for metrics in measured]
    return [(proxy, true) for proxy, true in pairs if proxy is not None and true is not None]


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    columns = np.array(pairs, np.float64).reshape(-1, 2)
    if len(columns) < _FEWEST or np.ptp(columns, axis=0).min() == 0:
        return None
    found = spearmanr(columns[:, 0], columns[:, 1])
    return float(found.statistic)  # pyright: ignore[reportAttributeAccessIssue]


def ranking_table(ranked: Mapping[str, Ranking]) -> str:
    """Formats Spearman's correlations as Markdown, with a mean over several categories."""
    measured = [
        name
        for name in PROXY_METRICS
        if any(ranking.correlations[name] is not None for ranking in ranked.values())
    ]
    shown = measured or ["proxy_auroc"]
    rows = [["category", "trainings", *(PROXY_METRICS[name] for name in shown)]]
    for category, ranking in ranked.items():
        cells = [_cell(ranking.correlations[name]) for name in shown]
        rows.append([category, str(len(ranking.pairs)), *cells])
    if len(ranked) > 1:
        columns = [[ranking.correlations[name] for ranking in ranked.values()] for name in shown]
        means = [_cell(None if None in c else float(np.mean(c))) for c in columns]  # pyright: ignore
        rows.append(["mean", "", *means])
    return markdown_table(rows)


def _cell(correlation: float | None) -> str:
    return "-" if correlation is None else f"{correlation:.2f}"
