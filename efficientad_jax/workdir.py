"""A work directory belongs to one configuration."""

import json
from pathlib import Path

from efficientad_jax.atomic_file import write_atomically
from efficientad_jax.configuration import Config
from efficientad_jax.errors import InputError

CONFIG_FILE = "config.json"
# What an evaluation found, beside the configuration that it belongs to.
METRICS_FILE = "metrics.json"


def claim_workdir(workdir: Path, config: Config) -> Path:
    """Makes a work directory for `config`, or checks that the one there is its own.

    Returns:
      The absolute path.

    Raises:
      InputError: the directory belongs to another configuration, holds files of something else,
        or cannot be made.
    """
    workdir = workdir.absolute()
    file = workdir / CONFIG_FILE
    wanted = json.loads(config.to_json())
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"workdir {workdir}: {CONFIG_FILE} cannot be read as JSON ({error})"
            ) from error
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
        write_atomically(file, (json.dumps(wanted, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"workdir {workdir}: cannot be made ({error.strerror})") from error
    return workdir


def differences(found: object, wanted: object, name: str = "config") -> list[str]:
    """Names the fields in which two configurations differ, with their values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in found.keys() | wanted.keys()
            for difference in differences(found.get(key), wanted.get(key), f"{name}.{key}")
        ]
    return [] if found == wanted else [f"{name} ({found!r}, not {wanted!r})"]
