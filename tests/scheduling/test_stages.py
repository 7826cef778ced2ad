"""The stages of a rented GPU's minutes: limits, stops that save, and a second call."""

import sys

import pytest

from efficientad_jax.scheduling.stages import Stage, run_stages

# Ends only after a signal, and saves a state then.
_SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("state")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("started", flush=True)
time.sleep(60)
"""


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def test_stages_are_run_in_their_order_and_a_second_call_continues(tmp_path):
    order = tmp_path / "order"
    append = "import sys; open(sys.argv[1], 'a').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    stages = [
        Stage("first", python(append, order, "1", 0), 30.0),
        Stage("second", python(append, order, "2", 1), 30.0),
        Stage("third", python(append, order, "3", 0), 30.0),
    ]

    outcomes = run_stages(stages, tmp_path / "runs", 60.0)
    again = run_stages(stages, tmp_path / "runs", 60.0)

    assert outcomes == {"first": "done", "second": "failed", "third": "done"}
    assert again == {"first": "done before", "second": "failed", "third": "done before"}
    assert order.read_text() == "1232"


def test_a_stage_whose_time_is_over_saves_and_the_next_one_has_its_own_time(tmp_path):
    stages = [
        Stage("long", python(_SAVES, tmp_path / "state"), 3.0),
        Stage("short", python("print('result')"), 30.0),
    ]

    outcomes = run_stages(stages, tmp_path, 60.0)

    assert outcomes == {"long": "stopped: its time is over", "short": "done"}
    assert (tmp_path / "state").read_text() == "state"
    assert (tmp_path / "long.log").read_text() == "started\n"
    assert (tmp_path / "short.log").read_text() == "result\n"


@pytest.mark.parametrize("seconds", [2.0, 3.0])
def test_all_stages_together_take_no_longer_than_all_minutes(tmp_path, seconds):
    stages = [
        Stage("long", python(_SAVES, tmp_path / "state"), 50.0),
        Stage("never", python("raise SystemExit('ran')"), 50.0),
    ]

    outcomes = run_stages(stages, tmp_path, seconds)

    assert outcomes == {"long": "stopped: its time is over", "never": "no time left"}
    assert not (tmp_path / "never.log").exists()
