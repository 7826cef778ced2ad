"""The metrics of a sweep: of each training, and over the seeds of each setting and category."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.sweep.plan import Training

# Their names in `metrics.json` and in the table.
METRICS = {
    "image_auroc": "image AU-ROC",
    "pixel_auroc": "pixel AU-ROC",
    "au_pro": "AU-PRO",
    "au_spro": "AU-sPRO",
}

Metrics = dict[str, float | None]


def read_metrics(trainings: Sequence[Training], workdir: Path) -> dict[str, Metrics]:
    """Reads the metrics of all trainings that are done, by the training's name."""
    results = {}
    for training in trainings:
        file = Workdir(workdir / training.name).metrics
        if file.is_file():
            metrics: dict[str, Any] = json.loads(file.read_text())["detector"]
            results[training.name] = {name: metrics.get(name) for name in METRICS}
    return results


def metrics_csv(
    trainings: Sequence[Training],
    results: dict[str, Metrics],
    names: Mapping[str, str] = METRICS,
) -> str:
    """Formats a line per training that has metrics; each field of the grid is a column.

    `names` are those of the metrics and, in `metrics_table`, their titles.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*trainings[0].settings, "category", "seed", *names])
    for training in trainings:
        if training.name in results:
            metrics = results[training.name]
            values = ["" if metrics[name] is None else metrics[name] for name in names]
            row = [*training.settings.values(), training.category, training.seed, *values]
            writer.writerow(row)
    return text.getvalue()


def metrics_table(
    trainings: Sequence[Training],
    results: dict[str, Metrics],
    names: Mapping[str, str] = METRICS,
) -> str:
    """Formats a Markdown table: mean and standard deviation over seeds.

    There is a row per setting and category. If there are several categories, each setting has a
    last row, the mean over the categories, for those seeds that all categories have.
    """
    shown = [name for name in names if any(f[name] is not None for f in results.values())]
    fields = list(trainings[0].settings)
    rows = [[*fields, "category", "seeds", *(names[name] for name in shown)]]
    for setting in dict.fromkeys(training.setting for training in trainings):
        done = [t for t in trainings if t.setting == setting and t.name in results]
        values = list(next(t.settings for t in trainings if t.setting == setting).values())
        by_category: dict[str, dict[int, Metrics]] = {}
        for training in done:
            by_category.setdefault(training.category, {})[training.seed] = results[training.name]
        for category, by_seed in by_category.items():
            cells = [_mean([f[name] for f in by_seed.values()]) for name in shown]
            rows.append([*values, category or "images", str(len(by_seed)), *cells])
        if len(by_category) > 1:
            seeds = sorted(set.intersection(*(set(by_seed) for by_seed in by_category.values())))
            cells = [
                _mean([_over_categories(by_category, seed, name) for seed in seeds])
                for name in shown
            ]
            rows.append([*values, "mean", str(len(seeds)), *cells])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of cells as a Markdown table; the first row is its head."""
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
