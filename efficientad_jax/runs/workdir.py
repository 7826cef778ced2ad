"""The work directory of a run: the names of its files, and the configuration it belongs to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientad_jax.config import (
    Config,
    DistillationConfig,
    as_dict,
    read_config,
    read_distillation,
)
from efficientad_jax.errors import InputError
from efficientad_jax.storage.atomic import write_atomically

# SHA-256 of the small teacher that the package had before runs recorded their teacher.
_UNRECORDED_PACKAGED = "e4bab3e773a47a9a47ccbd9441989a333006e56ddd2b61f27b28629f362641e4"


@dataclass(frozen=True)
class Workdir:
    """The names of all files and folders of a run. It creates and checks nothing.

    Attributes:
      path: the folder of the run.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration, as JSON. It makes a folder a work directory."""
        return self.path / "config.json"

    @property
    def teacher_sha256(self) -> Path:
        """The SHA-256 of the teacher file that the run was started with, as text."""
        return self.path / "teacher.sha256"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints: one folder per checkpoint, named after its step."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard files."""
        return self.path / "tensorboard"

    @property
    def detector(self) -> Path:
        """The folder of the calibrated detector."""
        return self.path / "detector"

    @property
    def metrics(self) -> Path:
        """The metrics of the evaluation, as JSON."""
        return self.path / "metrics.json"

    @property
    def report(self) -> Path:
        """The report of the evaluation, as HTML."""
        return self.path / "report.html"


def claim_workdir(
    workdir: Path,
    config: Config | DistillationConfig,
    *,
    teacher_sha256: str = "",
    ignored: Sequence[str] = (),
) -> Path:
    """Creates a work directory for `config`, or checks that an existing one belongs to it.

    Args:
      workdir: the folder.
      config: of the run. The path in its field `teacher` is not compared, because the file may
        move and an upgrade may replace the packaged teacher; `teacher_sha256` is compared instead.
      teacher_sha256: digest of the teacher file, "" for a run without a teacher.
      ignored: fields that do not change the result; they are neither stored nor compared.

    Returns:
      The absolute path.

    Raises:
      InputError: the directory belongs to another configuration, holds other files, or cannot be
        created.
    """
    workdir = workdir.absolute()
    file = Workdir(workdir).config
    expected = {k: v for k, v in as_dict(config).items() if k not in ignored}
    if file.is_file():
        try:
            stored = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"workdir {workdir}: {file.name} cannot be read as JSON ({error})"
            ) from error
        if teacher_sha256:
            _check_teacher(workdir, stored, teacher_sha256)
        if isinstance(stored, dict):
            stored = _completed(stored, config)
            same = ("teacher", *ignored) if teacher_sha256 else ignored
            stored = {k: v for k, v in stored.items() if k not in same}
            expected = {k: v for k, v in expected.items() if k not in same}
        differing = sorted(differences(stored, expected))
        if differing:
            raise InputError(
                f"workdir {workdir}: belongs to a configuration with other {', '.join(differing)}; "
                "give another --workdir, or remove this one"
            )
        return workdir
    try:
        # A killed run may leave a hidden file that it had not finished writing.
        if workdir.is_dir() and any(not path.name.startswith(".") for path in workdir.iterdir()):
            raise InputError(
                f"workdir {workdir}: holds files but no {file.name}; give an empty or new folder"
            )
        # Written before the configuration, which makes the folder a work directory.
        if teacher_sha256:
            write_atomically(Workdir(workdir).teacher_sha256, f"{teacher_sha256}\n".encode())
        write_atomically(file, (json.dumps(expected, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"workdir {workdir}: cannot be made ({error.strerror})") from error
    return workdir


def _completed(stored: dict[str, Any], like: Config | DistillationConfig) -> dict[str, Any]:
    """Adds the fields that an older version did not have to its configuration."""
    read = read_config if isinstance(like, Config) else read_distillation
    try:
        return as_dict(read(stored))
    except InputError:
        return stored  # not such a configuration; the comparison reports it


def stored_teacher_sha256(workdir: Path, config: object) -> str:
    """The digest of the teacher that a run was started with, "" if it is not known.

    Args:
      workdir: of the run.
      config: the content of its `config.json`. The versions that kept no digest all had the same
        packaged teacher.
    """
    file = Workdir(workdir).teacher_sha256
    if file.is_file():
        return file.read_text(errors="replace").strip()
    packaged = isinstance(config, dict) and config.get("teacher") == ""
    return _UNRECORDED_PACKAGED if packaged else ""


def _check_teacher(workdir: Path, config: object, sha256: str) -> None:
    """Refuses a teacher other than the one that the run was started with."""
    file = Workdir(workdir).teacher_sha256
    started = file.is_file() or any(Workdir(workdir).checkpoints.glob("[0-9]*"))
    started_with = stored_teacher_sha256(workdir, config) if started else ""
    if not started_with:
        # Not started yet, or started with a user's teacher by a version that kept no digest.
        write_atomically(file, f"{sha256}\n".encode())
    elif started_with != sha256:
        raise InputError(
            f"workdir {workdir}: was started with the teacher of SHA-256 {started_with[:16]}..., "
            f"not {sha256[:16]}...; give that one as --config.teacher=FILE (CHANGELOG.md says "
            "where earlier packaged ones are), or another --workdir"
        )


def differences(stored: object, expected: object, name: str = "config") -> list[str]:
    """Names the fields in which two configurations differ, with their values."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        return [
            difference
            for key in stored.keys() | expected.keys()
            for difference in differences(stored.get(key), expected.get(key), f"{name}.{key}")
        ]
    return [] if stored == expected else [f"{name} ({stored!r}, not {expected!r})"]
