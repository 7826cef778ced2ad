"""Commands one after the other, each with a time limit: a machine may be there for minutes only."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Literal, NamedTuple

# Seconds from SIGTERM to SIGKILL: a checkpoint is written within them.
_GRACE = 20.0

Outcome = Literal["done", "done before", "stopped: its time is over", "no time left", "failed"]


class Stage(NamedTuple):
    """A command with a time limit.

    Attributes:
      name: unique in its list.
      command: program and arguments. SIGTERM makes it save its state and end.
      seconds: its limit.
    """

    name: str
    command: list[str]
    seconds: float


def run_stages(stages: list[Stage], workdir: Path, seconds: float) -> dict[str, Outcome]:
    """Runs the stages one after the other; what each prints goes to `WORKDIR/NAME.log`.

    Args:
      stages: in their order. One that is done in `workdir` is not run again.
      workdir: folder for the logs and for the names of the stages that are done.
      seconds: limit of all stages together.

    Returns:
      The outcome of each stage, by its name.
    """
    end = time.monotonic() + seconds
    done = workdir / "done"
    done.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for stage in stages:
        if (done / stage.name).exists():
            outcomes[stage.name] = "done before"
            continue
        limit = min(stage.seconds, end - time.monotonic())
        if limit <= 0:
            outcomes[stage.name] = "no time left"
            continue
        print(f"{stage.name}: at most {limit / 60:.1f} minutes", flush=True)
        outcomes[stage.name] = _run_stage(stage, workdir / f"{stage.name}.log", limit)
        if outcomes[stage.name] == "done":
            (done / stage.name).touch()
    return outcomes


def _run_stage(stage: Stage, log: Path, seconds: float) -> Outcome:
    """Runs a command, which is sent SIGTERM after `seconds`, and SIGKILL `_GRACE` later."""
    with log.open("ab") as output:
        process = subprocess.Popen(stage.command, stdout=output, stderr=subprocess.STDOUT)
        try:
            return "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
        finally:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return "stopped: its time is over"
