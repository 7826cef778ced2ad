"""The folder in which compiled code is stored, so that the next start of a command is faster."""

import hashlib
import logging
import os
import platform
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Returns the cache folder, creates it if needed, and checks its permissions.

    Code in it is loaded and run, so that only the user may be able to write to it.

    Raises:
      PermissionError: other users can write to it.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "efficientad_jax"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder}: expected a folder that only you can write to")
    return folder


def processor_features() -> str:
    """Describes the processor that code is compiled for.

    It is part of the names in the cache, as machines with other processors may share the folder.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(fields)}))


_log = logging.getLogger(__name__)


def keep_compiled_programs() -> None:
    """Enables JAX's persistent compilation cache, in a folder for this processor.

    JAX identifies a program by its computation, JAX's version and the backend. The package's C++
    is not part of a program, which only holds the names and arguments of the calls. A program from
    the cache therefore calls the C++ that is registered now, as a newly compiled one would.

    A folder that the user chose (`JAX_COMPILATION_CACHE_DIR`) is kept. If no folder can be created,
    the cache stays off, with a warning.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    processor = hashlib.sha256(processor_features().encode()).hexdigest()[:16]
    try:
        folder = cache_folder() / f"programs-{processor}"
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        _log.warning("compiled programs are not kept for the next start: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
