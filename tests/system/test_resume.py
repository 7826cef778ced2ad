"""Runs in separate processes that are killed or asked to stop.

`EFFICIENTAD_KILLS` says how often a run is killed, 2 times unless given.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.detectors import random_params

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("EFFICIENTAD_KILLS", "2"))
REPOSITORY = Path(__file__).resolve().parents[2]

# Imports what takes long once, and forks a process for each line: `python -m experiments.train` of
# these arguments. It says the process's id, and how it ended.
FORKING = """
import json, os, runpy, sys
import absl.app, grain, jax, ml_collections, tensorflow_datasets
import efficientad_jax.fitting.fit_detector

for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        output = os.open(task["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.argv = ["experiments/train.py", *task["arguments"]]
        runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Run(NamedTuple):
    """A forked process."""

    parent: subprocess.Popen
    pid: int

    def is_alive(self):
        return not select.select([self.parent.stdout], [], [], 0)[0]

    def kill(self, number=signal.SIGKILL):
        if self.is_alive():
            os.kill(self.pid, number)


@pytest.fixture
def forking(tmp_path):
    environment = os.environ | {
        # The runs of one test compile the same program.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-u", "-c", FORKING]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=pipe, stdout=pipe, text=True
    ) as parent:
        yield parent
        parent.stdin.close()


@pytest.fixture
def start(forking, tmp_path):
    """Starts a training of few steps in a given work directory, a checkpoint after every step."""
    rng = np.random.default_rng(0)
    for split in ("train/good", "test/good"):
        folder = tmp_path / "data" / split
        folder.mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(90, 130, (100 + i, 120), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")

    # Few features keep checkpoints small; 32 is what the student needs for the C++ convolutions.
    teacher = tmp_path / "teacher.safetensors"
    params = random_params(PatchDescriptionNetwork("small", 16), (64, 64))
    save_teacher(teacher, Teacher("small", 16, params, {}))

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
        task = {"arguments": arguments, "output": str(start.output)}
        print(json.dumps(task), file=forking.stdin, flush=True)
        return Run(forking, int(forking.stdout.readline()))

    start.output = tmp_path / "output"
    return start


def finish(process):
    """Waits for its end; its exit status, negative for a signal."""
    return int(process.parent.stdout.readline())


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
    return finish(process) == -signal.SIGKILL, half


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(start, tmp_path):
    steps, rng = 3 * KILLS + 3, random.Random(0)
    undisturbed, workdir = tmp_path / "undisturbed", tmp_path / "killed"
    assert finish(start(undisturbed, steps)) == 0, start.output.read_text()
    killed = [kill_somewhere(start(workdir, steps), workdir, rng) for _ in range(KILLS)]
    assert all(was for was, _ in killed)
    assert any(half for _, half in killed)
    assert not (workdir / "detector").exists()
    assert finish(start(workdir, steps)) == 0, start.output.read_text()
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
    assert finish(process) == 75
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal())
    (line,) = [x for x in start.output.read_text().splitlines() if x.startswith("stopped by")]
    assert line == f"stopped by SIGTERM after step {newest}; the same command resumes from there"
    # Also while it is starting, when there is nothing new to save.
    process = start(workdir, 1000)
    time.sleep(0.5)
    process.kill(signal.SIGTERM)
    assert finish(process) == 75
    assert "Traceback" not in start.output.read_text()
