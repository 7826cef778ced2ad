"""Runs in separate processes that are killed or asked to stop.

`EFFICIENTAD_KILLS` says how often a run is killed, 2 times unless given.
"""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.detectors import random_params
from tests.helpers.forking import fork

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("EFFICIENTAD_KILLS", "2"))


@pytest.fixture
def start(tmp_path):
    """Starts a training of few steps in a given work directory, a checkpoint after every step."""
    rng = np.random.default_rng(0)
    for split in ("train/good", "test/good"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(90, 130, (100 + i, 120), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    # Few features keep checkpoints small; 32 is what the C++ convolutions need.
    teacher = tmp_path / "teacher.safetensors"
    params = random_params(PatchDescriptionNetwork("small", 32), (64, 64))
    save_teacher(teacher, Teacher("small", 32, params, {}))

    def start(workdir, steps):
        arguments = [
            "--config=configs/folder.py",
            f"--config.teacher={teacher}",
            f"--config.dataset.root={tmp_path / 'data'}",
            f"--config.dataset.data_dir={tmp_path / 'prepared' / workdir.name}",
            "--config.model.input_height=128",
            "--config.model.input_width=128",
            "--config.losses.autoencoder=True",
            f"--config.train.steps={steps}",
            "--config.train.steps_per_dispatch=1",
            "--config.train.checkpoint_every=1",
            f"--workdir={workdir}",
        ]
        output = start.output
        return fork("experiments.train", arguments, output=output, errors=output)

    start.output = tmp_path / "output"
    return start


def result(workdir):
    """Digests of the whole last state and of the detector's arrays."""
    record = json.loads((workdir / "detector" / "detector.json").read_text())
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    (saved,) = (workdir / "checkpoints" / str(newest) / "record").glob("metadata")
    return newest, json.loads(saved.read_text())["sha256"], record["arrays_sha256"]


def kill_somewhere(process, workdir, rng):
    """Kills a run at its start, between checkpoints or inside the writing of one.

    Returns:
      Whether it was killed before it ended, and whether something was half-written.
    """
    checkpoints = workdir / "checkpoints"
    wanted = rng.choice(["anywhere", "while writing", "while writing"])
    before = set(os.listdir(checkpoints)) if checkpoints.is_dir() else set()
    until = time.monotonic() + rng.uniform(0, 8)
    while process.is_alive():
        now = set(os.listdir(checkpoints)) if checkpoints.is_dir() else set()
        new = {name for name in now - before if name.isdecimal()}
        if wanted == "while writing" and any("tmp" in name for name in now - before):
            time.sleep(rng.uniform(0, 0.05))
            break
        # Two new ones at the most, so that the run lasts for all the kills.
        if len(new) >= 2 or (wanted == "anywhere" and time.monotonic() > until):
            break
        time.sleep(0.001)
    process.kill()
    half = checkpoints.is_dir() and any("tmp" in name for name in os.listdir(checkpoints))
    return process.wait() == -signal.SIGKILL, half


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(start, tmp_path):
    steps, rng = 3 * KILLS + 3, random.Random(0)
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(undisturbed, steps).wait() == 0, start.output.read_text()
    killed = [kill_somewhere(start(workdir, steps), workdir, rng) for _ in range(KILLS)]
    assert all(was for was, _ in killed)
    assert any(half for _, half in killed)
    assert not (workdir / "detector").exists()
    assert start(workdir, steps).wait() == 0, start.output.read_text()
    assert result(workdir) == result(undisturbed)
    assert not any("tmp" in path.name for path in (workdir / "checkpoints").iterdir())
    assert "Traceback" not in start.output.read_text()


def test_sigterm_saves_and_exits_with_a_status_of_its_own(start, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, 1000)
    while not any(p.name.isdecimal() for p in workdir.glob("checkpoints/*")):
        assert process.is_alive(), start.output.read_text()
        time.sleep(0.01)
    process.kill(signal.SIGTERM)
    assert process.wait() == 75
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    (line,) = [x for x in start.output.read_text().splitlines() if x.startswith("stopped by")]
    assert line == f"stopped by SIGTERM after step {newest}; the same command resumes from there"
    # Also while it is starting, when there is nothing new to save. A fork handles signals by then.
    process = start(workdir, 1000)
    time.sleep(0.5)
    process.kill(signal.SIGTERM)
    assert process.wait() == 75
    assert "Traceback" not in start.output.read_text()
