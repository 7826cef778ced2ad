"""Shows the progress of a sweep: all running trainings, including those of other processes."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from efficientad_jax.storage.atomic import write_atomically
from efficientad_jax.sweep.plan import SweepRun
from efficientad_jax.sweep.status import Status, Tell

# How often a process writes its progress, and how long other processes consider it current.
_WRITE_SECONDS = 1.0
_STALE_SECONDS = 120.0
_AT_WORK = ("preparing", "training", "evaluating")


class _Board:
    """The status of each training."""

    def __init__(self, runs: Sequence[SweepRun], folder: Path, console: Console) -> None:
        self.steps = {run.name: run.config.train.steps for run in runs}
        self.statuses: dict[str, Status] = {run.name: Status("waiting") for run in runs}
        self.folder = folder / ".sweep"
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.console = console
        self.written = 0.0
        self.begun: dict[str, tuple[float, int]] = {}  # start of the training, and its first step

    def tell(self, name: str, status: Status) -> None:
        changed = status.stage != self.statuses[name].stage
        self.statuses[name] = status
        if status.stage == "training":
            self.begun.setdefault(name, (time.monotonic(), status.step))
        if changed and status.stage not in ("elsewhere", "waiting"):
            about = {"training": " from step {step}", "stopped": " after step {step}"}
            line = about.get(status.stage, ": {note}" if status.note else "").format(
                **status._asdict()
            )
            self.console.print(f"{name}: {status.stage}{line}", markup=False)
        if changed or time.monotonic() - self.written > _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Writes the progress for other processes."""
        self.written = time.monotonic()
        at_work = {n: [*s, self.pace(n)] for n, s in self.statuses.items() if s.stage in _AT_WORK}
        content = json.dumps({"time": time.time(), "trainings": at_work}).encode()
        write_atomically(self.folder / self.name / "progress.json", content)

    def pace(self, name: str) -> float:
        """Returns steps per second, 0 before the first."""
        since, first = self.begun.get(name, (0.0, 0))
        done = self.statuses[name].step - first
        return done / (time.monotonic() - since) if done else 0.0

    def others(self) -> dict[str, tuple[Status, float, str]]:
        """Reads the trainings of other processes: status, steps per second, and the process."""
        trainings = {}
        for file in self.folder.glob("*/progress.json"):
            if file.parent.name == self.name:
                continue
            try:
                content = json.loads(file.read_text())
                if time.time() - content["time"] < _STALE_SECONDS:
                    for name, (stage, step, note, pace) in content["trainings"].items():
                        trainings[name] = (Status(stage, step, note), pace, file.parent.name)
            except (OSError, ValueError, LookupError, TypeError):
                continue  # incomplete, or of another version: its trainings are not shown
        return trainings

    def table(self) -> RenderableType:
        """Builds the table of running trainings."""
        others = self.others()
        stages = [s.stage for s in self.statuses.values()]
        counts = {stage: stages.count(stage) for stage in ("done", "failed")}
        title = f"{counts['done']} of {len(stages)} done, {counts['failed']} failed"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for header in ("training", "stage", "step", "steps/s", "left", "", "process"):
            table.add_column(header, justify="right" if header in ("step", "steps/s") else "left")
        rows = {n: (s, self.pace(n), "") for n, s in self.statuses.items() if s.stage in _AT_WORK}
        for name, (status, pace, process) in (rows | others).items():
            steps = self.steps.get(name, 0)
            left = str(timedelta(seconds=round((steps - status.step) / pace))) if pace else ""
            rate = f"{pace:.1f}" if pace else ""
            step = f"{status.step}/{steps}"
            table.add_row(name, status.stage, step, rate, left, status.note, process)
        return table


@contextmanager
def progress_display(runs: Sequence[SweepRun], workdir: Path) -> Iterator[Tell]:
    """Shows the progress of a sweep on stderr; if that is not a terminal, a line per change.

    Args:
      runs: all trainings of the sweep.
      workdir: of the sweep, through which the processes exchange their progress.

    Yields:
      A function to be called for each change.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    board = _Board(runs, workdir, console)
    live = Live(get_renderable=board.table, console=console, refresh_per_second=2, transient=True)
    try:
        with live if console.is_terminal else nullcontext():
            yield board.tell
    finally:
        shutil.rmtree(board.folder / board.name, ignore_errors=True)
