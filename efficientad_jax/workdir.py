"""A work directory belongs to one configuration."""

import json
from pathlib import Path

from efficientad_jax.configuration import Config
from efficientad_jax.errors import InputError

CONFIG_FILE = "config.json"


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
        except ValueError as error:
            raise InputError(f"workdir {workdir}: {CONFIG_FILE} is not JSON ({error})") from error
        differing = sorted(differences(found, wanted))
        if differing:
            raise InputError(
                f"workdir {workdir}: belongs to a configuration with other {', '.join(differing)}; "
                "give another --workdir, or remove this one"
            )
        return workdir
    try:
        if workdir.is_dir() and any(workdir.iterdir()):
            raise InputError(
                f"workdir {workdir}: holds files but no {CONFIG_FILE}; give an empty or new folder"
            )
        workdir.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(wanted, indent=2) + "\n")
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
