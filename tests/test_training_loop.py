"""Stopping, going on, and refusing: the loop of phase 2."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX import SummaryWriter

from configs import elpv
from efficientad_jax import InputError, training_loop
from efficientad_jax.errors import DivergenceError
from efficientad_jax.interruption import interruption
from efficientad_jax.training import TrainData, create_networks
from efficientad_jax.workdir import claim_workdir
from tests.torch_reference import random_params

SIZE = (128, 128)
NETWORKS = create_networks("small", 4, SIZE)


def config(**train):
    made = elpv.get_config()
    made.losses.autoencoder = False
    made.train.update({"steps": 4, "steps_per_dispatch": 1, "checkpoint_every": 2} | train)
    return made


def data():
    rng = np.random.default_rng(0)
    return TrainData(jnp.asarray(rng.integers(0, 256, (3, *SIZE, 3), np.uint8)), None, None)


def run(workdir, **train):
    teacher = random_params(NETWORKS.teacher, SIZE)
    return training_loop.run_training(config(**train), NETWORKS, teacher, data(), workdir)


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    undisturbed = run(tmp_path / "a")
    assert int(undisturbed.step) == 4
    students = dict(training_loop.saved_students(tmp_path / "a", config(), NETWORKS, SIZE))
    assert list(students) == [2, 4]
    final = jax.tree.leaves(undisturbed.params["student"])
    for saved, same in ((students[2], False), (students[4], True)):
        pairs = zip(jax.tree.leaves(saved), final, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) is same
    assert dict(training_loop.saved_students(tmp_path / "no", config(), NETWORKS, SIZE)) == {}

    written = []
    original = SummaryWriter.add_scalar

    def press_ctrl_c(self, name, value, step):
        original(self, name, value, step)
        written.append((name, step))
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SummaryWriter, "add_scalar", press_ctrl_c)
    assert run(tmp_path / "b") is None
    assert {step for _, step in written} == {1}
    resumed = run(tmp_path / "b")
    assert {step for _, step in written} == {1, 2, 3, 4}
    for a, b in zip(jax.tree.leaves(undisturbed), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_named(tmp_path):
    with pytest.raises(DivergenceError, match=r"the loss 'hard' is (inf|nan) at step [234]"):
        run(tmp_path, learning_rate=1e30)


def test_the_rate_falls_within_the_steps_of_the_run(tmp_path, monkeypatch):
    rates = {}

    def note(self, name, value, step):
        if name == "learning_rate":
            rates[step] = value

    monkeypatch.setattr(SummaryWriter, "add_scalar", note)
    run(tmp_path, decay_at=0.5)
    assert rates[1] == pytest.approx(1e-3)
    assert rates[2] == rates[4] == pytest.approx(1e-4)


def test_every_image_is_seen_once_before_any_is_seen_again():
    images = np.zeros(5)
    chosen = training_loop._chosen(images, 0, 0, 0, 10, 1)[:, 0]
    assert sorted(chosen[:5]) == sorted(chosen[5:]) == [0, 1, 2, 3, 4]
    late = training_loop._chosen(images, 0, 0, 7, 3, 1)[:, 0]
    assert late.tolist() == chosen[7:].tolist()


def test_a_second_ctrl_c_interrupts():
    with interruption() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    claim_workdir(tmp_path / "run", config())
    assert claim_workdir(tmp_path / "run", config()) == tmp_path / "run"
    with pytest.raises(InputError, match=r"other config\.train\.steps \(4, not 5\)"):
        claim_workdir(tmp_path / "run", config(steps=5))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["train"]["steps"] == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no config\.json"):
        claim_workdir(tmp_path / "other", config())
    with pytest.raises(InputError, match="cannot be made"):
        claim_workdir(tmp_path / "other" / "thesis.txt" / "run", config())
