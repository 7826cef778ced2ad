"""Shows the progress of a list of jobs: a screen on a terminal, otherwise a line per change."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from efficientad_jax.scheduling.job import Event, Tell

_AT_WORK = ("preparing", "training", "evaluating")


@contextmanager
def progress_display(steps: dict[str, int], console: Console | None = None) -> Iterator[Tell]:
    """Shows the progress of jobs.

    Args:
      steps: number of training steps of each job, by name.
      console: to show it on, by default stderr.

    Yields:
      A function to be called for each event.
    """
    console = console or Console(stderr=True, highlight=False, soft_wrap=True)
    screen = Progress(
        *(
            TextColumn(f"{{task.{text}}}", markup=False)
            for text in ("description", "fields[stage]")
        ),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    fields = {"stage": "waiting", "pace": "", "text": "", "visible": False, "start": False}
    tasks = {name: screen.add_task(name, total=total, **fields) for name, total in steps.items()}
    stages = dict.fromkeys(steps, "waiting")

    def tell(name: str, event: Event) -> None:
        task = tasks[name]
        if event.stage == "note":
            console.print(f"{name}: {event.text}", markup=False)
            return
        if event.stage != stages[name]:
            stages[name] = event.stage
            end = {"training": f" from step {event.step}", "stopped": f" after step {event.step}"}
            detail = end.get(event.stage, f": {event.text}" if event.text else "")
            console.print(f"{name}: {event.stage}{detail}", markup=False)
            screen.reset(task, completed=event.step, start=event.stage == "training")
        visible = event.stage in _AT_WORK
        screen.update(
            task, completed=event.step, visible=visible, stage=event.stage, text=event.text
        )
        pace = screen.tasks[task].speed
        screen.update(task, pace=f"{pace:.1f} steps/s" if pace else "")

    with screen:
        yield tell
