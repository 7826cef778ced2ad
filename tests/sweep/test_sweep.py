"""Many trainings at once give the same detectors as one by one, also after kills."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import Config, as_dict, replace
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.fit import fit_detector
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.sweep import execution
from efficientad_jax.sweep.execution import Outcome, carry_out, is_done
from efficientad_jax.sweep.plan import SweepRun, planned_runs
from efficientad_jax.sweep.status import Status
from tests.helpers.benchmark_trees import write_mvtec_ad
from tests.helpers.command import REPOSITORY

pytestmark = pytest.mark.slow

EIGHT = [f"part{i}" for i in range(8)]
FIELDS = {
    "model.input_height": 128,
    "model.input_width": 128,
    "train.steps": 3,
    "train.steps_per_dispatch": 2,
    "train.checkpoint_every": 1,
}


def make_tree(folder: Path, categories: list[str]) -> Path:
    for category in categories:
        write_mvtec_ad(folder / "parts", category)
    # Its few channels make for short tests.
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    save_teacher(folder / "teacher.safetensors", Teacher("small", 32, params, {}))
    return folder


def small_config(tree: Path, **fields: object) -> Config:
    places = {
        "dataset.root": str(tree / "parts"),
        "dataset.data_dir": str(tree / "tfds"),
        "teacher": str(tree / "teacher.safetensors"),
    }
    return replace(recipes.folder(), FIELDS | fields | places)


def environment_of(devices: int) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "")
    return os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    }


def start(tree: Path, workdir: Path, *flags: str, devices: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.sweep", "--config=configs/folder.py"),
            *(f"--config.{name}={value}" for name, value in FIELDS.items()),
            f"--config.dataset.root={tree / 'parts'}",
            f"--config.dataset.data_dir={tree / 'tfds'}",
            f"--config.teacher={tree / 'teacher.safetensors'}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=REPOSITORY,
        env=environment_of(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    output, errors = process.communicate()
    assert process.returncode == status, output + errors
    assert "Traceback" not in errors, errors
    return output, errors


def arrays(detector: Path) -> Path:
    """The file of a detector's arrays, which is named after a digest of them."""
    (file,) = detector.glob("*.safetensors")
    return file


def assert_the_same_detector(ours: Path, theirs: Path) -> None:
    assert arrays(ours).name == arrays(theirs).name
    assert arrays(ours).read_bytes() == arrays(theirs).read_bytes()
    records = [json.loads((detector / "detector.json").read_text()) for detector in (ours, theirs)]
    for record in records:
        record.pop("metrics")
    assert records[0] == records[1]


def changes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


SEPARATELY = """
import json, pathlib, sys
from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.fit import fit_detector
for workdir, config in json.load(sys.stdin).items():
    config = read_config(config)
    fit_detector(config, load_configured_dataset(config), pathlib.Path(workdir))
"""


def test_eight_devices_end_with_the_detectors_of_eight_separate_runs(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, EIGHT)
    losses = {"losses.autoencoder": True, "train.steps": 2, "train.checkpoint_every": 2}
    flags = [f"--config.{name}={value}" for name, value in losses.items()]
    output, errors = finish(start(tree, tmp_path / "sweep", *flags, "--seeds=1", devices=8))
    assert "of 8 of 8 trainings" in output
    # All of them trained at once.
    messages = re.findall(r"(part\d)/seed0: (training|evaluating)", errors)
    assert [stage for _, stage in messages[:8]] == ["training"] * 8

    runs = planned_runs(small_config(tree, **losses), ["all"], 1)
    given = json.dumps({str(tmp_path / "single" / r.name): as_dict(r.config) for r in runs})
    # XLA sums up in parts, of which there are the more, the more devices it simulates.
    separately = [sys.executable, "-c", SEPARATELY]
    subprocess.run(separately, input=given, text=True, env=environment_of(8), check=True)
    for run in runs:
        single, together = tmp_path / "single" / run.name, tmp_path / "sweep" / run.name
        assert_the_same_detector(together / "detector", single / "detector")
        assert (together / "report.html").is_file()
        assert not (together / "checkpoints").exists()


def test_a_failure_affects_no_other_run_and_is_made_up_for(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, ["part0", "part1", "part2"])
    broken = tree / "parts/part1/train/good/002.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    sweep = tmp_path / "sweep"
    output, errors = finish(start(tree, sweep, devices=2), status=1)
    (line,) = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: part1/seed0: ")
    assert "002.png" in line
    assert "of 2 of 3 trainings" in output
    assert "part1" not in output
    done = [sweep / "part0", sweep / "part2"]
    before = [changes(folder) for folder in done]

    broken.write_bytes(whole)
    output, errors = finish(start(tree, sweep, devices=2))
    assert "of 3 of 3 trainings" in output
    assert re.findall(r"^(\S+): preparing", errors, re.MULTILINE) == ["part1/seed0"]
    assert [changes(folder) for folder in done] == before
    rows = (sweep / "figures.csv").read_text().splitlines()
    assert rows[0] == "category,seed,image_auroc,pixel_auroc,au_pro,au_spro"
    assert [row.split(",")[:2] for row in rows[1:]] == [[f"part{i}", "0"] for i in range(3)]


