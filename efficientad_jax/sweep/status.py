"""How far each training of a sweep is: what is told of it, here and to other processes."""

from collections.abc import Callable
from typing import Literal, NamedTuple

Stage = Literal[
    "waiting", "preparing", "training", "evaluating", "done", "failed", "elsewhere", "stopped"
]


class Status(NamedTuple):
    """How far one training is.

    Attributes:
      stage: what is being done; 'elsewhere' is whatever another process does.
      step: how many steps are done.
      note: such as a loss, a figure or what went wrong.
    """

    stage: Stage
    step: int = 0
    note: str = ""


# Is called with a training's name whenever something about it changes.
Tell = Callable[[str, Status], None]
