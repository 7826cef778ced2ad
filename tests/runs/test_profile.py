"""Traces of some steps: when they start and stop, and what the flag takes."""

import jax
import jax.numpy as jnp
import pytest

from efficientad_jax import InputError
from efficientad_jax.runs.profile import profiling, steps_to_profile


@pytest.mark.parametrize(
    ("text", "steps"), [("", None), ("10,15", range(10, 15)), ("3,3", range(3, 3))]
)
def test_the_flag(text, steps):
    assert steps_to_profile(text) == steps


@pytest.mark.parametrize("text", ["10", "15,10", "-1,5", "a,b", "1,2,3"])
def test_a_flag_that_cannot_be_used_is_refused(text):
    with pytest.raises(InputError, match=f"--profile_steps={text}: expected the first and"):
        steps_to_profile(text)


def test_dispatches_are_recorded_from_the_first_step_to_the_last(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with profiling(tmp_path, range(10, 15)) as profile:
        for step in range(0, 40, 4):
            profile.before(step)
            calls.append(step)
            profile.after(step + 4)
    assert calls == [0, 4, 8, "start", 12, "stop", 16, 20, 24, 28, 32, 36]


def test_a_run_that_ends_early_leaves_its_trace(tmp_path):
    with profiling(tmp_path, range(0, 100)) as profile:
        profile.before(0)
        jnp.ones(3).block_until_ready()
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert not profile.is_on


def test_without_steps_nothing_is_recorded(tmp_path):
    with profiling(tmp_path, None) as profile:
        profile.before(0)
        profile.after(5)
    assert not list(tmp_path.iterdir())
