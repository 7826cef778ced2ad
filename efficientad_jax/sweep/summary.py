"""The figures of a sweep: each training's, and over the seeds of each category."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficientad_jax.runs.workdir import Workdir
from efficientad_jax.sweep.plan import SweepRun

# As they are named in `metrics.json`, and here.
FIGURES = {
    "image_auroc": "image AU-ROC",
    "pixel_auroc": "pixel AU-ROC",
    "au_pro": "AU-PRO",
    "au_spro": "AU-sPRO",
}

Figures = dict[str, float | None]


def read_figures(runs: Sequence[SweepRun], workdir: Path) -> dict[str, Figures]:
    """What `metrics.json` of each training that has one says, by the training's name."""
    found = {}
    for run in runs:
        file = Workdir(workdir / run.name).metrics
        if file.is_file():
            metrics: dict[str, Any] = json.loads(file.read_text())["detector"]
            found[run.name] = {name: metrics.get(name) for name in FIGURES}
    return found


def figures_csv(runs: Sequence[SweepRun], figures: dict[str, Figures]) -> str:
    """A line for each training that has figures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category", "seed", *FIGURES])
    for run in runs:
        if run.name in figures:
            values = figures[run.name].values()
            writer.writerow([run.category, run.seed, *("" if v is None else v for v in values)])
    return text.getvalue()


def figures_table(runs: Sequence[SweepRun], figures: dict[str, Figures]) -> str:
    """A Markdown table: a row for each category, mean and standard deviation over its seeds.

    The last row is the mean over the categories, of those seeds that all of them have.
    """
    shown = [name for name in FIGURES if any(f[name] is not None for f in figures.values())]
    rows = [["category", "seeds", *(FIGURES[name] for name in shown)]]
    by_category: dict[str, dict[int, Figures]] = {}
    for run in runs:
        if run.name in figures:
            by_category.setdefault(run.category, {})[run.seed] = figures[run.name]
    for category, of in by_category.items():
        cells = [_mean([f[name] for f in of.values()]) for name in shown]
        rows.append([category or "images", str(len(of)), *cells])
    if len(by_category) > 1:
        seeds = sorted(set.intersection(*(set(of) for of in by_category.values())))
        cells = [
            _mean([_over_categories(by_category, seed, name) for seed in seeds]) for name in shown
        ]
        rows.append(["mean", str(len(seeds)), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def _over_categories(
    by_category: dict[str, dict[int, Figures]], seed: int, name: str
) -> float | None:
    values = [of[seed][name] for of in by_category.values()]
    return None if None in values else statistics.fmean(v for v in values if v is not None)


def _mean(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean = f"{statistics.fmean(there):.4f}"
    return f"{mean} ± {statistics.stdev(there):.4f}" if len(there) > 1 else mean
