"""Shows the progress of a list of jobs: a screen on a terminal, otherwise a line per change."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from efficientad_jax.scheduling.job import Event, Tell

_AT_WORK = ("preparing", "training", "evaluating")


class Board:
    """The last event of each job, and how fast its steps are."""

    def __init__(self, steps: dict[str, int], console: Console) -> None:
        """Starts with all jobs waiting.

        Args:
          steps: number of training steps of each job, by name.
          console: for the lines.
        """
        self._steps = steps
        self._events = {name: Event("waiting") for name in steps}
        self._console = console
        # Time and step of the first report of each training since it began or resumed.
        self._began: dict[str, tuple[float, int]] = {}

    def tell(self, name: str, event: Event) -> None:
        """Takes an event, and prints a line if the job's stage changes."""
        changed = event.stage != self._events[name].stage
        if event.stage == "note":
            self._console.print(f"{name}: {event.text}", markup=False)
            return
        if event.stage == "training" and changed:
            self._began[name] = time.monotonic(), event.step
        self._events[name] = event
        if changed:
            end = {"training": f" from step {event.step}", "stopped": f" after step {event.step}"}
            detail = end.get(event.stage, f": {event.text}" if event.text else "")
            self._console.print(f"{name}: {event.stage}{detail}", markup=False)

    def table(self) -> RenderableType:
        """The jobs at work."""
        stages = [event.stage for event in self._events.values()]
        done, failed, waiting = (stages.count(s) for s in ("done", "failed", "waiting"))
        title = f"{done} of {len(stages)} done, {failed} failed, {waiting} waiting"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for header in ("training", "stage", "step", "steps/s", "left", ""):
            table.add_column(header, justify="right" if header in ("step", "steps/s") else "left")
        for name, event in self._events.items():
            if event.stage in _AT_WORK:
                pace = self._pace(name)
                left = (self._steps[name] - event.step) / pace if pace else None
                table.add_row(
                    name,
                    event.stage,
                    f"{event.step}/{self._steps[name]}",
                    f"{pace:.1f}" if pace else "",
                    "" if left is None else str(timedelta(seconds=round(left))),
                    event.text,
                )
        return table

    def _pace(self, name: str) -> float:
        """Steps per second of a training, 0 before its second report."""
        since, first = self._began.get(name, (0.0, 0))
        done = self._events[name].step - first
        return done / (time.monotonic() - since) if done > 0 else 0.0


@contextmanager
def progress_display(steps: dict[str, int]) -> Iterator[Tell]:
    """Shows the progress of jobs on stderr.

    Args:
      steps: number of training steps of each job, by name.

    Yields:
      A function to be called for each event.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    board = Board(steps, console)
    live = Live(get_renderable=board.table, console=console, refresh_per_second=2, transient=True)
    with live if console.is_terminal else nullcontext():
        yield board.tell
