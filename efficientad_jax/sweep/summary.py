"""The metrics of a sweep: of each training, and over the seeds of each category."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.sweep.plan import SweepRun

# Their names in `metrics.json` and in the table.
METRICS = {
    "image_auroc": "image AU-ROC",
    "pixel_auroc": "pixel AU-ROC",
    "au_pro": "AU-PRO",
    "au_spro": "AU-sPRO",
}

Metrics = dict[str, float | None]


def read_metrics(runs: Sequence[SweepRun], workdir: Path) -> dict[str, Metrics]:
    """Reads the metrics of all trainings that are done, by the training's name."""
    results = {}
    for run in runs:
        file = Workdir(workdir / run.name).metrics
        if file.is_file():
            metrics: dict[str, Any] = json.loads(file.read_text())["detector"]
            results[run.name] = {name: metrics.get(name) for name in METRICS}
    return results


def metrics_csv(runs: Sequence[SweepRun], results: dict[str, Metrics]) -> str:
    """Formats a line per training that has metrics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category", "seed", *METRICS])
    for run in runs:
        if run.name in results:
            values = results[run.name].values()
            writer.writerow([run.category, run.seed, *("" if v is None else v for v in values)])
    return text.getvalue()


def metrics_table(runs: Sequence[SweepRun], results: dict[str, Metrics]) -> str:
    """Formats a Markdown table: a row per category, with mean and standard deviation over seeds.

    The last row is the mean over the categories, for those seeds that all categories have.
    """
    shown = [name for name in METRICS if any(f[name] is not None for f in results.values())]
    rows = [["category", "seeds", *(METRICS[name] for name in shown)]]
    by_category: dict[str, dict[int, Metrics]] = {}
    for run in runs:
        if run.name in results:
            by_category.setdefault(run.category, {})[run.seed] = results[run.name]
    for category, by_seed in by_category.items():
        cells = [_mean([f[name] for f in by_seed.values()]) for name in shown]
        rows.append([category or "images", str(len(by_seed)), *cells])
    if len(by_category) > 1:
        seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_category.values())))
        cells = [
            _mean([_over_categories(by_category, seed, name) for seed in seeds]) for name in shown
        ]
        rows.append(["mean", str(len(seeds)), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def _over_categories(
    by_category: dict[str, dict[int, Metrics]], seed: int, name: str
) -> float | None:
    values = [by_seed[seed][name] for by_seed in by_category.values()]
    return None if None in values else statistics.fmean(v for v in values if v is not None)


def _mean(values: Sequence[float | None]) -> str:
    defined = [value for value in values if value is not None]
    if not defined:
        return "-"
    mean = f"{statistics.fmean(defined):.4f}"
    return f"{mean} ± {statistics.stdev(defined):.4f}" if len(defined) > 1 else mean
