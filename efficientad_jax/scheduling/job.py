"""A job of a list, the devices that it needs, and the events and errors that it reports."""

import traceback
from collections.abc import Callable
from typing import Literal, NamedTuple

from efficientad_jax.errors import DivergenceError, InputError, StoppedError

# 'note' is a line to show; it does not change the job's stage.
Stage = Literal["waiting", "preparing", "training", "evaluating", "done", "failed", "stopped"]


class Event(NamedTuple):
    """An event of a job.

    Attributes:
      stage: the work that the job does now; 'note' for a line that is only shown.
      step: number of training steps done.
      text: such as a loss, a metric or an error.
    """

    stage: Stage | Literal["note"]
    step: int = 0
    text: str = ""


Report = Callable[[Event], None]
# Called with the name of a job when it reports an event.
Tell = Callable[[str, Event], None]


class Demand(NamedTuple):
    """The devices that one job uses. Ray counts them; it does not measure.

    Attributes:
      cpus: cores; None for one core next to an accelerator, otherwise for all cores of a machine.
      gpus: GPUs, or a fraction of one; None for one GPU if there are any.
      tpus: TPU chips; None for one chip if there are any.
    """

    cpus: int | None = None
    gpus: float | None = None
    tpus: int | None = None


class Job(NamedTuple):
    """A piece of work that runs in a process of its own where Ray is used.

    Attributes:
      name: unique in its list.
      steps: number of training steps, for the display.
      work: reports its events and returns a text for 'done'. Ray pickles it.
    """

    name: str
    steps: int
    work: Callable[[Report], str]


def last_event(job: Job, report: Report) -> Event:
    """Does the work of a job and returns its last event, which is 'done' or 'failed'.

    Raises:
      StoppedError: Ctrl-C or SIGTERM stopped the job.
    """
    try:
        return Event("done", job.steps, job.work(report))
    except StoppedError:
        raise
    except (InputError, DivergenceError, OSError) as error:  # a user can cause these
        return Event("failed", text=" ".join(str(error).split()))
    except Exception as error:  # of any type: the other jobs continue
        report(Event("note", text=traceback.format_exc()))
        return Event("failed", text=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
