"""The inputs of a dispatch are taken, and copied to the devices, before they are due."""

import threading

import jax
import numpy as np

from efficientad_jax.distillation.batches import Batch, dispatch_inputs


def batches(count, taken=None):
    for i in range(count):
        if taken is not None:
            taken.append((i, threading.current_thread() is threading.main_thread()))
        yield Batch((np.full((2, 3), i, np.int32),), 0.5)


def test_inputs_are_the_same_ahead_or_not():
    here, ahead = (
        list(dispatch_inputs(batches(5), iter([2, 2, 1]), ahead=flag)) for flag in (False, True)
    )
    assert [inputs.steps for inputs in ahead] == [2, 2, 1]
    for a, b in zip(here, ahead, strict=True):
        assert isinstance(a.arrays[0], np.ndarray)
        assert isinstance(b.arrays[0], jax.Array)
        np.testing.assert_array_equal(a.arrays[0], b.arrays[0])
        assert a.making == b.making == 0.5 * a.steps


def test_the_next_inputs_are_taken_while_a_dispatch_runs():
    taken = []
    inputs = dispatch_inputs(batches(4, taken), iter([1, 1, 1, 1]), ahead=True)
    next(inputs)
    inputs.close()  # waits for what is being taken
    assert taken == [(0, False), (1, False)]


def test_batches_that_need_the_devices_are_taken_when_they_are_due():
    taken = []
    inputs = dispatch_inputs(batches(4, taken), iter([1, 1, 1, 1]), ahead=False)
    next(inputs)
    assert taken == [(0, True)]
