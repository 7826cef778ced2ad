"""Measurements while training: which count, which state they choose, and when a run stops."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from efficientad_jax import InputError, recipes
from efficientad_jax.config import Config, replace
from efficientad_jax.errors import StoppedError
from efficientad_jax.networks.model import create_networks
from efficientad_jax.runs.checkpoints import Checkpoints
from efficientad_jax.training import loop as training_loop
from efficientad_jax.training import session as training_session
from efficientad_jax.training.batch import TrainData
from efficientad_jax.training.loop import run_training
from efficientad_jax.training.losses import Losses
from efficientad_jax.training.selection import (
    ProxyAuroc,
    Selection,
    is_measured,
    last_uncounted_step,
    selection_of_notes,
)
from efficientad_jax.training.session import open_training
from efficientad_jax.training.step import TrainState

SIZE = (128, 128)
NETWORKS = create_networks("small", 32, SIZE)


def config(**train: object) -> Config:
    values = {
        "steps": 8,
        "steps_per_dispatch": 1,
        "checkpoint_every": 4,
        "proxy_every": 1,
        "patience": 2,
        "decay_factor": 1.0,
    }
    changes = {"model.input_height": SIZE[0], "model.input_width": SIZE[1]}
    changes |= {f"train.{name}": value for name, value in (values | train).items()}
    return replace(recipes.folder(), changes)


def test_the_best_state_is_the_last_of_the_highest_values() -> None:
    selection = Selection()
    steps = []
    for step, value in enumerate([0.5, 0.7, 0.7, 0.6, 0.8, 0.8], start=1):
        selection = selection.after(value, step)
        steps.append((selection.step, selection.waited))
    assert steps == [(1, 0), (2, 0), (3, 1), (3, 2), (5, 0), (6, 1)]
    assert selection.best == 0.8


def test_measurements_before_the_rate_falls_do_not_count() -> None:
    assert last_uncounted_step(config(steps=8, decay_at=0.5, decay_factor=0.1).train) == 4
    assert last_uncounted_step(config(steps=8, decay_at=0.5, decay_factor=1.0).train) == 0
    assert last_uncounted_step(config(steps=8, decay_at=1.0, decay_factor=0.1).train) == 0
    notes = Selection(0.75, 5, 1)._asdict()
    assert selection_of_notes(notes, config().train) == Selection(0.75, 5, 1)
    assert selection_of_notes({}, config().train) == Selection()
    # A run that was given more steps: the rate now falls after the chosen step.
    longer = config(steps=10, decay_at=0.5, decay_factor=0.1).train
    assert selection_of_notes(notes, longer) == Selection()


def test_a_dispatch_is_measured_that_reaches_a_multiple_and_the_last_one() -> None:
    train = config(steps=100, proxy_every=25, steps_per_dispatch=10).train
    ends = [step + 10 for step in range(0, 100, 10) if is_measured(train, step, 10)]
    assert ends == [30, 50, 80, 100]
    assert not any(is_measured(config(proxy_every=0, patience=0).train, s, 1) for s in range(9))
    odd = config(steps=9, proxy_every=5).train
    assert [s + 1 for s in range(9) if is_measured(odd, s, 1)] == [5, 9]


# By the number of steps of the measured state. With a patience of 2 the run stops after step 5.
VALUES = {1: 0.5, 2: 0.6, 3: 0.9, 4: 0.8, 5: 0.9, 6: 0.7, 7: 0.95, 8: 0.1}
CHOSEN = 5


def steps_that_count(
    networks: object,
    objective: object,
    optimizer: object,
    *,
    state: TrainState,
    indices: np.ndarray,
    **rest: object,
) -> tuple[TrainState, Losses]:
    """In place of `train_steps`: every parameter becomes the number of steps."""
    done = int(state.step) + len(indices)
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, done), state.params)
    return state._replace(params=params, step=jnp.int32(done)), Losses(*jnp.ones((4, len(indices))))


def steps_of(params: dict) -> int:
    (value,) = {float(x) for leaf in jax.tree.leaves(params) for x in (leaf.min(), leaf.max())}
    return int(value)


class Killed(BaseException):
    """Ends a run where a kill would."""


class Runs:
    """Trainings in one work directory, with `VALUES` as their measurements."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.measured: list[int] = []
        self.reported: list[int] = []

    def measure(self, params: dict) -> ProxyAuroc:
        step = steps_of(params)
        self.measured.append(step)
        return ProxyAuroc(VALUES[step], {"scratch": VALUES[step] / 2})

    def __call__(self, *, stop_after: int = 0, **changed: object) -> int:
        """The number of steps of the state that would become the detector."""

        def report(step: int, loss: float) -> None:
            self.reported.append(step)
            if step == stop_after and not np.isnan(loss):
                os.kill(os.getpid(), signal.SIGTERM)

        images = jnp.zeros((3, *SIZE, 3), jnp.uint8)
        state = run_training(
            config(**changed),
            NETWORKS,
            None,
            data=TrainData(images, None, None),
            workdir=self.workdir,
            measure=self.measure,
            on_steps=report,
        )
        assert int(state.step) == steps_of(state.params)
        return int(state.step)


