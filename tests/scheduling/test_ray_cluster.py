"""A sweep on a Ray cluster of two machines leaves what separate trainings leave.

`EFFICIENTAD_SLOTS` says how many trainings a machine runs at once, 1 unless given.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import psutil
import pytest

from efficientad_jax import recipes
from efficientad_jax.config import as_dict, replace
from efficientad_jax.networks.pdn import PatchDescriptionNetwork
from efficientad_jax.networks.teacher import Teacher, save_teacher
from efficientad_jax.sweep.plan import planned_trainings
from tests.helpers.command import REPOSITORY
from tests.helpers.dataset_trees import write_mvtec_ad

pytestmark = pytest.mark.slow(waits=True)

SLOTS = int(os.environ.get("EFFICIENTAD_SLOTS", "1"))
# One for each slot of the two machines, and at least two that run next to the one that fails.
PARTS = [f"part{i}" for i in range(max(3, 2 * SLOTS))]
BROKEN = PARTS[-1]
STEPS = 12
FIELDS = {
    "model.input_height": 128,
    "model.input_width": 128,
    "train.steps": STEPS,
    "train.steps_per_dispatch": 1,
    "train.checkpoint_every": 1,
}


# In a process of its own, as Ray forks and JAX has threads.
CLUSTER = f"""
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": {SLOTS}}})
node = cluster.add_node(num_cpus={SLOTS})
cluster.wait_for_nodes()
raylet = node.all_processes["raylet"][0].process.pid
print(json.dumps([cluster.address, raylet]), flush=True)
sys.stdin.read()
"""


class Cluster(NamedTuple):
    """Two machines, as far as Ray knows.

    Attributes:
      address: for `--address`.
      raylet: the process that is the second machine.
    """

    address: str
    raylet: psutil.Process


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address, raylet = json.loads(process.stdout.readline())
        yield Cluster(address, psutil.Process(raylet))
        # Ray's own shutdown waits for the machine that was killed.
        kill_machine(psutil.Process(process.pid))


def make_tree(folder: Path, categories: list[str]) -> Path:
    for category in categories:
        write_mvtec_ad(folder / "parts", category)
    # Its few channels make for short tests.
    network = PatchDescriptionNetwork("small", 32)
    params = network.init(jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    save_teacher(folder / "teacher.safetensors", Teacher("small", 32, params, {}))
    return folder


def flags(tree: Path) -> list[str]:
    return [
        "--config=configs/folder.py",
        *(f"--config.{name}={value}" for name, value in FIELDS.items()),
        f"--config.dataset.root={tree / 'parts'}",
        f"--config.teacher={tree / 'teacher.safetensors'}",
    ]


def start(tree: Path, workdir: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *flags(tree), f"--workdir={workdir}", *more],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    output, errors = process.communicate()
    assert process.returncode == status, output + errors
    assert "Traceback" not in errors, errors
    return output, errors


def newest_checkpoint(folder: Path) -> int:
    """The number of the last whole checkpoint of a training, 0 before the first."""
    steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
    return max(steps, default=0)


def kill_machine(machine: psutil.Process) -> None:
    """Kills the process of a machine and all that it started, as a loss of power does."""
    for process in [machine, *machine.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


def changes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_the_same_result(ours: Path, theirs: Path) -> None:
    """Arrays bit for bit, the same record and the same metrics."""
    files = [sorted(path.name for path in (f / "detector").iterdir()) for f in (ours, theirs)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (ours / "detector" / name).read_bytes() == (theirs / "detector" / name).read_bytes()
    assert (ours / "metrics.json").read_bytes() == (theirs / "metrics.json").read_bytes()
    assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()


# As `experiments.train` and `experiments.evaluate`, without starting Python for each.
SEPARATELY = """
import json, sys
from pathlib import Path
from efficientad_jax.config import read_config
from efficientad_jax.data.loading import load_configured_dataset
from efficientad_jax.evaluation.evaluate_run import evaluate_workdir
from efficientad_jax.fitting.fit_detector import fit_detector
for workdir, config in json.load(sys.stdin).items():
    config = read_config(config)
    fit_detector(config, load_configured_dataset(config), Path(workdir))
    evaluate_workdir(Path(workdir))
"""


def test_what_the_cluster_cannot_run_is_one_line(tmp_path: Path, cluster: Cluster) -> None:
    tree = make_tree(tmp_path, ["part0"])
    too_much = start(tree, tmp_path / "a", f"--address={cluster.address}", "--gpus_per_training=1")
    nowhere = start(tree, tmp_path / "b", "--address=127.0.0.1:1")
    _, errors = finish(too_much, status=2)
    assert errors.splitlines()[-1].startswith(
        "error: a training of 1 CPU, 1 GPU, 0 TPU: no machine of the cluster has that much, found: "
        f"{SLOTS} CPU, 0 GPU, 0 TPU; {SLOTS} CPU"
    )
    _, errors = finish(nowhere, status=2)
    assert errors.splitlines()[-1].startswith("error: --address=127.0.0.1:1: no such Ray cluster")


def train_separately(tree: Path, workdir: Path) -> None:
    """Trains all parts one after another, without the cache of features that sweeps use."""
    places = {"dataset.root": str(tree / "parts"), "teacher": str(tree / "teacher.safetensors")}
    config = replace(recipes.folder(), FIELDS | places)
    trainings = planned_trainings(config, ["all"], 1)
    subprocess.run(
        [sys.executable, "-c", SEPARATELY],
        input=json.dumps({str(workdir / t.category): as_dict(t.config) for t in trainings}),
        text=True,
        env=os.environ | {"NPROC": "1"},  # as many threads as the trainings of the sweep have
        check=True,
        cwd=REPOSITORY,
    )


def test_a_machine_dies_and_a_training_fails_yet_all_others_end_undisturbed(
    tmp_path: Path, cluster: Cluster
) -> None:
    tree = make_tree(tmp_path, PARTS)
    train_separately(tree, tmp_path / "single")
    broken = tree / "parts" / BROKEN / "train/good/002.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    sweep = tmp_path / "sweep"
    on_cluster = [f"--address={cluster.address}", "--cpus_per_training=1"]
    process = start(tree, sweep, *on_cluster)
    folders = {name: sweep / name / "seed0" for name in PARTS if name != BROKEN}
    # One more than a machine has slots, so that one of them is on the second machine.
    while sum(newest_checkpoint(folder) > 0 for folder in folders.values()) <= SLOTS:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert not any((folder / "metrics.json").exists() for folder in folders.values())
    kill_machine(cluster.raylet)
    output, errors = finish(process, status=1)
    resumed = re.findall(r"^(\S+): training from step ([1-9]\d*)$", errors, re.MULTILINE)
    assert 1 <= len(resumed) <= SLOTS, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert line.startswith(f"failed: {BROKEN}/seed0: ")
    assert "002.png" in line
    assert f"of {len(folders)} of {len(PARTS)} trainings" in output
    before = {name: changes(folder) for name, folder in folders.items()}

    broken.write_bytes(whole)
    output, errors = finish(start(tree, sweep, *on_cluster))
    assert f"of {len(PARTS)} of {len(PARTS)} trainings" in output
    assert re.findall(r"^(\S+): preparing", errors, re.MULTILINE) == [f"{BROKEN}/seed0"]
    assert {name: changes(folder) for name, folder in folders.items()} == before
    rows = (sweep / "figures.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [[name, "0"] for name in PARTS]

    for name in PARTS:
        assert_the_same_result(sweep / name / "seed0", tmp_path / "single" / name)
        assert not (sweep / name / "seed0/checkpoints").exists()
