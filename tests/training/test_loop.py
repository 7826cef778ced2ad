"""Stopping, resuming, and errors: the loop of phase 2."""

import contextlib
import json
import os
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event

from efficientad_jax import InputError, recipes
from efficientad_jax.config import replace
from efficientad_jax.errors import DivergenceError, StoppedError
from efficientad_jax.networks.model import create_networks
from efficientad_jax.runs.signals import interruption
from efficientad_jax.runs.tensorboard import scalar_log
from efficientad_jax.runs.workdir import claim_workdir
from efficientad_jax.training import loop as training_loop
from efficientad_jax.training import session as training_session
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.session import image_indices
from tests.helpers.detectors import random_params

SIZE = (128, 128)
NETWORKS = create_networks("small", 32, SIZE)


def config(**train):
    train = {"steps": 4, "steps_per_dispatch": 1, "checkpoint_every": 2} | train
    changes = {"model.input_height": SIZE[0], "model.input_width": SIZE[1]}
    changes |= {f"train.{name}": value for name, value in train.items()}
    return replace(recipes.folder(), changes)


def data():
    rng = np.random.default_rng(0)
    return TrainData(jnp.asarray(rng.integers(0, 256, (3, *SIZE, 3), np.uint8)), None, None)


def run(workdir, **train):
    teacher = random_params(NETWORKS.teacher, SIZE)
    return training_loop.run_training(
        config(**train), NETWORKS, teacher, data=data(), workdir=workdir
    )


@pytest.fixture
def written(monkeypatch):
    """The steps and values that runs write for TensorBoard."""
    written = []

    @contextlib.contextmanager
    def note(folder):
        yield lambda values, step: written.append((step, values))

    monkeypatch.setattr(training_session, "scalar_log", note)
    return written


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    undisturbed = run(tmp_path / "a")
    assert int(undisturbed.step) == 4
    students = dict(
        training_loop.saved_students(tmp_path / "a", config(), NETWORKS, input_size=SIZE)
    )
    assert list(students) == [2, 4]
    final = jax.tree.leaves(undisturbed.params["student"])
    for saved, is_final in ((students[2], False), (students[4], True)):
        pairs = zip(jax.tree.leaves(saved), final, strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) is is_final
    assert (
        dict(training_loop.saved_students(tmp_path / "no", config(), NETWORKS, input_size=SIZE))
        == {}
    )

    written = []

    @contextlib.contextmanager
    def send_a_signal(folder):
        def write(values, step):
            written.append(step)
            if len(written) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        yield write

    monkeypatch.setattr(training_session, "scalar_log", send_a_signal)
    with pytest.raises(StoppedError, match="SIGTERM after step 1;") as stopped:
        run(tmp_path / "b")
    assert stopped.value.signal == signal.SIGTERM
    resumed = run(tmp_path / "b")
    assert written == [1, 2, 3, 4]
    same(undisturbed, resumed)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_is_named(tmp_path):
    with pytest.raises(DivergenceError, match=r"the loss 'hard' is (inf|nan) at step [234]"):
        run(tmp_path, learning_rate=1e30)


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """Losses are those of the parameters before a step: they can be finite once more."""

    def overflow(networks, objective, optimizer, *, state, **rest):
        broken = jax.tree.map(lambda x: x * np.float32(np.inf), state.params)
        return state._replace(params=broken, step=state.step + 1), Losses(*jnp.ones((4, 1)))

    monkeypatch.setattr(training_loop, "train_steps", overflow)
    with pytest.raises(DivergenceError, match="of the state after step 1 is not finite"):
        run(tmp_path, checkpoint_every=1)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.slow
def test_the_rate_falls_within_the_steps_of_the_run(tmp_path, written):
    run(tmp_path, decay_at=0.5)
    rates = {step: values["learning_rate"] for step, values in written}
    assert rates[1] == pytest.approx(1e-3)
    assert rates[2] == rates[4] == pytest.approx(1e-4)


def test_tensorboard_files_hold_what_was_written(tmp_path):
    with scalar_log(tmp_path / "t") as write:
        write({"loss/hard": 0.5, "learning_rate": 1e-3}, 7)
    with scalar_log(tmp_path / "t", enabled=False) as write:
        write({"loss/hard": 0.5}, 8)
    (file,) = (tmp_path / "t").iterdir()
    events, content = [], file.read_bytes()
    while content:  # length, its checksum, the event, its checksum
        (size,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].step == 7
    values = {value.tag: value.simple_value for value in events[1].summary.value}
    assert values == pytest.approx({"loss/hard": 0.5, "learning_rate": 1e-3})
    assert len(events) == 2


def test_every_image_is_seen_once_before_any_is_seen_again():
    indices = image_indices(5, 1, range(10), seed=0, stream=0)[:, 0]
    assert sorted(indices[:5]) == sorted(indices[5:]) == [0, 1, 2, 3, 4]
    late = image_indices(5, 1, range(7, 10), seed=0, stream=0)[:, 0]
    assert late.tolist() == indices[7:].tolist()


def test_a_second_ctrl_c_interrupts():
    # A shell starts what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruption() as interrupted:
        assert interrupted() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_a_killed_run_was_writing_does_not_block_the_workdir(tmp_path):
    (tmp_path / ".123.tmp").write_text("{")
    claim_workdir(tmp_path, config())


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    claim_workdir(tmp_path / "run", config())
    assert claim_workdir(tmp_path / "run", config()) == tmp_path / "run"
    with pytest.raises(InputError, match=r"other config\.train\.steps \(4, not 3\)"):
        claim_workdir(tmp_path / "run", config(steps=3))
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["train"]["steps"] == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files but no config\.json"):
        claim_workdir(tmp_path / "other", config())
    with pytest.raises(InputError, match="cannot be made"):
        claim_workdir(tmp_path / "other" / "thesis.txt" / "run", config())


@pytest.mark.slow
def test_losses_are_fetched_while_the_next_dispatch_runs(tmp_path, monkeypatch, written):
    """On an accelerator; except before a checkpoint, whose state the next dispatch would take."""
    events = []
    train_steps = training_loop.train_steps

    def dispatch(*args, state, **rest):
        events.append("dispatch")
        return train_steps(*args, state=state, **rest)

    record = training_session.TrainingRun.record

    def fetch(self, state, losses):
        events.append("fetch")
        return record(self, state, losses)

    monkeypatch.setattr(training_loop, "train_steps", dispatch)
    monkeypatch.setattr(training_session.TrainingRun, "record", fetch)
    monkeypatch.setattr(training_loop, "is_for_accelerator", lambda method: True)
    ahead = run(tmp_path / "a", steps=5, checkpoint_every=3)
    d, f = "dispatch", "fetch"
    assert events == [d, d, f, d, f, f, d, d, f, f]
    assert [step for step, _ in written] == [1, 2, 3, 4, 5]

    monkeypatch.setattr(training_loop, "is_for_accelerator", lambda method: False)
    events.clear()
    same(ahead, run(tmp_path / "b", steps=5, checkpoint_every=3))
    assert events == [d, f] * 5


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_a_run_on_an_accelerator_too(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "is_for_accelerator", lambda method: True)
    with pytest.raises(DivergenceError, match=r"the loss 'hard' is (inf|nan) at step [234]"):
        run(tmp_path, learning_rate=1e30, checkpoint_every=4)
