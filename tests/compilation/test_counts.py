"""Counts of the compiled programs, which are kept in a file for each line of JAX.

    python -m tests.compilation.test_counts     # compiles everything again and writes the file

They are checked wherever the extra `compile` is installed. Each target is compiled for in a process
of its own, one at a time: libtpu and several test workers do not agree.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest

from efficientad_jax.compilation.targets import missing_compiler
from tests.helpers.command import REPOSITORY

PAPER = "--config=configs/paper.py"
BFLOAT16 = "--config.model.dtype=bfloat16"
MEDIUM = "--config.model.size=medium"
DISTILL = "--config=configs/distill_paper.py"
TRAINING = "training, 1 images a step"
# By name in the file: the target and the other arguments of `experiments.compile`.
RUNS = {
    "h100 small": ("h100", (PAPER, BFLOAT16)),
    "h100 medium": ("h100", (PAPER, BFLOAT16, MEDIUM)),
    "h100 distillation": ("h100", (DISTILL, "--devices=8")),
    # A TPU's compiler takes minutes for each program.
    "v5e small": ("v5e", (PAPER, BFLOAT16, "--only=detection, batch 1", f"--only={TRAINING}")),
    "v5e distillation": ("v5e", (DISTILL, "--devices=32", "--config.batch_size=32")),
}
LINE = ".".join(jax.__version__.split(".")[:2])
FILE = Path(__file__).parent / "counts" / f"jax_{LINE}.json"
# A patch release of XLA may move an estimate a little; a count of kernels by a few.
TOLERANCE = 0.03


def compiled(name: str, output: Path) -> dict[str, Any]:
    """Compiles a run's programs in a fresh process; returns what is kept of each."""
    target, arguments = RUNS[name]
    command = [sys.executable, "-m", "experiments.compile", f"--for={target}", *arguments]
    # The settings of the tests would switch the compiler's optimizations off.
    unset = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [*command, f"--output={output}"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = output.glob("*.json")
    return counts_in(file)


def counts_in(file: Path) -> dict[str, Any]:
    """The counts that are kept of the programs in a table of `experiments.compile`."""
    return {
        program["program"]: {
            "fits": program["fits"],
            "cycles": program["cycles"],
            "launches": sum(program["kernels"].values()),
            "backward convolutions": program["kernels"].get("backward convolution", 0),
            "prepared": len(program["prepared"]),
            "collectives": program["collectives"],
        }
        for program in json.loads(file.read_text())["programs"]
    }


@cache
def kept() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_counts_are_those_that_are_kept(name, tmp_path):
    missing = missing_compiler(RUNS[name][0])
    if missing:
        pytest.skip(f"needs {missing}: pip install -e '.[compile]'")
    if name not in kept():
        pytest.skip(f"no counts are kept for jax {LINE}; python -m tests.compilation.test_counts")
    found = compiled(name, tmp_path)
    assert found.keys() == kept()[name].keys()
    for program, expected in kept()[name].items():
        ours = found[program]
        for count in ("cycles", "launches"):
            most = expected[count] * (1 + TOLERANCE)
            assert ours[count] <= most, f"{program}: {count} {ours[count]}, kept {expected[count]}"
        for exact in ("fits", "prepared", "collectives"):
            assert ours[exact] == expected[exact], program


def test_kept_counts_are_within_the_bounds():
    """Of all lines of JAX, whether they are installed or not."""
    files = sorted(FILE.parent.glob("*.json"))
    assert files
    for file in files:
        for name, programs in json.loads(file.read_text()).items():
            for program, counts in programs.items():
                assert counts["fits"], f"{file.name}, {name}, {program}"
                # A TPU's compiler takes parameters in its own layouts only.
                if name.startswith("h100"):
                    assert counts["prepared"] == 0, f"{file.name}, {name}, {program}"
                if program.startswith("detection"):
                    assert counts["backward convolutions"] == 0
                if program.startswith("distillation"):
                    assert counts["collectives"] == {"all-reduce": 1}


def main() -> None:
    """Writes the file of the installed line of JAX."""
    import tempfile

    counts = kept() | {}
    for name, (target, _) in RUNS.items():
        if missing_compiler(target):
            print(f"{name}: left as it was, {missing_compiler(target)} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            counts[name] = compiled(name, Path(folder))
    FILE.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()
