"""Ctrl-C and SIGTERM in the middle of a training, sent to commands that train one after the other.

The commands are processes of their own with real, if tiny, trainings: what they do with a signal
depends on what every function below them raises, which no stand-in would show.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from tests.helpers.command import REPOSITORY
from tests.helpers.dataset_trees import write_mvtec_ad

pytestmark = pytest.mark.slow(waits=True)

# So many that a training is far from its end when the signal comes after the first checkpoint.
STEPS = 12
FIELDS = {
    "model.input_height": 128,
    "model.input_width": 128,
    "losses.autoencoder": False,
    "losses.penalty": False,
    "train.steps": STEPS,
    "train.steps_per_dispatch": 1,
    "train.checkpoint_every": 1,
}


class Trainings:
    """A command that trains on two categories, one after the other.

    Attributes:
      arguments: of the command.
      folders: of its two trainings, in their order.
      summary: the file that it writes once all trainings are over.
    """

    def __init__(self, name: str, folder: Path, *, with_ray: bool) -> None:
        command = [f"experiments.{name}"] if with_ray else ["tests.helpers.without_ray", name]
        root = folder / "data" / "mvtec_ad"
        for category in ("bottle", "cable"):
            write_mvtec_ad(root, category)
        # Its few channels make for short tests.
        network = PatchDescriptionNetwork("small", 32)
        params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
        teacher = folder / "teacher.safetensors"
        save_teacher(teacher, Teacher("small", 32, params, {}))
        results = folder / "results"
        settings = FIELDS | {"dataset.data_dir": folder / "tfds"}
        own = [f"--config.{field}={value}" for field, value in settings.items()]
        if name == "reproduce":
            own += ["--table=2", "--sizes=small", "--seeds=0", f"--teacher_small={teacher}"]
            own += [f"--data={root.parent}", f"--results={results}"]
            categories = [results / f"mvtec_ad/{c}/small/full/seed0" for c in ("bottle", "cable")]
            self.summary = results / "table_2.md"
        else:
            own = ["--config=configs/folder.py", *own, f"--config.dataset.root={root}"]
            own += [f"--config.teacher={teacher}", f"--workdir={results}"]
            categories = [results / f"{c}/seed0" for c in ("bottle", "cable")]
            self.summary = results / "figures.csv"
        self.arguments = [sys.executable, "-m", *command, *own]
        self.folders = categories
        self.log = folder / "log"

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the command; what it says goes to `self.log`."""
        # Where the tests run in the background, Ctrl-C is ignored, and would be by what they start;
        # what is handled here has its default there.
        ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with self.log.open("wb") as log:
                return subprocess.Popen(
                    self.arguments,
                    cwd=REPOSITORY,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGINT, ignored)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


def newest_checkpoint(folder: Path) -> int:
    """The number of the last whole checkpoint of a training, 0 before the first."""
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
    return max(steps, default=0)


@pytest.mark.parametrize(("name", "with_ray"), [("reproduce", False), ("sweep", True)])
def test_a_signal_ends_the_command_and_the_same_command_resumes(
    name: str, with_ray: bool, tmp_path: Path
) -> None:
    trainings = Trainings(name, tmp_path, with_ray=with_ray)
    first, second = trainings.folders
    step = 0
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        process = trainings.start()
        try:
            while newest_checkpoint(first) <= step:
                assert process.poll() is None, trainings.lines()
                time.sleep(0.01)
            # A terminal sends Ctrl-C to all processes of a command.
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            began = time.monotonic()
            process.wait()
            assert time.monotonic() - began < 15
        finally:
            process.kill()
            process.wait()
        lines = trainings.lines()
        assert process.returncode == status, lines
        # It resumed where the last one had been stopped, and did not reach its end.
        before, step = step, newest_checkpoint(first)
        assert before < step < STEPS
        of_training = "" if with_ray else f" after step {step}"
        assert lines[-1] == (
            f"stopped by {number.name}{of_training}; the same command resumes from there"
        )
        assert sum("stopped by" in line for line in lines) == 1
        # Nothing else is begun or booked.
        assert not re.search("Traceback|failed|Error", "\n".join(lines))
        assert not second.exists()
        assert not (first / "metrics.json").exists()
        assert not trainings.summary.exists()

    process = trainings.start()
    assert process.wait() == 0, trainings.lines()
    output = "\n".join(trainings.lines())
    assert f"training from step {step}\n" in output
    assert not re.search("Traceback|failed", output)
    assert all((folder / "metrics.json").is_file() for folder in trainings.folders)
    assert trainings.summary.is_file()
