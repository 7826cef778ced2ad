"""What is made of the results of many runs: means and deviations, tables, their texts."""

import csv
import io
import statistics
from pathlib import Path

import numpy as np
import pytest

from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.benchmark.implementations import OURS
from efficientad_jax.benchmark.results import Measurement, write_results
from efficientad_jax.benchmark.start_up import StartUp
from efficientad_jax.benchmark.timing import Spread
from efficientad_jax.config import Config
from efficientad_jax.errors import InputError
from efficientad_jax.evaluation.paper_results import Figure
from efficientad_jax.reproduction.aggregation import (
    Measured,
    collection_figure,
    detection,
    detection_of_kind,
    mean_figure,
    segmentation_of,
)
from efficientad_jax.reproduction.collections_on_disk import COLLECTIONS
from efficientad_jax.reproduction.plan import FULL, Run, Variant
from efficientad_jax.reproduction.rendering import csv_text, latex, markdown, runs_csv
from efficientad_jax.reproduction.speed import Speed, read_benchmark
from efficientad_jax.reproduction.tables import Cell, Column, Measurements, Table, fill, rows_of


def metrics_of(image_auroc: float | None, **more: float) -> dict:
    detector: dict = {"image_auroc": image_auroc, "au_pro": more.pop("au_pro", None)}
    detector["au_spro"] = more.pop("au_spro", None)
    detector["image_auroc_by_defect"] = more
    return {"detector": detector}


def test_cells_are_means_over_categories_and_deviations_over_seeds() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(0.5, 1, (3, 4))  # categories, seeds
    categories = COLLECTIONS["visa"].benchmark.categories[:3]
    results = {
        Run("visa", category, "small", FULL, seed): metrics_of(float(values[c, seed]))
        for c, category in enumerate(categories)
        for seed in range(4)
    }
    # Neither another size nor another variant counts, nor a seed that lacks a category.
    results[Run("visa", categories[0], "medium", FULL, 0)] = metrics_of(0.1)
    other = Variant((("losses.penalty", False),))
    results[Run("visa", categories[0], "small", other, 0)] = metrics_of(0.1)
    del results[Run("visa", categories[1], "small", FULL, 3)]
    found = collection_figure(results, "visa", "small", FULL, detection)
    by_seed = 100 * values[:, :3].mean(0)
    assert found is not None
    assert found == (
        pytest.approx(by_seed.mean()),
        pytest.approx(np.std(by_seed, ddof=1)),
        3,
        3,
        len(COLLECTIONS["visa"].benchmark.categories),
    )
    assert mean_figure(results, "small", FULL, lambda _: detection) is None


def whole_results() -> dict[Run, dict]:
    """A result of each category, for seeds 0 and 1: collection k has AU-ROC 0.k, and so on."""
    return {
        Run(name, category, "small", FULL, seed): metrics_of(
            (k + 1 + seed) / 10,
            au_pro=(k + 2) / 10,
            au_spro=(k + 5) / 10,
            logical_anomalies=0.25,
            structural_anomalies=0.75,
        )
        for k, name in enumerate(COLLECTIONS)
        for category in COLLECTIONS[name].benchmark.categories
        for seed in (0, 1)
    }


def test_means_are_over_the_collections_whatever_their_sizes() -> None:
    results = whole_results()
    found = mean_figure(results, "small", FULL, lambda _: detection)
    assert found == Measured(
        pytest.approx(25), pytest.approx(statistics.stdev([20, 30])), 2, 32, 32
    )
    # The third collection, LOCO, is measured by AU-sPRO, the others by AU-PRO.
    assert list(COLLECTIONS).index("mvtec_loco") == 2
    found = mean_figure(results, "small", FULL, segmentation_of)
    assert found is not None
    assert found.mean == pytest.approx(100 * (0.2 + 0.3 + 0.7) / 3)
    one = collection_figure(results, "mvtec_loco", "small", FULL, detection_of_kind("structural"))
    assert one is not None
    assert one.mean == pytest.approx(75)
    run = next(run for run in results if run.dataset == "mvtec_ad")
    results[run] = metrics_of(None)
    assert mean_figure(results, "small", FULL, segmentation_of) == Measured(
        pytest.approx(40), None, 1, 32, 32
    )


