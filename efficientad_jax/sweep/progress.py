"""A sweep on one screen: every training that runs, also those of other processes."""

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

# How often a process says how far it is, and for how long what it said is taken for true.
_WRITE_SECONDS = 1.0
_STALE_SECONDS = 120.0
_AT_WORK = ("preparing", "training", "evaluating")


class _Board:
    """What is known of each training."""

    def __init__(self, runs: Sequence[SweepRun], folder: Path, console: Console) -> None:
        self.steps = {run.name: run.config.train.steps for run in runs}
        self.own: dict[str, Status] = {run.name: Status("waiting") for run in runs}
        self.folder = folder / ".sweep"
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.console = console
        self.written = 0.0
        self.begun: dict[str, tuple[float, int]] = {}  # when training, and from which step

    def tell(self, name: str, status: Status) -> None:
        changed = status.stage != self.own[name].stage
        self.own[name] = status
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
        """Tells other processes."""
        self.written = time.monotonic()
        at_work = {n: [*s, self.pace(n)] for n, s in self.own.items() if s.stage in _AT_WORK}
        content = json.dumps({"time": time.time(), "trainings": at_work}).encode()
        write_atomically(self.folder / self.name / "progress.json", content)

    def pace(self, name: str) -> float:
        """Steps a second, 0 before any."""
        since, first = self.begun.get(name, (0.0, 0))
        done = self.own[name].step - first
        return done / (time.monotonic() - since) if done else 0.0

    def others(self) -> dict[str, tuple[Status, float, str]]:
        """What other processes are at: status, steps a second, and which process."""
        found = {}
        for file in self.folder.glob("*/progress.json"):
            if file.parent.name == self.name:
                continue
            try:
                content = json.loads(file.read_text())
                if time.time() - content["time"] < _STALE_SECONDS:
                    for name, (stage, step, note, pace) in content["trainings"].items():
                        found[name] = (Status(stage, step, note), pace, file.parent.name)
            except (OSError, ValueError, LookupError, TypeError):
                continue  # half of one, or of another version: its trainings are shown by no line
        return found

    def table(self) -> RenderableType:
        """The screen."""
        others = self.others()
        stages = [s.stage for s in self.own.values()]
        counts = {stage: stages.count(stage) for stage in ("done", "failed")}
        title = f"{counts['done']} of {len(stages)} done, {counts['failed']} failed"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for header in ("training", "stage", "step", "steps/s", "left", "", "process"):
            table.add_column(header, justify="right" if header in ("step", "steps/s") else "left")
        rows = {n: (s, self.pace(n), "") for n, s in self.own.items() if s.stage in _AT_WORK}
        for name, (status, pace, process) in (rows | others).items():
            steps = self.steps.get(name, 0)
            left = str(timedelta(seconds=round((steps - status.step) / pace))) if pace else ""
            rate = f"{pace:.1f}" if pace else ""
            step = f"{status.step}/{steps}"
            table.add_row(name, status.stage, step, rate, left, status.note, process)
        return table


@contextmanager
def one_screen(runs: Sequence[SweepRun], workdir: Path) -> Iterator[Tell]:
    """Shows how far a sweep is, on stderr; where that is no terminal, a line for each change.

    Args:
      runs: all trainings of the sweep.
      workdir: of the sweep, in which the processes tell each other.

    Yields:
      What is to be called on each change.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    board = _Board(runs, workdir, console)
    live = Live(get_renderable=board.table, console=console, refresh_per_second=2, transient=True)
    try:
        with live if console.is_terminal else nullcontext():
            yield board.tell
    finally:
        shutil.rmtree(board.folder / board.name, ignore_errors=True)
