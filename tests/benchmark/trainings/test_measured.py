"""Results of trainings are read as they were written, and times are computed from their marks."""

import numpy as np
import pytest

from efficientad_jax.benchmark.trainings.measured import (
    MeasuredTraining,
    measure_once,
    read_measured,
    write_measured,
)
from efficientad_jax.errors import InputError


def training(marks=((0, 5.0), (10, 9.0), (20, 11.0), (30, 13.0)), **changes):
    rng = np.random.default_rng(0)
    made = MeasuredTraining(
        rng.random(3, np.float32),
        rng.random((3, 4, 5), np.float32),
        np.array(marks, np.float64),
        {"preparation_seconds": 7.0, "calibration_seconds": 2.5, "version": "1.0"},
    )
    return made._replace(**changes)


def test_times_are_those_of_the_marks():
    made = training()
    assert made.steps == 30
    assert made.training_seconds == 8.0
    assert made.all_seconds == 17.5


@pytest.mark.parametrize(
    ("marks", "seconds"),
    [
        (((0, 5.0), (10, 9.0), (20, 11.0), (30, 13.0)), 0.2),  # without the first ten steps
        (((0, 0.0), (9, 9.0), (11, 10.0), (21, 15.0)), 0.5),  # without the first eleven
        (((0, 1.0), (20, 9.0)), 0.4),  # there are no others
    ],
)
def test_the_time_per_step_leaves_out_the_first_ones(marks, seconds):
    assert training(marks).seconds_per_step == pytest.approx(seconds)


def test_a_training_is_read_as_it_was_written(tmp_path):
    made = training()
    write_measured(tmp_path / "a.npz", made)
    read = read_measured(tmp_path / "a.npz", (3, 4, 5))
    assert read.facts == made.facts
    for name in ("scores", "maps", "marks"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(2, np.float32)}, r"scores of shape \(2,\), expected \(3,\)"),
        ({"maps": np.zeros((3, 4, 4), np.float32)}, r"maps of shape \(3, 4, 4\), expected"),
        ({"scores": np.array([0, np.nan, 1], np.float32)}, "scores are not all finite"),
        ({"marks": np.zeros((1, 2))}, "no steps, expected at least one"),
        ({"facts": {"preparation_seconds": 1.0}}, "no calibration_seconds"),
    ],
)
def test_results_that_do_not_suit_are_refused(tmp_path, changes, message):
    write_measured(tmp_path / "a.npz", training(**changes))
    with pytest.raises(InputError, match=message):
        read_measured(tmp_path / "a.npz", (3, 4, 5))


def test_a_file_that_is_no_result_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.npz: cannot be read .*; remove the file"):
        read_measured(tmp_path / "a.npz", (3, 4, 5))


def test_a_training_is_made_once_and_again_if_it_is_another(tmp_path):
    calls = []

    def measure(identity):
        def train(path):
            calls.append(path)
            return training()

        return measure_once(tmp_path / "a.npz", identity, (3, 4, 5), train=train)

    first = measure({"seed": 0})
    assert first.facts == training().facts | {"identity": {"seed": 0}}
    assert measure({"seed": 0}).facts == first.facts
    assert calls == [tmp_path / "a.npz"]
    assert measure({"seed": 1}).facts["identity"] == {"seed": 1}
    assert len(calls) == 2