def test_a_filled_table_has_ours_beside_the_paper_s() -> None:
    speeds = {"small": Speed(latency=Measured(250.0), throughput=Measured(5.0))}
    measurements = Measurements(whole_results(), speeds, {"small": Cost(8_060_000, 75.6e9)})
    cells = {}
    for number in (1, 2, 11):
        rows = rows_of(number, ("small",), Config())
        table = fill(number, rows, measurements, [])
        for label, row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                cells[number, label, column.key] = cell
    ours = "EfficientAD-S"
    assert cells[1, ours, "detection"].ours.mean == pytest.approx(25)
    assert cells[1, ours, "detection"].paper == Figure(95.4, 0.06)
    assert cells[1, ours, "latency"] == Cell(Measured(250.0), Figure(2.2, 0.01))
    assert cells[1, "AST", "segmentation"] == Cell(None, Figure(77.2))
    assert cells[2, ours, "mvtec_loco"].ours.mean == pytest.approx(35)
    assert cells[2, ours, "mvtec_loco"].paper == Figure(90.0)
    assert cells[2, ours, "logical"].ours.mean == pytest.approx(25)
    assert cells[11, ours, "parameters"].ours.mean == pytest.approx(8.06)
    assert cells[11, ours, "flop"].ours.mean == pytest.approx(75.6)
    assert cells[11, ours, "memory"] == Cell(None, Figure(100))


TABLE = Table(
    2,
    "A title",
    [Column("a", "A, %", 1), Column("b", "B_b", 0)],
    [
        ("S", [Cell(Measured(97.25, 0.333, 5, 2, 15), Figure(98.8)), Cell(None, None)]),
        ("M", [Cell(None, Figure(99.1, 0.2, "+ kNN")), Cell(Measured(12.4), None)]),
    ],
    ["A note."],
)


def test_tables_are_written_with_what_there_is() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "# Table 2: A title"
    assert lines[2] == "|  | A, %: ours | paper | B_b |"
    assert lines[4] == "| S | 97.2 ± 0.33 (2/15) | 98.8 | - |"
    assert lines[5] == "| M | - | 99.1 ± 0.2 + kNN | 12 |"
    assert lines[-1] == "- A note."

    rows = list(csv.DictReader(io.StringIO(csv_text(TABLE))))
    assert len(rows) == 4
    assert float(rows[0]["ours"]) == 97.25
    assert (rows[0]["categories"], rows[0]["categories_in_full"]) == ("2", "15")
    assert rows[1]["ours"] == rows[1]["paper"] == ""
    assert (rows[2]["paper_deviation"], rows[2]["paper_also"]) == ("0.2", "+ kNN")

    text = latex(TABLE)
    assert r"\begin{tabular}{lrrr}" in text
    assert r"\multicolumn{2}{c}{A, \%} & \multicolumn{1}{c}{B\_b} \\" in text
    assert r"S & 97.2 $\pm$ 0.33 (2/15) & 98.8 & -- \\" in text
    assert "% A note." in text


def test_each_run_is_told() -> None:
    results = whole_results()
    rows = list(csv.DictReader(io.StringIO(runs_csv(results))))
    assert len(rows) == len(results)
    assert rows[-1]["dataset"] == "mvtec_loco"
    assert rows[-1]["seed"] == "1"
    assert float(rows[-1]["au_spro"]) == 0.7
    assert float(rows[-1]["structural"]) == 0.75


def test_speed_is_the_benchmark_s(tmp_path: Path) -> None:
    found = [
        Measurement("small", "batch 1", 1, {OURS: Spread(0.002, 0.001, 0.003)}),
        Measurement("small", "batch 16", 16, {OURS: Spread(0.04, 0.03, 0.05)}),
        Measurement("medium", "train step", 1, {OURS: Spread(9.0, 9.0, 9.0)}),
    ]
    facts = {"device": "an abacus", "dtype": "float32"}
    starts = {"small": {OURS: StartUp(9.0, 3.0, 512_000_000, True)}}
    write_results(tmp_path, facts, found, costs={}, starts=starts)
    read = read_benchmark(tmp_path / "benchmark.json")
    assert read.measured_on == "an abacus, float32"
    small = Speed(Measured(pytest.approx(2.0)), Measured(pytest.approx(400)), Measured(512.0))
    assert read.speeds["small"] == small
    assert read.speeds["medium"] == Speed()
    (tmp_path / "other.json").write_text("[]")
    for name in ("other.json", "nowhere.json"):
        with pytest.raises(InputError, match=name):
            read_benchmark(tmp_path / name)
