"""Carrying a plan out, and the command itself."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from efficientad_jax.config import Config, DatasetConfig, ModelConfig, as_dict, replace
from efficientad_jax.errors import InputError
from efficientad_jax.reproduction import execution
from efficientad_jax.reproduction.execution import carry_out, read_metrics
from efficientad_jax.reproduction.plan import (
    FULL,
    Inputs,
    Run,
    Variant,
    configuration_of,
    planned_runs,
)
from tests.helpers.benchmark_trees import write_mvtec_ad
from tests.helpers.command import REPOSITORY, command
from tests.helpers.images import write_image

METRICS = {"detector": {"image_auroc": 0.5}}
STEPS = 3


def small_config(data_dir: Path, photographs: Path) -> Config:
    return Config(
        model=ModelConfig(input_height=128, input_width=128),
        dataset=DatasetConfig(data_dir=str(data_dir)),
        pretraining_images=str(photographs),
    )


def write_done(results: Path, run: Run, base: Config, inputs: Inputs) -> None:
    folder = results / run.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(as_dict(configuration_of(run, base, inputs))))
    (folder / "metrics.json").write_text(json.dumps(METRICS))


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

    def fit(config: Config, dataset: object, workdir: Path) -> NoReturn:
        trained.append(workdir)
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(execution, "fit_detector", fit)
    told = []
    failed = carry_out(runs, base, inputs, results, told.append)
    assert trained == [results / grid.name, results / pill.name]
    assert failed.keys() == set(runs[2:])
    assert "002.png" in failed[cable]
    assert failed[grid] == "RuntimeError: out of"
    assert "no detector.json" in failed[grid._replace(variant=sweep)]
    assert any(line.startswith(f"{cable.name}: failed: ") for line in told)


def test_results_of_another_configuration_are_refused(tmp_path: Path) -> None:
    base = small_config(tmp_path / "tfds", tmp_path)
    run = Run("visa", "pcb1", "small", FULL, 0)
    assert read_metrics(tmp_path, run, base, Inputs({}, {})) is None
    write_done(tmp_path, run, base, Inputs({"visa": Path("/elsewhere/visa")}, {}))
    assert read_metrics(tmp_path, run, base, Inputs({}, {})) == METRICS
    base = replace(base, {"train.steps": 7})
    with pytest.raises(InputError, match=r"train\.steps .*70000, not 7"):
        read_metrics(tmp_path, run, base, Inputs({}, {}))
    (tmp_path / run.name / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json"):
        read_metrics(tmp_path, run, base, Inputs({}, {}))


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
