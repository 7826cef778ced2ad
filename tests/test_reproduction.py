"""The plan of the paper's tables, what is made of its results, and the command itself."""

import csv
import importlib
import io
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import paper
from efficientad_jax import paper_results
from efficientad_jax.benchmark.cost import Cost
from efficientad_jax.benchmark.implementations import OURS, random_detector, random_images
from efficientad_jax.benchmark.results import Measurement, write_results
from efficientad_jax.benchmark.timing import Spread
from efficientad_jax.calibration import calibrate
from efficientad_jax.detector import Detector, DetectorSpec
from efficientad_jax.errors import InputError
from efficientad_jax.paper_results import Figure
from efficientad_jax.recalibration import CalibrationChoice, recalibrated_scores
from efficientad_jax.reproduction import execution
from efficientad_jax.reproduction.aggregation import (
    Measured,
    collection_figure,
    detection,
    detection_of_kind,
    mean_figure,
    segmentation_of,
)
from efficientad_jax.reproduction.collections_on_disk import (
    COLLECTIONS,
    check_categories,
    find_collection,
)
from efficientad_jax.reproduction.execution import carry_out, read_metrics
from efficientad_jax.reproduction.plan import (
    FULL,
    Inputs,
    Run,
    Variant,
    configuration_of,
    planned_runs,
    variant_of,
)
from efficientad_jax.reproduction.rendering import csv_text, latex, markdown, runs_csv
from efficientad_jax.reproduction.speed import Speed, read_benchmark
from efficientad_jax.reproduction.tables import (
    TABLES,
    Cell,
    Column,
    Measurements,
    Table,
    detectors_of,
    fill,
    rows_of,
)
from tests.benchmark_trees import write_image, write_mvtec_ad, write_mvtec_loco
from tests.command import REPOSITORY, command

SIZE = (128, 128)
NO_INPUTS = Inputs({}, {})


# What the paper reports.


def test_the_paper_s_tables_agree_with_each_other() -> None:
    small, medium = (paper_results.EFFICIENT_AD[size] for size in ("small", "medium"))
    for size, method in paper_results.EFFICIENT_AD.items():
        figures = paper_results.COLLECTIONS[size]
        assert figures["mean"].mean == method.detection.mean
        three = [figures[name].mean for name in COLLECTIONS]
        assert statistics.fmean(three) == pytest.approx(figures["mean"].mean, abs=0.1)
    assert paper_results.CUMULATIVE["+ pretraining penalty"].mean == small.detection.mean
    assert paper_results.CUMULATIVE["EfficientAD-M"].mean == medium.detection.mean
    assert paper_results.ISOLATED["EfficientAD-S"].mean == small.detection.mean
    for what, default in (("a", 0.9), ("b", 0.995), ("p_hard", 0.999)):
        assert paper_results.SWEEPS[what][default].mean == medium.detection.mean


def test_figures_are_written_as_they_are_in_print() -> None:
    assert str(Figure(95.4, 0.06)) == "95.4 ± 0.06"
    assert str(paper_results.OTHER_METHODS["GCAD"].segmentation) == "88.0"
    assert str(paper_results.OTHER_METHODS["GCAD"].latency) == "11"
    assert str(paper_results.OTHER_METHODS["PatchCore"].flop) == "41 + kNN"


# The plan.


@pytest.mark.parametrize("dataset", COLLECTIONS)
def test_a_run_has_the_benchmark_s_own_configuration(dataset: str) -> None:
    category = COLLECTIONS[dataset].benchmark.categories[-1]
    run = Run(dataset, category, "small", FULL, 0)
    expected = importlib.import_module(f"configs.{dataset}").get_config(category)
    found = configuration_of(run, paper.get_config(), NO_INPUTS)
    assert found.to_dict() == expected.to_dict()


def test_a_variant_changes_its_fields_alone() -> None:
    base = paper.get_config()
    before = base.to_dict()
    variant = variant_of(base, {"losses.penalty": False, "calibration.q_a": 0.5})
    run = Run("visa", "pcb1", "medium", variant, 3)
    assert run.name == "visa/pcb1/medium/q_a=0.5,penalty=False/seed3"
    assert run.trained.name == "visa/pcb1/medium/penalty=False/seed3"
    inputs = Inputs({"visa": Path("/data/visa")}, {"medium": "m.safetensors"})
    found = configuration_of(run, base, inputs)
    expected = ConfigDict(before)
    expected.update({"seed": 3, "category": "pcb1", "teacher": "m.safetensors"})
    expected.dataset.update({"name": "visa", "root": "/data/visa"})
    expected.model.size = "medium"
    expected.losses.penalty = False
    expected.calibration.q_a = 0.5
    assert found.to_dict() == expected.to_dict()
    assert base.to_dict() == before


def variants(number: int) -> list[tuple[str, str]]:
    rows = rows_of(number, TABLES[number], paper.get_config())
    return [(size[0], variant.name) for size, variant in detectors_of(number, rows)]


