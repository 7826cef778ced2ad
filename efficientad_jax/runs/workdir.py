"""A work directory belongs to one configuration."""

import json
from collections.abc import Sequence
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

CONFIG_FILE = "config.json"
# The SHA-256 of the file of the teacher that a run was started with.
TEACHER_FILE = "teacher.sha256"
# Of the small teacher in the package when runs did not keep it yet.
_UNRECORDED_PACKAGED = "e4bab3e773a47a9a47ccbd9441989a333006e56ddd2b61f27b28629f362641e4"
# What an evaluation found, beside the configuration that it belongs to.
METRICS_FILE = "metrics.json"


def claim_workdir(
    workdir: Path,
    config: Config | DistillationConfig,
    *,
    teacher_sha256: str = "",
    ignored: Sequence[str] = (),
) -> Path:
    """Makes a work directory for `config`, or checks that the one there is its own.

    Args:
      workdir: the folder.
      config: of the run. Where it has a `teacher`, its path does not count, as the file may be
        moved, and the packaged one exchanged by an upgrade: `teacher_sha256` does.
      teacher_sha256: digest of the teacher's file, "" for a run that has none.
      ignored: fields that the result does not depend on; they are not kept.

    Returns:
      The absolute path.

    Raises:
      InputError: the directory belongs to another configuration, holds files of something else,
        or cannot be made.
    """
    workdir = workdir.absolute()
    file = workdir / CONFIG_FILE
    wanted = {k: v for k, v in as_dict(config).items() if k not in ignored}
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"workdir {workdir}: {CONFIG_FILE} cannot be read as JSON ({error})"
            ) from error
        if teacher_sha256:
            _check_teacher(workdir, found, teacher_sha256)
        if isinstance(found, dict):
            found = _completed(found, config)
            same = ("teacher", *ignored) if teacher_sha256 else ignored
            found = {k: v for k, v in found.items() if k not in same}
            wanted = {k: v for k, v in wanted.items() if k not in same}
        differing = sorted(differences(found, wanted))
        if differing:
            raise InputError(
                f"workdir {workdir}: belongs to a configuration with other {', '.join(differing)}; "
                "give another --workdir, or remove this one"
            )
        return workdir
    try:
        # A hidden file is what a run that was killed had not finished writing.
        if workdir.is_dir() and any(not path.name.startswith(".") for path in workdir.iterdir()):
            raise InputError(
                f"workdir {workdir}: holds files but no {CONFIG_FILE}; give an empty or new folder"
            )
        # Before the configuration, which makes the folder a work directory.
        if teacher_sha256:
            write_atomically(workdir / TEACHER_FILE, f"{teacher_sha256}\n".encode())
        write_atomically(file, (json.dumps(wanted, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"workdir {workdir}: cannot be made ({error.strerror})") from error
    return workdir


def _completed(found: dict[str, Any], like: Config | DistillationConfig) -> dict[str, Any]:
    """A configuration of an older version with the fields that it did not have yet."""
    read = read_config if isinstance(like, Config) else read_distillation
    try:
        return as_dict(read(found))
    except InputError:
        return found  # of something else, as the comparison will show


def _check_teacher(workdir: Path, config: object, sha256: str) -> None:
    """Refuses another teacher than the one that the run was started with."""
    file = workdir / TEACHER_FILE
    if file.is_file():
        started_with = file.read_text(errors="replace").strip()
    elif (
        isinstance(config, dict)
        and config.get("teacher") == ""
        and any((workdir / "checkpoints").glob("[0-9]*"))
    ):
        started_with = _UNRECORDED_PACKAGED
    else:
        # Not started yet, or by a version that kept no digest, with a teacher of the user's.
        write_atomically(file, f"{sha256}\n".encode())
        return
    if started_with != sha256:
        raise InputError(
            f"workdir {workdir}: was started with the teacher of SHA-256 {started_with[:16]}..., "
            f"not {sha256[:16]}...; give that one as --config.teacher=FILE (CHANGELOG.md says "
            "where earlier packaged ones are), or another --workdir"
        )


def differences(found: object, wanted: object, name: str = "config") -> list[str]:
    """Names the fields in which two configurations differ, with their values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in found.keys() | wanted.keys()
            for difference in differences(found.get(key), wanted.get(key), f"{name}.{key}")
        ]
    return [] if found == wanted else [f"{name} ({found!r}, not {wanted!r})"]
