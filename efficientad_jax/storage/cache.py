"""Compiled code is kept between runs: the second start of a command takes it from there."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax


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


_log = logging.getLogger(__name__)


def keep_compiled_programs() -> None:
    """Switches JAX's persistent compilation cache on, in a folder for this processor.

    JAX keys a program by what it computes, its own version and the backend. The package's C++ is
    called by name and not part of a program, and what is asked of it is: a program from the cache
    calls the C++ that is registered now, as it would if it were compiled anew.

    A folder that the user named (`JAX_COMPILATION_CACHE_DIR`) is left as it is. Where none can be
    had, nothing is kept.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    processor = hashlib.sha256(processor_features().encode()).hexdigest()[:16]
    try:
        folder = cache_folder() / f"programs-{processor}"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
