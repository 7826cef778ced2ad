"""The status of a training in a sweep, as shown and as written for other processes."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Stage = Literal[
    "waiting", "preparing", "training", "evaluating", "done", "failed", "elsewhere", "stopped"
]


class Status(NamedTuple):
    """The status of one training.

    Attributes:
      stage: the current work; 'elsewhere' if another process runs the training.
      step: number of steps done.
      note: such as a loss, a metric or an error.
    """

    stage: Stage
    step: int = 0
    note: str = ""


# Called with a training's name when its status changes.
Tell = Callable[[str, Status], None]
