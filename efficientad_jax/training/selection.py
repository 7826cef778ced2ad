"""Which state of a training becomes the detector, by measurements on held-out images.

The learning rate falls once. Before that, states are noisy and differ little in their mean, and a
run that ended there would lack the steps at the low rate, which every detector gains from. So only
measurements after the fall count: the best state is chosen among them, and a run can only stop
early after it. At a constant rate all measurements count.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from efficientad_jax.config import TrainConfig


class ProxyAuroc(NamedTuple):
    """How well scores separate good images from the same ones with synthetic defects.

    Attributes:
      overall: area under the ROC curve over all defects, in [0, 1].
      by_kind: that of each kind of defect against the good images.
    """

    overall: float
    by_kind: Mapping[str, float]

    def scalars(self) -> dict[str, float]:
        """The values by their names in TensorBoard."""
        by_kind = {f"proxy_auroc/{kind}": value for kind, value in self.by_kind.items()}
        return {"proxy_auroc/all": self.overall, **by_kind}


# Measures the networks with these parameters of 'student' and 'autoencoder'.
Measure = Callable[[dict[str, PyTree]], ProxyAuroc]


class Selection(NamedTuple):
    """The best measurement so far.

    Attributes:
      best: its proxy AU-ROC; -1 before the first that counts.
      step: number of steps of the state that was measured. Of equal ones it is the last.
      waited: measurements since the proxy AU-ROC last rose.
    """

    best: float = -1.0
    step: int = 0
    waited: int = 0

    def after(self, value: float, step: int) -> "Selection":
        """With one more measurement that counts, of the state after `step` steps."""
        waited = 0 if value > self.best else self.waited + 1
        if value < self.best:
            return self._replace(waited=waited)
        return Selection(value, step, waited)


def selection_of_notes(notes: Mapping[str, Any], train: TrainConfig) -> Selection:
    """The selection that a checkpoint holds, a new one where it holds none.

    A run that was given more steps has a later fall of the rate. A choice before that is dropped.
    """
    if not notes:
        return Selection()
    selection = Selection(float(notes["best"]), int(notes["step"]), int(notes["waited"]))
    return selection if selection.step > last_uncounted_step(train) else Selection()


def last_uncounted_step(train: TrainConfig) -> int:
    """The last step whose measurement does not count: that at which the rate falls, or 0."""
    falls_at = int(train.steps * train.decay_at)
    return falls_at if train.decay_factor < 1 and falls_at < train.steps else 0


def is_measured(train: TrainConfig, step: int, count: int) -> bool:
    """Whether the state is measured after `count` steps more than `step`.

    It is at the end of the first dispatch at or after each multiple of `proxy_every`, so that
    measurements do not change how steps are dispatched, and after the last step.
    """
    if not train.proxy_every:
        return False
    end = step + count
    return end >= train.steps or end // train.proxy_every > step // train.proxy_every
