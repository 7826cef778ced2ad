"""Finds the results of runs: by the folder of a run, or by what made them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from efficientad_jax.config import Config, as_dict, read_config
from efficientad_jax.errors import InputError
from efficientad_jax.networks.pdn import Size
from efficientad_jax.networks.teacher import load_teacher
from efficientad_jax.reproduction.plan import Inputs, Run, configuration_of
from efficientad_jax.runs.workdir import Workdir, differences, stored_teacher_sha256

# Where the data lies does not identify a run: results may be moved, and read without the data.
_PLACES = ("dataset.root", "dataset.data_dir")
# A digest identifies the teacher.
_TEACHER = "teacher"


class Results:
    """The results of the runs of a table.

    A run's own folder is `folder / run.name`. A result in another folder counts if it has the run's
    configuration and teacher, whatever trained it.
    """

    def __init__(
        self, folder: Path, base: Config, inputs: Inputs, *, others: Sequence[Path] = ()
    ) -> None:
        """Reads the configurations of all results in `others`.

        Args:
          folder: of the runs' own folders, absolute.
          base: configuration, as in `configs/paper.py`.
          inputs: datasets and teachers that the runs read.
          others: folders with results of other commands, at any depth.
        """
        self.folder = folder
        self._base = base
        self._inputs = inputs
        self._by_content = _by_content(others)
        self._teachers: dict[Size, str] = {}

    def config(self, run: Run) -> Config:
        """The configuration of a run."""
        return configuration_of(run, self._base, self._inputs)

    def place(self, run: Run) -> Path:
        """The folder of a run's result: its own, unless only another folder has the result."""
        own = self.folder / run.name
        if Workdir(own).metrics.is_file() or not self._by_content:
            return own
        try:
            teacher = self._teacher(run.size)
        except InputError:  # there is no such teacher here
            return own
        return self._by_content.get(_content(self.config(run), teacher), own)

    def read(self, run: Run) -> dict[str, Any] | None:
        """Reads `metrics.json` of a run; None if the run is not done.

        Raises:
          InputError: the file belongs to another configuration, or is damaged.
        """
        folder = self.place(run)
        files = Workdir(folder)
        if not files.metrics.is_file():
            return None
        try:
            metrics = json.loads(files.metrics.read_text())
            stored = read_config(json.loads(files.config.read_text()))
        except (OSError, ValueError, InputError) as error:
            raise InputError(
                f"results {folder}: {files.metrics.name} or {files.config.name} cannot be read "
                f"({error}); remove the folder to run it again"
            ) from error
        ignored = _PLACES if folder == self.folder / run.name else (*_PLACES, _TEACHER)
        differing = differences(_without(stored, ignored), _without(self.config(run), ignored))
        if differing:
            raise InputError(
                f"results {folder}: of a configuration with other {', '.join(sorted(differing))}; "
                "give another --results, or remove the folder"
            )
        return metrics

    def _teacher(self, size: Size) -> str:
        if size not in self._teachers:
            teacher = load_teacher(self._inputs.teachers.get(size, ""), size)
            self._teachers[size] = teacher.sha256
        return self._teachers[size]


def _by_content(folders: Iterable[Path]) -> dict[str, Path]:
    """The folders of evaluated work directories, by `_content`."""
    found = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--also={folder}: no such folder, expected one of evaluated runs")
        for file in sorted(folder.glob("**/metrics.json")):
            files = Workdir(file.parent)
            try:
                stored = json.loads(files.config.read_text())
                content = _content(read_config(stored), stored_teacher_sha256(files.path, stored))
            except (OSError, ValueError, InputError):
                continue  # not a result of a training
            found.setdefault(content, files.path)
    return found


def _content(config: Config, teacher_sha256: str) -> str:
    identity = [_without(config, (*_PLACES, _TEACHER)), teacher_sha256]
    return json.dumps(identity, sort_keys=True)


def _without(config: Config, fields: Sequence[str]) -> dict[str, Any]:
    content = as_dict(config)
    for field in fields:
        *sections, last = field.split(".")
        section = content
        for name in sections:
            section = section[name]
        del section[last]
    return content