def test_each_table_needs_its_detectors() -> None:
    assert variants(1) == variants(2) == [("s", "full"), ("m", "full")]
    assert variants(4) == [
        ("s", "normalize=False,p_hard=0.0,penalty=False"),
        ("s", "p_hard=0.0,penalty=False"),
        ("s", "penalty=False"),
        ("s", "full"),
        ("m", "full"),
    ]
    assert variants(5) == [
        ("s", "full"),
        ("s", "normalize=False"),
        ("s", "p_hard=0.0"),
        ("s", "penalty=False"),
    ]
    sweep = variants(3)
    assert {size for size, _ in sweep} == {"m"}
    assert [name for _, name in sweep].count("full") == 3  # the default of a, of b and of p_hard
    assert len(set(sweep)) == 16
    assert variants(11) == []


def test_quantiles_train_nothing_and_come_after_what_they_need() -> None:
    rows = rows_of(3, ("medium",), paper.get_config())
    runs = planned_runs({"visa": ["pcb1", "pcb2"]}, detectors_of(3, rows), [0, 1])
    assert len(runs) == len(set(runs)) == 16 * 2 * 2
    assert sum(run == run.trained for run in runs) == 6 * 2 * 2  # p_hard has six values
    for i, run in enumerate(runs):
        assert run.trained in runs[: i + 1]
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_a_detector_is_planned_although_no_row_shows_it() -> None:
    runs = planned_runs({"visa": ["pcb1"]}, [("small", Variant((("calibration.q_a", 0.5),)))], [0])
    assert [run.variant.name for run in runs] == ["full", "q_a=0.5"]


# Data on disk.


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "mvtec_ad", "cable")
    write_mvtec_loco(tmp_path / "mvtec_loco_anomaly_detection" / "inner", "pushpins")
    found = find_collection(tmp_path, "mvtec_ad", ("bottle", "cable"))
    assert found.root == tmp_path / "mvtec_ad"
    assert found.categories == ("cable",)
    assert "MVTec AD: no folder bottle in" in found.absent[0]
    assert find_collection(tmp_path, "mvtec_loco", ("pushpins",)).categories == ("pushpins",)
    assert find_collection(tmp_path, "visa", ("bottle",)).absent == ()
    (line,) = find_collection(tmp_path, "visa").absent
    assert "VisA" in line
    assert str(tmp_path) in line
    (tmp_path / "VisA_20220922.tar").write_bytes(b"")
    assert find_collection(tmp_path, "visa", ("pcb1",)) == (
        tmp_path / "VisA_20220922.tar",
        ("pcb1",),
        (),
    )
    with pytest.raises(InputError, match="botle"):
        check_categories(("cable", "botle"))


# Scores.


def test_scores_of_other_quantiles_are_those_of_a_detector_calibrated_so() -> None:
    params, calibration = random_detector("small", SIZE)
    spec = DetectorSpec("small", 384, SIZE, False, "float32", True)
    detector = Detector(spec, params, calibration, {}, {})
    validation, test = random_images(2, SIZE), random_images(4, SIZE)[2:]
    choices = [CalibrationChoice(0.5, 0.99, True), CalibrationChoice(0.9, 0.995, False)]
    found = recalibrated_scores(detector, validation, test, choices)
    for choice, scores in zip(choices, found, strict=True):
        expected = calibrate(detector.networks, params, validation, **choice._asdict())
        own = Detector(spec, params, expected, {}, {}).detect(test).scores
        np.testing.assert_allclose(scores, own, rtol=1e-4)
    assert not np.allclose(found[0], found[1])


# From runs to cells.


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
        rows = rows_of(number, ("small",), paper.get_config())
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
    write_results(tmp_path, {"device": "an abacus", "dtype": "float32"}, found, {}, {})
    read = read_benchmark(tmp_path / "benchmark.json")
    assert read.measured_on == "an abacus, float32"
    assert read.speeds["small"] == Speed(Measured(pytest.approx(2.0)), Measured(pytest.approx(400)))
    assert read.speeds["medium"] == Speed()
    (tmp_path / "other.json").write_text("[]")
    for name in ("other.json", "nowhere.json"):
        with pytest.raises(InputError, match=name):
            read_benchmark(tmp_path / name)


# Carrying out.


def small_config(data_dir: Path, photographs: Path) -> ConfigDict:
    config = paper.get_config()
    config.model.input_height = config.model.input_width = 128
    config.dataset.data_dir = str(data_dir)
    config.pretraining_images = str(photographs)
    return config


def write_done(results: Path, run: Run, base: ConfigDict, inputs: Inputs) -> None:
    folder = results / run.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(configuration_of(run, base, inputs).to_json())
    (folder / "metrics.json").write_text(json.dumps(metrics_of(0.5)))


