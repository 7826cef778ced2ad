"""Records traces of some steps, which XProf and TensorBoard show."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from efficientad_jax.errors import InputError


class Profile:
    """Starts and stops a trace between dispatches. `profiling` makes it.

    A dispatch makes several steps and is recorded as a whole.

    Attributes:
      is_on: whether a trace is being recorded.
    """

    def __init__(self, folder: Path, steps: range | None) -> None:
        """Arguments are those of `profiling`."""
        self._folder, self._steps = folder, steps
        self.is_on = False

    def before(self, step: int) -> None:
        """Called before the dispatch that starts after `step` steps."""
        if self._steps is not None and step >= self._steps.start and not self.is_on:
            jax.profiler.start_trace(self._folder)
            self.is_on = True

    def after(self, step: int) -> None:
        """Called after a dispatch, when `step` steps are done."""
        if self._steps is not None and self.is_on and step >= self._steps.stop:
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if there is one."""
        if self.is_on:
            jax.profiler.stop_trace()
        self.is_on, self._steps = False, None


@contextmanager
def profiling(folder: Path, steps: range | None) -> Iterator[Profile]:
    """Records the dispatches from the first that begins in `steps` or later, to the end of `steps`.

    Args:
      folder: for the trace; that of the TensorBoard files, in which TensorBoard finds it.
      steps: which steps to record, None for none.
    """
    profile = Profile(folder, steps)
    try:
        yield profile
    finally:
        profile.stop()


def steps_to_profile(text: str) -> range | None:
    """Reads the flag `--profile_steps=FIRST,LAST`; '' is None.

    Raises:
      InputError: it is not two whole numbers in order.
    """
    if not text:
        return None
    first, _, last = text.partition(",")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise InputError(
            f"--profile_steps={text}: expected the first and the last step, such as 10,15"
        )
    return range(int(first), int(last))
