"""Tests running a plan, and the command."""

import csv
import json
import re
import signal
import time
from pathlib import Path

import pytest

from efficientad_jax.config import Config, DatasetConfig, ModelConfig, as_dict, replace
from efficientad_jax.errors import InputError
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.reproduction.execution import planned_jobs
from efficientad_jax.reproduction.plan import (
    FULL,
    Inputs,
    Run,
    Variant,
    configuration_of,
    planned_runs,
)
from efficientad_jax.reproduction.results import Results
from efficientad_jax.scheduling.job import Event, last_event
from tests.helpers.command import command
from tests.helpers.dataset_trees import write_mvtec_ad
from tests.helpers.forking import Fork, fork
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


@pytest.mark.slow
def test_jobs_train_what_is_missing_and_a_failing_one_is_named(tmp_path: Path) -> None:
    root = tmp_path / "mvtec_ad"
    for category in ("bottle", "cable", "grid"):
        write_mvtec_ad(root, category)
    broken = root / "cable/train/good/002.png"
    broken.write_bytes(broken.read_bytes()[:-100])
    base = small_config(tmp_path / "tfds", write_image(tmp_path / "photographs/0.png").parent)
    base = replace(base, {"train.steps": 1})
    inputs = Inputs({"mvtec_ad": root}, {})
    other_quantile = Variant((("calibration.q_a", 0.5),))
    categories = {"mvtec_ad": ["bottle", "cable", "grid"]}
    runs = planned_runs(categories, [("small", FULL), ("small", other_quantile)], [0])
    bottle, cable, grid = (r for r in runs if r.variant == FULL)
    for run in (bottle, bottle._replace(variant=other_quantile)):
        write_done(tmp_path / "results", run, base, inputs)
    results = Results(tmp_path / "results", base, inputs)
    by_job, jobs, unusable = planned_jobs(runs, results, cache_gb=0.0)
    assert by_job == {
        run.name: [run, run._replace(variant=other_quantile)] for run in (cable, grid)
    }
    assert not unusable
    events: list[Event] = []
    ends = [last_event(job, events.append) for job in jobs]
    assert [event.stage for event in events].count("preparing") == 2
    assert [event.stage for event in ends] == ["failed", "done"]
    assert "002.png" in ends[0].text
    assert results.read(cable) is None
    # The detector of the one run is evaluated with the quantile of the other.
    trained, recalibrated = (results.read(run) for run in by_job[grid.name])
    assert trained is not None
    assert recalibrated is not None
    assert ends[1].text == f"image AU-ROC {trained['detector']['image_auroc']:.4f}"
    assert recalibrated["detector"].keys() == trained["detector"].keys()
    assert not planned_jobs(by_job[grid.name], results, cache_gb=0.0)[1]


def test_results_of_another_configuration_are_refused(tmp_path: Path) -> None:
    base = small_config(tmp_path / "tfds", tmp_path)
    run = Run("visa", "pcb1", "small", FULL, 0)
    results = Results(tmp_path, base, Inputs({}, {}))
    assert results.read(run) is None
    write_done(tmp_path, run, base, Inputs({"visa": Path("/elsewhere/visa")}, {}))
    assert results.read(run) == METRICS
    results = Results(tmp_path, replace(base, {"train.steps": 7}), Inputs({}, {}))
    with pytest.raises(InputError, match=r"train\.steps .*70000, not 7"):
        results.read(run)
    (tmp_path / run.name / "metrics.json").write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json"):
        results.read(run)


def test_results_of_other_commands_count_by_what_made_them(tmp_path: Path) -> None:
    base = small_config(tmp_path / "tfds", tmp_path)
    run = Run("visa", "pcb1", "small", FULL, 0)
    sha256 = load_teacher("", "small").sha256
    folder = tmp_path / "sweep" / "pcb1" / "seed0"
    folder.mkdir(parents=True)
    config = configuration_of(run, base, Inputs({"visa": Path("/elsewhere/visa")}, {}))
    config = replace(config, {"teacher": "/moved/teacher.safetensors"})
    (folder / "config.json").write_text(json.dumps(as_dict(config)))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "teacher.sha256").write_text(f"{sha256}\n")

    def read(**changes: object) -> dict[str, object] | None:
        others = [tmp_path / "sweep"]
        inputs = Inputs({}, {})
        return Results(tmp_path / "own", replace(base, changes), inputs, others=others).read(run)

    assert read() == METRICS
    assert Results(tmp_path / "own", base, Inputs({}, {})).read(run) is None
    assert read(**{"losses.p_hard": 0.9}) is None
    (folder / "teacher.sha256").write_text("another\n")
    assert read() is None
    with pytest.raises(InputError, match=r"--also=.*nowhere: no such folder"):
        Results(tmp_path, base, Inputs({}, {}), others=[tmp_path / "nowhere"])


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


@pytest.mark.slow
def test_a_killed_reproduction_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    for category in ("bottle", "cable"):
        write_mvtec_ad(tmp_path / "data" / "mvtec_ad", category)
    write_image(tmp_path / "photographs" / "0.png")
    folders = [
        tmp_path / "results" / Run("mvtec_ad", category, "small", FULL, 0).name
        for category in ("bottle", "cable")
    ]
    log = tmp_path / "log"

    def start() -> Fork:
        reproduce = ["reproduce", *arguments(tmp_path)]
        return fork("tests.helpers.without_ray", reproduce, output=log, errors=log)

    process = start()
    while process.is_alive() and not (folders[1] / "checkpoints" / "1").is_dir():
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL, log.read_text()
    assert not (folders[1] / "metrics.json").exists()
    before = states(folders[0])
    assert folders[0] / "metrics.json" in before
    assert not (folders[0] / "checkpoints").exists()

    log.unlink()
    status = start().wait()
    errors = log.read_text()
    assert status == 0, errors
    assert states(folders[0]) == before
    assert re.search(r"cable/small/full/seed0: training from step [1-9]", errors)
    assert "bottle/small" not in errors
    assert "absent: VisA" in errors
    assert "absent: MVTec AD: no folder capsule" in errors

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


@pytest.mark.slow
def test_a_mistake_is_one_line_before_anything_is_run(tmp_path: Path) -> None:
    write_mvtec_ad(tmp_path / "data" / "mvtec_ad", "bottle")
    result = command("reproduce", *arguments(tmp_path), "--config.pretraining_images=")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "config.losses.penalty" in line
    assert "config.pretraining_images" in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "results").exists()