def test_a_failing_run_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "mvtec_ad"
    for category in ("bottle", "cable", "grid", "pill"):
        write_mvtec_ad(root, category)
    broken = root / "cable/train/good/002.png"
    broken.write_bytes(broken.read_bytes()[:-100])
    base = small_config(tmp_path / "tfds", write_image(tmp_path / "photographs/0.png").parent)
    inputs = Inputs({"mvtec_ad": root}, {})
    results = tmp_path / "results"
    sweep = Variant((("calibration.q_a", 0.5),))
    categories = {"mvtec_ad": ["bottle", "cable", "grid", "pill"]}
    runs = planned_runs(categories, [("small", FULL), ("small", sweep)], [0])
    bottle, cable, grid, pill = (r for r in runs if r.variant == FULL)
    for run in (bottle, bottle._replace(variant=sweep)):
        write_done(results, run, base, inputs)
    trained = []

    def fit(config: ConfigDict, dataset: object, workdir: Path) -> None:
        trained.append(workdir)
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(execution, "fit_detector", fit)
    told = []
    outcome = carry_out(runs, base, inputs, results, told.append)
    assert not outcome.stopped
    assert trained == [results / grid.name, results / pill.name]
    assert outcome.failed.keys() == set(runs[2:])
    assert "002.png" in outcome.failed[cable]
    assert outcome.failed[grid] == "RuntimeError: out of"
    assert "no detector.json" in outcome.failed[grid._replace(variant=sweep)]
    assert any(line.startswith(f"{cable.name}: failed: ") for line in told)

    # Ctrl-C in a training ends the plan.
    trained.clear()

    def stop(config: ConfigDict, dataset: object, workdir: Path) -> None:
        trained.append(workdir)

    monkeypatch.setattr(execution, "fit_detector", stop)
    assert carry_out(runs[4:], base, inputs, results, told.append).stopped
    assert trained == [results / grid.name]


def test_results_of_another_configuration_are_refused(tmp_path: Path) -> None:
    base = small_config(tmp_path / "tfds", tmp_path)
    run = Run("visa", "pcb1", "small", FULL, 0)
    assert read_metrics(tmp_path, run, base, NO_INPUTS) is None
    write_done(tmp_path, run, base, Inputs({"visa": Path("/elsewhere/visa")}, {}))
    assert read_metrics(tmp_path, run, base, NO_INPUTS) == metrics_of(0.5)
    base.train.steps = 7
    with pytest.raises(InputError, match=r"train\.steps .*70000, not 7"):
        read_metrics(tmp_path, run, base, NO_INPUTS)
    (tmp_path / run.name / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json"):
        read_metrics(tmp_path, run, base, NO_INPUTS)


# The command.

STEPS = 3


def arguments(tmp_path: Path) -> list[str]:
    return [
        "--table=2",
        f"--data={tmp_path / 'data'}",
        f"--results={tmp_path / 'results'}",
        "--sizes=small",
        "--seeds=0",
        f"--steps={STEPS}",
        "--config.train.steps_per_dispatch=1",
        "--config.train.checkpoint_every=1",
        "--config.model.input_height=128",
        "--config.model.input_width=128",
        f"--config.dataset.data_dir={tmp_path / 'tfds'}",
        f"--config.pretraining_images={tmp_path / 'photographs'}",
    ]


def states(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_killed_reproduction_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    for category in ("bottle", "cable"):
        write_mvtec_ad(tmp_path / "data" / "mvtec_ad", category)
    write_image(tmp_path / "photographs" / "0.png")
    folders = [
        tmp_path / "results" / Run("mvtec_ad", category, "small", FULL, 0).name
        for category in ("bottle", "cable")
    ]
    reproduce = [sys.executable, "-m", "experiments.reproduce", *arguments(tmp_path)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(reproduce, cwd=REPOSITORY, stdout=log, stderr=log)
        try:
            while process.poll() is None and not (folders[1] / "checkpoints" / "1").is_dir():
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (folders[1] / "metrics.json").exists()
    before = states(folders[0])
    assert folders[0] / "metrics.json" in before
    assert not (folders[0] / "checkpoints").exists()

    result = command("reproduce", *arguments(tmp_path))
    assert result.returncode == 0, result.stderr
    assert states(folders[0]) == before
    assert "bottle" not in result.stdout.partition("#")[0]
    first_progress = re.search(rf"(\d+)/{STEPS} ", result.stderr)
    assert first_progress is not None
    assert int(first_progress[1]) >= 1
    assert "absent: VisA" in result.stderr
    assert "absent: MVTec AD: no folder capsule" in result.stderr

    values = [
        json.loads((folder / "metrics.json").read_text())["detector"]["image_auroc"]
        for folder in folders
    ]
    rows = csv.DictReader((tmp_path / "results" / "table_2.csv").read_text().splitlines())
    cells = {row["column"]: row for row in rows}
    assert float(cells["mvtec_ad"]["ours"]) == pytest.approx(50 * sum(values))
    assert cells["mvtec_ad"]["paper"] == "98.8"
    assert cells["visa"]["ours"] == cells["mean"]["ours"] == ""
    assert "(2/15)" in (tmp_path / "results" / "table_2.md").read_text()
    assert "EfficientAD-S" in (tmp_path / "results" / "table_2.tex").read_text()


def test_a_mistake_is_one_line_before_anything_is_run(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "data" / "mvtec_ad", "bottle")
    result = command("reproduce", *arguments(tmp_path), "--config.pretraining_images=")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "config.losses.penalty" in line
    assert "config.pretraining_images" in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()
