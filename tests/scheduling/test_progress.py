"""The display of the progress of many trainings."""

import io

import pytest
from rich.console import Console

from efficientad_jax.scheduling import progress
from efficientad_jax.scheduling.job import Event
from efficientad_jax.scheduling.progress import Board, progress_display


def drawn(board: Board) -> list[str]:
    console = Console(file=io.StringIO(), width=150)
    console.print(board.table())
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def test_one_screen_shows_all_trainings_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    names = ["mono/seed0", "mono/seed1", "poly/seed0", "poly/seed1", "poly/seed2"]
    board = Board(dict.fromkeys(names, 1500), Console(file=io.StringIO()))
    board.tell("mono/seed0", Event("training", 100, "loss 2.0"))
    now[0] = 110.0
    board.tell("mono/seed0", Event("training", 300, "loss 1.5"))
    board.tell("mono/seed1", Event("evaluating", 1500))
    board.tell("poly/seed0", Event("done", 1500, "image AU-ROC 0.9"))
    board.tell("poly/seed1", Event("failed", text="no memory"))
    title, _, *rows = drawn(board)
    assert title.strip() == "1 of 5 done, 1 failed, 1 waiting"
    assert [row.split()[:2] for row in rows] == [
        ["mono/seed0", "training"],
        ["mono/seed1", "evaluating"],
    ]
    for shown in ("300/1500", "20.0", "0:01:00", "loss 1.5"):
        assert shown in rows[0]
    # It was started again on another machine, from an earlier checkpoint.
    board.tell("mono/seed0", Event("preparing"))
    board.tell("mono/seed0", Event("training", 200))
    now[0] = 115.0
    board.tell("mono/seed0", Event("training", 250))
    assert "10.0" in drawn(board)[2]


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