def test_a_sweep_that_is_stopped_and_killed_resumes_to_the_same_detectors(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, ["part0", "part1"])
    # So many images that it needs another program.
    good = tree / "parts/part1/train/good"
    for i in range(150):
        shutil.copy(good / f"{i % 4:03}.png", good / f"copy{i:03}.png")
    steps = "--config.train.steps=6"
    undisturbed = start(tree, tmp_path / "undisturbed", steps, devices=2)
    sweep = tmp_path / "sweep"
    for number, step in ((signal.SIGTERM, 2), (signal.SIGKILL, 4)):
        process = start(tree, sweep, steps, devices=2)
        while not (sweep / f"part1/seed0/checkpoints/{step}").is_dir():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate()
        if number == signal.SIGTERM:
            assert process.returncode == 75, errors
            assert errors.splitlines()[-1] == (
                "stopped by SIGTERM; the same command resumes from there"
            )
        assert not any(is_done(sweep / f"part{i}/seed0") for i in range(2))

    _, errors = finish(start(tree, sweep, steps, devices=2))
    begun = dict(re.findall(r"(part\d)/seed0: training from step (\d+)", errors))
    assert int(begun["part1"]) >= 4
    finish(undisturbed)
    for category in ("part0", "part1"):
        detector = f"{category}/seed0/detector"
        assert_the_same_detector(sweep / detector, tmp_path / "undisturbed" / detector)


def test_processes_share_a_sweep(tmp_path: Path) -> None:
    """Without knowing of each other, and two that JAX has joined."""
    tree = make_tree(tmp_path, ["part0", "part1"])
    shared = [start(tree, tmp_path / "shared", "--seeds=2") for _ in range(2)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    messages = [finish(process)[1] for process in shared]
    done = re.findall(r"^(\S+): training from step 0$", "".join(messages), re.MULTILINE)
    assert sorted(done) == ["part0/seed0", "part0/seed1", "part1/seed0", "part1/seed1"]

    of_two = [f"--coordinator={address}", "--processes=2", "--seeds=2"]
    joined = [start(tree, tmp_path / "joined", *of_two, f"--process={i}") for i in range(2)]
    outputs = [finish(process) for process in joined]
    assert all("of 4 of 4 trainings" in output for output, _ in outputs)
    done = re.findall(r"^(\S+): training from step 0$", "".join(e for _, e in outputs), re.M)
    assert sorted(done) == ["part0/seed0", "part0/seed1", "part1/seed0", "part1/seed1"]
    for name in done:
        assert_the_same_detector(
            tmp_path / "shared" / name / "detector", tmp_path / "joined" / name / "detector"
        )


def carried_out(
    runs: list[SweepRun], workdir: Path, wait_for_others: bool = False
) -> tuple[Outcome, dict[str, Status]]:
    statuses: dict[str, Status] = {}
    return carry_out(runs, workdir, statuses.__setitem__, wait_for_others=wait_for_others), statuses


def test_a_training_that_diverges_or_breaks_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree(tmp_path, ["part0", "part1", "part2"])
    runs = planned_runs(small_config(tree), ["all"], 1)
    make_steps, calls = execution.train_side_by_side, []

    def disturbed(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")
        ended = make_steps(*arguments, **options)  # pyright: ignore[reportArgumentType]
        if len(calls) > 1:
            return ended
        return [
            (state, jax.tree.map(lambda x: x * jnp.float32(np.nan), losses))
            for state, losses in ended
        ]

    monkeypatch.setattr(execution, "train_side_by_side", disturbed)
    outcome, statuses = carried_out(runs, tmp_path / "sweep")
    assert outcome.failed.keys() == {"part0/seed0", "part1/seed0"}
    assert "the loss 'hard' is nan at step 1" in outcome.failed["part0/seed0"]
    assert outcome.failed["part1/seed0"] == "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert statuses["part2/seed0"].stage == "done"
    assert is_done(tmp_path / "sweep/part2/seed0")

    # A folder of another configuration is refused, and is none of this sweep's.
    other = planned_runs(small_config(tree, **{"train.learning_rate": 0.5}), ["part2"], 1)
    outcome, _ = carried_out(other, tmp_path / "sweep")
    assert "belongs to a configuration with other" in outcome.failed["part2/seed0"]


def test_an_evaluation_that_is_missing_is_made_up_for(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, ["part0"])
    (run,) = planned_runs(small_config(tree), ["all"], 1)
    workdir = tmp_path / "sweep"
    fit_detector(run.config, load_configured_dataset(run.config), workdir / run.name)
    before = arrays(workdir / run.name / "detector").stat().st_mtime_ns
    outcome, statuses = carried_out([run], workdir)
    assert outcome == Outcome({}, [])
    assert statuses[run.name].stage == "done"
    assert statuses[run.name].note.startswith("image AU-ROC ")
    assert (workdir / run.name / "metrics.json").is_file()
    assert arrays(workdir / run.name / "detector").stat().st_mtime_ns == before