def small_state(
    key: jax.Array,
    networks: object,
    optimizer: optax.GradientTransformation,
    *,
    input_size: tuple[int, int],
) -> TrainState:
    """In place of `create_train_state`: as quick to save as to make."""
    params = {"student": jnp.zeros(3), "autoencoder": jnp.zeros(2)}
    return TrainState(params, optimizer.init(params), jnp.int32(0))


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(training_loop, "train_steps", steps_that_count)
    monkeypatch.setattr(training_session, "create_train_state", small_state)
    return Runs(tmp_path / "run")


def test_patience_stops_and_the_best_state_is_the_result(train: Runs) -> None:
    assert train() == CHOSEN
    assert train.measured == [1, 2, 3, 4, 5]
    # The same command again makes no step and measures nothing.
    assert train() == CHOSEN
    assert train.reported == [0, 1, 2, 3, 4, 5, 5]
    assert train.measured == [1, 2, 3, 4, 5]


def test_an_earlier_state_is_the_result_where_later_ones_are_worse(
    train: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VALUES, 5, 0.85)
    assert train(checkpoint_every=1, checkpoints_kept=1) == 3
    assert train.measured == [1, 2, 3, 4, 5]
    kept = sorted(p.name for p in (train.workdir / "checkpoints").iterdir() if p.name.isdecimal())
    assert {"3", "5"} <= set(kept)
    damaged = train.workdir / "checkpoints/3"
    for file in damaged.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match=r"/3: damaged or missing \(.*the best one") as refused:
        train(checkpoint_every=1, checkpoints_kept=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_stopped_run_chooses_as_an_undisturbed_one(train: Runs, stop: int) -> None:
    with pytest.raises(StoppedError, match=f"after step {stop};"):
        train(stop_after=stop)
    assert train() == CHOSEN
    assert train.measured == [1, 2, 3, 4, 5]  # none of them twice


@pytest.mark.parametrize("killed_at", [2, 3, 5])
def test_a_run_killed_before_the_checkpoint_of_a_measurement_chooses_as_an_undisturbed_one(
    train: Runs, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    save = Checkpoints.save

    def kill(self: Checkpoints, step: int, *args: object, **rest: object) -> None:
        if step == killed_at:
            raise Killed
        save(self, step, *args, **rest)  # pyright: ignore

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", kill)
        with pytest.raises(Killed):
            train()
    assert train.measured[-1] == killed_at
    assert train() == CHOSEN
    # That measurement is made again, and those since the checkpoint before it.
    assert train.measured.count(killed_at) == 2
    assert train.measured[-1] == 5


def test_only_measurements_at_the_low_rate_choose_and_stop(
    train: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step, value in {1: 0.99, 2: 0.98, 3: 0.97, 4: 0.5, 5: 0.6, 6: 0.55}.items():
        monkeypatch.setitem(VALUES, step, value)
    assert train(steps=6, decay_at=0.5, decay_factor=0.1, patience=2) == 5
    assert train.measured == [1, 2, 3, 4, 5, 6]


def test_without_patience_measurements_are_only_shown(
    train: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[tuple[int, dict[str, float]]] = []

    @contextlib.contextmanager
    def note(folder: Path) -> Iterator[Callable[[dict[str, float], int], None]]:
        yield lambda values, step: written.append((step, values))

    monkeypatch.setattr(training_session, "scalar_log", note)
    assert train(steps=8, patience=0, proxy_every=3, steps_per_dispatch=2) == 8
    assert train.measured == [4, 6, 8]
    logged = [(step, values) for step, values in written if "proxy_auroc/all" in values]
    assert logged[0] == (4, {"proxy_auroc/all": 0.8, "proxy_auroc/scratch": 0.4})
    assert [step for step, _ in logged] == [4, 6, 8]
    with open_training(config(), NETWORKS, (3, 1), workdir=train.workdir) as run:
        run.proxy_auroc = 0.75
        with training_loop._progress_bar(run) as report:
            report(8, 0.5)
    assert "loss=0.5000, proxy AU-ROC=0.7500" in capsys.readouterr().err


def test_on_an_accelerator_a_state_is_measured_before_the_next_dispatch(
    train: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def dispatch(*args: object, **rest: object) -> tuple[TrainState, Losses]:
        events.append("dispatch")
        return steps_that_count(*args, **rest)  # pyright: ignore

    def measure(params: dict) -> ProxyAuroc:
        events.append("measure")
        return Runs.measure(train, params)

    monkeypatch.setattr(train, "measure", measure)
    monkeypatch.setattr(training_loop, "train_steps", dispatch)
    monkeypatch.setattr(training_loop, "is_for_accelerator", lambda method: True)
    assert train(steps=4, proxy_every=2, patience=1, checkpoint_every=100) == 4
    assert events == ["dispatch", "dispatch", "measure"] * 2
    assert train.measured == [2, 4]
