"""The table and the file of a sweep's metrics."""

import json
import statistics
from pathlib import Path

from efficientad_jax import recipes
from efficientad_jax.sweep.plan import planned_trainings
from efficientad_jax.sweep.summary import metrics_csv, metrics_table, read_metrics


def write_metrics(folder: Path, image_auroc: float) -> None:
    folder.mkdir(parents=True)
    metrics = {"detector": {"image_auroc": image_auroc, "pixel_auroc": None}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]


def cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}"


def test_the_summary_is_over_seeds_and_then_over_categories(tmp_path: Path) -> None:
    trainings = planned_trainings(recipes.elpv("mono"), ["all"], 3)
    aurocs = {"mono/seed0": 0.9, "mono/seed1": 0.8, "poly/seed0": 0.7, "poly/seed1": 0.5}
    aurocs["mono/seed2"] = 0.1  # poly has no third seed
    for name, value in aurocs.items():
        write_metrics(tmp_path / name, value)
    results = read_metrics(trainings, tmp_path)
    rows = cells(metrics_table(trainings, results))
    assert rows[0] == ["category", "seeds", "image AU-ROC"]
    means = [statistics.fmean(v) for v in ([0.9, 0.7], [0.8, 0.5])]
    assert rows[2:] == [
        ["mono", "3", cell([0.9, 0.8, 0.1])],
        ["poly", "2", cell([0.7, 0.5])],
        ["mean", "2", cell(means)],
    ]
    lines = metrics_csv(trainings, results).splitlines()
    assert lines[0] == "category,seed,image_auroc,pixel_auroc,au_pro,au_spro"
    assert lines[1] == "mono,0,0.9,,,"
    assert len(lines) == 1 + len(aurocs)


def test_a_grid_has_rows_for_each_setting(tmp_path: Path) -> None:
    grid = [("losses.p_hard", ["0.9", "0.99"])]
    trainings = planned_trainings(recipes.elpv("mono"), ["all"], 2, grid=grid)
    aurocs = {}
    for i, training in enumerate(trainings):
        aurocs[training.setting, training.category, training.seed] = 0.5 + i / 50
        write_metrics(tmp_path / training.name, 0.5 + i / 50)
    results = read_metrics(trainings, tmp_path)
    rows = cells(metrics_table(trainings, results))
    assert rows[0] == ["losses.p_hard", "category", "seeds", "image AU-ROC"]
    expected = []
    for value in ("0.9", "0.99"):
        setting = f"losses.p_hard={value}"
        by_category = [[aurocs[setting, c, seed] for seed in (0, 1)] for c in ("mono", "poly")]
        for category, of_category in zip(("mono", "poly"), by_category, strict=True):
            expected.append([value, category, "2", cell(of_category)])
        means = [statistics.fmean(pair) for pair in zip(*by_category, strict=True)]
        expected.append([value, "mean", "2", cell(means)])
    assert rows[2:] == expected
    lines = metrics_csv(trainings, results).splitlines()
    assert lines[0] == "losses.p_hard,category,seed,image_auroc,pixel_auroc,au_pro,au_spro"
    assert lines[1] == "0.9,mono,0,0.5,,,"
