"""Where compiled code is kept between runs."""

import os
import platform
from pathlib import Path


def cache_folder() -> Path:
    """A folder of this user's alone, made if need be: what lies in it is loaded and run.

    Raises:
      PermissionError: others can write to it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "efficientad_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: expected a folder that only you can write to")
    return folder


def processor_features() -> str:
    """What code for the processor at hand depends on: home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
