"""The display of the progress of many trainings."""

import io
import re
import time

import pytest
from rich.console import Console

from efficientad_jax.scheduling.job import Event
from efficientad_jax.scheduling.progress import progress_display


def test_one_screen_shows_all_trainings_at_work() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    names = ["mono/seed0", "mono/seed1", "poly/seed0", "poly/seed1", "poly/seed2"]
    with progress_display(dict.fromkeys(names, 1500), console) as tell:
        tell("mono/seed0", Event("training", 100, "loss 2.0"))
        time.sleep(0.1)
        tell("mono/seed0", Event("training", 300, "loss 1.5"))
        tell("mono/seed1", Event("evaluating", 1500))
        tell("poly/seed0", Event("done", 1500, "image AU-ROC 0.9"))
        tell("poly/seed1", Event("failed", text="[no] memory"))
        time.sleep(0.1)
        tell("mono/seed0", Event("training", 500, "loss 1.2"))
        time.sleep(0.3)  # until the screen is drawn again
    drawn = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    last = drawn[drawn.rindex("mono/seed0") :].splitlines()
    assert re.match(r"mono/seed0 training +500/1500 [\d.]+ steps/s 0:00:0\d loss 1.2", last[0])
    assert re.match(r"mono/seed1 evaluating 1500/1500 ", last[1])
    assert "poly" not in "\n".join(last)
    assert "poly/seed1: failed: [no] memory" in drawn


def test_without_a_terminal_there_is_a_line_for_each_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_display({"mono/seed0": 10}) as tell:
        for event in (
            Event("preparing"),
            Event("note", text="WARNING: [a] is odd"),
            Event("training", 7),
            Event("training", 8, "loss 1.0"),
            Event("failed", text="[a/b] is no image"),
        ):
            tell("mono/seed0", event)
    assert capsys.readouterr().err.splitlines() == [
        "mono/seed0: preparing",
        "mono/seed0: WARNING: [a] is odd",
        "mono/seed0: training from step 7",
        "mono/seed0: failed: [a/b] is no image",
    ]
